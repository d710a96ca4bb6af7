#pragma once

#include <atomic>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

namespace millrace {

// A fixed set of threads that compute one parallel region at a time (docs/design.md D8): the calling thread is worker 0, the others wait
// between regions. Waiting spins at most 50 us and then sleeps in the kernel.
//
// The region for work is run_stages(): nobody in it waits for a thread, only for work. A worker that the system has put aside for another
// program holds up at most the chunk it had begun; the others go on through all later stages without it, and it joins them where they
// are. With a barrier instead, every stage would wait for the slowest scheduler slice.
class ThreadPool {
 public:
  // num_threads counts the calling thread. The others have all signals blocked and are named "millrace-w1", "millrace-w2" ...
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  static constexpr int64_t kChunksMax = 0xffff;  // of a stage

  int num_threads() const { return num_threads_; }

  // Runs stages 0 .. num_stages - 1, one after the other, and returns when all are done; what they wrote is then visible to the caller.
  //   int64_t num_chunks(int64_t stage)                    how many parts the stage has, at most kChunksMax; called once,
  //                                                        when all earlier stages are done, on any worker
  //   void chunk(int64_t stage, int64_t index, int worker) one part; each runs once. A worker takes the parts of its own share of the
  //                                                        range in order, then from the ends of others' shares
  // What a stage's chunks wrote is visible to the next stage. One caller at a time, never from inside a region. Neither may throw. No
  // allocation.
  template <class NumChunks, class Chunk>
  void run_stages(int64_t num_stages, NumChunks&& num_chunks, Chunk&& chunk) {
    run_stages_erased(
        {num_stages, erase(num_chunks), erase(chunk),
         [](void* context, int64_t stage) -> int64_t { return (*static_cast<std::remove_reference_t<NumChunks>*>(context))(stage); },
         [](void* context, int64_t stage, int64_t index, int worker) {
           (*static_cast<std::remove_reference_t<Chunk>*>(context))(stage, index, worker);
         }});
  }

  // Two runs of bytes that a worker will read.
  using Upcoming = std::array<std::span<const std::byte>, 2>;

  // Inside a chunk: what the worker will probably read in the next stage. Once it has nothing left to do but wait for the others, it
  // fetches that into its cache, both runs in turn, and goes on where it was if it is told the same again. A hint: the memory need not
  // exist by then.
  void fetch_when_idle(int worker, const Upcoming& upcoming);

  // One stage: body(index, worker) for every index in [0, count), however many; beyond the parts that a stage may have, some at a time.
  template <class F>
  void run_chunks(int64_t count, F&& body) {
    const int64_t each = count <= kChunksMax ? 1 : (count + kChunksMax - 1) / kChunksMax;
    run_stages(
        1, [&](int64_t) { return (count + each - 1) / each; },
        [&](int64_t, int64_t chunk, int worker) {
          const int64_t end = count - chunk * each < each ? count : (chunk + 1) * each;
          for (int64_t index = chunk * each; index < end; ++index) body(index, worker);
        });
  }

  // Runs body(worker) once on every worker, 0 .. num_threads - 1: for measuring the threads themselves. Returns when all are done.
  template <class F>
  void run(F&& body) {
    using Callable = std::remove_reference_t<F>;
    run_erased([](void* context, int worker) { (*static_cast<Callable*>(context))(worker); }, erase(body));
  }

  // Inside run(): returns when every worker has come here; what each wrote before is visible to all afterwards. Every worker of a region
  // must pass the same number of barriers.
  void barrier(int worker);

 private:
  using Body = void (*)(void* context, int worker);
  struct Stages {
    int64_t count = 0;
    void *num_chunks_context = nullptr, *chunk_context = nullptr;
    int64_t (*num_chunks)(void* context, int64_t stage) = nullptr;
    void (*chunk)(void* context, int64_t stage, int64_t index, int worker) = nullptr;
  };
  struct Turn {
    uint32_t epoch;  // nothing is left to do in it
    bool ended;      // the region is over
  };

  template <class F>
  static void* erase(F& callable) {
    return const_cast<void*>(static_cast<const void*>(std::addressof(callable)));
  }

  void run_stages_erased(const Stages& stages);
  void run_erased(Body body, void* context);
  void work(int worker);
  Turn take_part(int worker);
  int64_t take_chunk(int owner, int worker, uint32_t epoch, int64_t num_chunks);
  bool finish(int64_t count, int64_t num_chunks);
  void advance();
  void publish(uint32_t offer);
  void fetch_upcoming(int worker, uint32_t epoch);
  void wait_for_change(uint32_t epoch, int worker);
  void wake(uint32_t who, int count);

  const int num_threads_;
  const int num_standby_;  // workers beyond the CPUs: they may sleep while the others work
  // The offer to all workers: the epoch, which counts offers, in the high half; in the low half what there is to do, of a stage how many
  // chunks it has. It changes only with the epoch, so that working on a stage costs those who look at it nothing.
  alignas(64) std::atomic<uint64_t> offer_;
  alignas(64) std::atomic<int64_t> num_done_{0};  // chunks of the current stage
  // What was taken of a worker's share of a stage: the stage's epoch in the high half, then how many chunks from its end, and from its
  // beginning. Of an earlier epoch: nothing was taken yet.
  struct alignas(64) Share {
    std::atomic<uint64_t> taken{0};
  };
  std::vector<Share> shares_;  // [num_threads]
  // What a worker was told to fetch, and how much of it is not fetched yet. The worker's own.
  struct alignas(64) Fetch {
    Upcoming told, left;
  };
  std::vector<Fetch> fetches_;  // [num_threads]
  // Written by whoever finished a stage, before the next offer; read by those who hold a chunk of it.
  alignas(64) Stages stages_;
  int64_t stage_ = 0;
  Body body_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<int> num_sleeping_{0};  // of workers 1 ..
  std::atomic<bool> caller_sleeps_{false};
  alignas(64) std::atomic<uint32_t> num_arrived_{0};  // at the barrier
  alignas(64) std::atomic<uint32_t> phase_{0};        // counts completed barriers
  std::vector<std::thread> threads_;
};

}  // namespace millrace
