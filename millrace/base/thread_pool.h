#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace millrace {

// A fixed set of threads that compute one parallel region at a time (docs/design.md D8): the calling thread is worker 0, the others wait
// between regions. Waiting spins at most 50 us and then sleeps in the kernel, so that idle or outnumbered workers cost nothing: with more
// threads than CPUs a spinning waiter would hold the CPU which the awaited thread needs.
class ThreadPool {
 public:
  // num_threads counts the calling thread. The others have all signals blocked and are named "millrace-w1", "millrace-w2" ...
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs body(worker) on every worker, 0 .. num_threads - 1, and returns when all are done; what they wrote is then visible to the
  // caller. One caller at a time, never from inside a region. `body` must not throw. No allocation.
  template <class F>
  void run(F&& body) {
    using Callable = std::remove_reference_t<F>;
    run_erased([](void* context, int worker) { (*static_cast<Callable*>(context))(worker); },
               const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

  // Inside run(): returns when every worker has come here; what each wrote before is visible to all afterwards. Every worker of a region
  // must pass the same number of barriers.
  void barrier(int worker);

 private:
  using Body = void (*)(void* context, int worker);

  void run_erased(Body body, void* context);
  void work(int worker);
  // Returns when `flag` differs from `old`.
  void wait_while(const std::atomic<uint32_t>& flag, uint32_t old) const;

  const int num_threads_;
  const int64_t spin_ns_;
  // Each on a cache line of its own: arrivals write one while waiters poll the other.
  alignas(64) std::atomic<uint32_t> num_arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};   // counts completed barriers
  alignas(64) std::atomic<uint32_t> region_{0};  // counts regions started; publishes body_, context_ and stopping_
  Body body_ = nullptr;
  void* context_ = nullptr;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

// Hands out the numbers 0, 1, 2 ... to workers that claim tiles of work as they become free. reset() belongs between two barriers, by
// one worker.
class WorkCounter {
 public:
  // The first of `count` consecutive numbers that are now the caller's.
  int64_t claim(int64_t count = 1) { return next_.fetch_add(count, std::memory_order_relaxed); }
  void reset() { next_.store(0, std::memory_order_relaxed); }

 private:
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace millrace
