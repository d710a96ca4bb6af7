#include "millrace/base/thread_pool.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <string>

#include "millrace/base/check.h"
#include "millrace/base/cpu_features.h"

namespace millrace {
namespace {

// A wake-up through the kernel takes tens of microseconds, an operation of a small model not much more: waiting this long for one is
// cheaper than sleeping. Where threads outnumber CPUs the awaited thread may need ours, so that only the shortest waits are worth it.
constexpr int64_t kSpinNs = 50'000;
constexpr int64_t kSpinNsOutnumbered = 1'000;
constexpr int kPausesPerClockRead = 16;

inline void pause() { __builtin_ia32_pause(); }

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads), spin_ns_(num_threads > usable_cpus() ? kSpinNsOutnumbered : kSpinNs) {
  MR_CHECK(num_threads >= 1, "a pool needs at least the calling thread");
  // Signals are for the threads that know what to do with them: workers are born with all of them blocked.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  threads_.reserve(static_cast<std::size_t>(num_threads - 1));
  for (int worker = 1; worker < num_threads; ++worker) {
    threads_.emplace_back([this, worker] { work(worker); });
    pthread_setname_np(threads_.back().native_handle(), fmt::format("millrace-w{}", worker).substr(0, 15).c_str());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  region_.fetch_add(1);
  region_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::wait_while(const std::atomic<uint32_t>& flag, uint32_t old) const {
  if (flag.load(std::memory_order_acquire) != old) return;
  const int64_t deadline_ns = now_ns() + spin_ns_;
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      pause();
      if (flag.load(std::memory_order_acquire) != old) return;
    }
  } while (now_ns() < deadline_ns);
  flag.wait(old, std::memory_order_acquire);
}

void ThreadPool::barrier(int) {
  if (num_threads_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);  // cannot change before we arrive
  if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(num_threads_)) {
    // The reset is published by the new phase, after which alone anybody arrives again. The phase is a sequentially consistent
    // read-modify-write: notify_all() may look for sleepers only after it is visible.
    num_arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1);
    phase_.notify_all();
    return;
  }
  wait_while(phase_, phase);
}

void ThreadPool::run_erased(Body body, void* context) {
  if (num_threads_ > 1) {
    body_ = body;
    context_ = context;
    region_.fetch_add(1);
    region_.notify_all();
  }
  body(context, 0);
  barrier(0);
}

void ThreadPool::work(int worker) {
  for (uint32_t region = 0;; ++region) {
    wait_while(region_, region);
    if (stopping_) return;
    body_(context_, worker);
    // Past this barrier the caller may start the next region, which rewrites body_: nobody reads it any more.
    barrier(worker);
  }
}

}  // namespace millrace
