#include "millrace/base/thread_pool.h"

#include <fmt/format.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <climits>
#include <string>

#include "millrace/base/check.h"
#include "millrace/base/clock.h"
#include "millrace/base/cpu_features.h"

namespace millrace {
namespace {

// A wake-up through the kernel takes tens of microseconds, an operation of a small model not much more: waiting this long for one is
// cheaper than sleeping. At a barrier of more threads than CPUs the awaited thread may need ours: only the shortest waits are worth it.
constexpr int64_t kSpinNs = 50'000, kSpinNsOutnumbered = 1'000;
constexpr int kPausesPerClockRead = 16;

// The low half of the offer: the number of chunks of the stage on offer, or one of these.
constexpr uint32_t kEnded = 0;       // the region is over
constexpr uint32_t kEach = 0x10000;  // run()
constexpr uint32_t kStop = 0x10001;
static_assert(ThreadPool::kChunksMax <= 0xffff, "what a share can count, and below kEach");

constexpr uint32_t kWakeCaller = 1, kWakeWorkers = 2;

inline void pause() { __builtin_ia32_pause(); }

uint32_t epoch_of(uint64_t offer) { return static_cast<uint32_t>(offer >> 32); }

// The half of the offer that sleepers wait on.
uint32_t* epoch_word(std::atomic<uint64_t>& offer) {
  static_assert(sizeof offer == sizeof(uint64_t) && std::endian::native == std::endian::little);
  return reinterpret_cast<uint32_t*>(&offer) + 1;
}

// Spins until `changed()`, at most `spin_ns`. Returns whether it has.
template <class Changed>
bool spin_until(int64_t spin_ns, const Changed& changed) {
  if (changed()) return true;
  const int64_t deadline_ns = steady_ns() + spin_ns;
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      pause();
      if (changed()) return true;
    }
  } while (steady_ns() < deadline_ns);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads),
      num_standby_(std::max(0, num_threads - usable_cpus())),
      offer_(kEnded),
      shares_(static_cast<std::size_t>(num_threads)),
      fetches_(static_cast<std::size_t>(num_threads)) {
  MR_CHECK(num_threads >= 1 && num_threads <= kChunksMax, "a pool needs at least the calling thread");
  // Signals from outside are for the threads that know what to do with them: workers are born with all of them blocked.
  sigset_t all, before;
  sigfillset(&all);
  sigdelset(&all, SIGBUS);  // of the thread's own doing: blocked, it would end the program before its handler could say why
  pthread_sigmask(SIG_SETMASK, &all, &before);
  threads_.reserve(static_cast<std::size_t>(num_threads - 1));
  for (int worker = 1; worker < num_threads; ++worker) {
    threads_.emplace_back([this, worker] { work(worker); });
    pthread_setname_np(threads_.back().native_handle(), fmt::format("millrace-w{}", worker).substr(0, 15).c_str());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ThreadPool::~ThreadPool() {
  publish(kStop);
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::wake(uint32_t who, int count) {
  ::syscall(SYS_futex, epoch_word(offer_), FUTEX_WAKE_BITSET_PRIVATE, count, nullptr, nullptr, who);
}

// The release makes all that was written before visible to those who take the offer. It is sequentially consistent with the counts of
// sleepers: either the sleeper sees the new epoch, or we see the sleeper.
void ThreadPool::publish(uint32_t offer) {
  const uint64_t epoch = epoch_of(offer_.load(std::memory_order_relaxed)) + uint64_t{1};
  offer_.store(epoch << 32 | offer);
  if (offer == kEnded) {
    if (caller_sleeps_.load()) wake(kWakeCaller, 1);
    return;
  }
  if (num_threads_ == 1) return;
  if (offer >= kEach) {
    if (num_sleeping_.load() > 0) wake(kWakeWorkers, INT_MAX);
    return;
  }
  // Workers that no CPU is left for would only take one from the others. A single chunk wakes nobody: it is done before they are up.
  const bool caller_sleeps = caller_sleeps_.load();
  int useful = std::min<int>(num_sleeping_.load() + caller_sleeps - num_standby_, static_cast<int>(offer) - 1);
  if (caller_sleeps && useful > 0) {
    wake(kWakeCaller, 1);
    --useful;
  }
  if (useful > 0) wake(kWakeWorkers, useful);
}

void ThreadPool::fetch_when_idle(int worker, const Upcoming& upcoming) {
  Fetch& fetch = fetches_[static_cast<std::size_t>(worker)];
  if (fetch.told[0].data() != upcoming[0].data()) fetch.told = fetch.left = upcoming;
}

// The other threads' last chunks take about as long as a page of weights takes to come.
void ThreadPool::fetch_upcoming(int worker, uint32_t epoch) {
  constexpr std::size_t kLineBytes = 64, kBytesPerLook = 512;
  for (bool is_more = true; is_more;) {
    is_more = false;
    for (std::span<const std::byte>& left : fetches_[static_cast<std::size_t>(worker)].left) {
      if (left.empty()) continue;
      if (epoch_of(offer_.load(std::memory_order_relaxed)) != epoch) return;
      const std::size_t bytes = std::min(kBytesPerLook, left.size());
      for (std::size_t line = 0; line < bytes; line += kLineBytes) __builtin_prefetch(left.data() + line, 0, 2);
      left = left.subspan(bytes);
      is_more = true;
    }
  }
}

void ThreadPool::wait_for_change(uint32_t epoch, int worker) {
  const bool is_caller = worker == 0;
  fetch_upcoming(worker, epoch);
  const auto changed = [&] { return epoch_of(offer_.load(std::memory_order_acquire)) != epoch; };
  if (spin_until(kSpinNs, changed)) return;
  if (is_caller) {
    caller_sleeps_.store(true);
  } else {
    num_sleeping_.fetch_add(1);
  }
  while (epoch_of(offer_.load()) == epoch) {
    ::syscall(SYS_futex, epoch_word(offer_), FUTEX_WAIT_BITSET_PRIVATE, epoch, nullptr, nullptr, is_caller ? kWakeCaller : kWakeWorkers);
  }
  if (is_caller) {
    caller_sleeps_.store(false);
  } else {
    num_sleeping_.fetch_sub(1);
  }
}

// Claims the next chunk of the owner's share for `worker`: the first that is left for the owner, the last for others; -1 where none is
// left. Neighbours on the same worker let what is read in order, as weights are, be fetched ahead.
//
// A stage is over only when every chunk was claimed in it. So a share that still is of an earlier epoch, while this one is on offer, has
// not been touched in this one; and should the stage end before the exchange, then because somebody claimed from the share, and the
// exchange fails.
int64_t ThreadPool::take_chunk(int owner, int worker, uint32_t epoch, int64_t num_chunks) {
  const int64_t begin = num_chunks * owner / num_threads_, end = num_chunks * (owner + 1) / num_threads_;
  if (begin == end) return -1;
  std::atomic<uint64_t>& taken = shares_[static_cast<std::size_t>(owner)].taken;
  uint64_t before = taken.load(std::memory_order_acquire);
  for (;;) {
    const bool is_touched = epoch_of(before) == epoch;
    if (!is_touched && epoch_of(offer_.load(std::memory_order_acquire)) != epoch) return -1;
    const uint32_t counts = is_touched ? static_cast<uint32_t>(before) : 0;
    const int64_t from_begin = counts & 0xffff, from_end = counts >> 16;
    if (from_begin + from_end == end - begin) return -1;
    const uint64_t after = uint64_t{epoch} << 32 | (counts + (owner == worker ? 1u : 1u << 16));
    if (taken.compare_exchange_weak(before, after, std::memory_order_acq_rel, std::memory_order_acquire)) {
      return owner == worker ? begin + from_begin : end - 1 - from_end;
    }
  }
}

// Notes that chunks of the stage on offer were computed; whoever notes the last goes on to the next stage. Returns whether it was the last.
bool ThreadPool::finish(int64_t count, int64_t num_chunks) {
  if (num_done_.fetch_add(count, std::memory_order_acq_rel) + count != num_chunks) return false;
  advance();
  return true;
}

// Computes chunks until none is left to claim: the worker's own share, which costs nobody else a look, then what others have not begun. A
// chunk that was claimed keeps its stage, and what describes it, in place until it is noted as done.
ThreadPool::Turn ThreadPool::take_part(int worker) {
  for (;;) {
    const uint64_t offer = offer_.load(std::memory_order_acquire);
    const uint32_t epoch = epoch_of(offer);
    const int64_t num_chunks = static_cast<uint32_t>(offer);
    // run() or the end, begun since this worker looked: not taken yet.
    if (num_chunks > kChunksMax) return {epoch - 1, false};
    if (num_chunks == kEnded) return {epoch, true};
    int64_t count = 0;
    for (int64_t chunk; (chunk = take_chunk(worker, worker, epoch, num_chunks)) >= 0; ++count) {
      stages_.chunk(stages_.chunk_context, stage_, chunk, worker);
    }
    bool is_last = count > 0 && finish(count, num_chunks);
    for (int other = worker + 1; !is_last && other < worker + num_threads_; ++other) {
      for (int64_t chunk; !is_last && (chunk = take_chunk(other % num_threads_, worker, epoch, num_chunks)) >= 0;) {
        stages_.chunk(stages_.chunk_context, stage_, chunk, worker);
        is_last = finish(1, num_chunks);
      }
    }
    if (!is_last) return {epoch, false};
  }
}

// To the next stage that has chunks. On one thread at a time: the caller's, or the one that finished a stage.
void ThreadPool::advance() {
  int64_t count = 0;
  while (++stage_ < stages_.count) {
    count = stages_.num_chunks(stages_.num_chunks_context, stage_);
    if (count > 0) break;
  }
  MR_CHECK(count <= kChunksMax, "a stage has too many chunks");
  num_done_.store(0, std::memory_order_relaxed);
  publish(stage_ < stages_.count ? static_cast<uint32_t>(count) : kEnded);
}

void ThreadPool::run_stages_erased(const Stages& stages) {
  stages_ = stages;
  stage_ = -1;
  advance();
  for (;;) {
    const Turn turn = take_part(0);
    if (turn.ended) return;
    wait_for_change(turn.epoch, 0);
  }
}

void ThreadPool::run_erased(Body body, void* context) {
  body_ = body;
  context_ = context;
  publish(kEach);
  body(context, 0);
  barrier(0);
}

void ThreadPool::work(int worker) {
  for (uint32_t epoch = 0;;) {
    wait_for_change(epoch, worker);
    // run() and the end wait for this worker: once seen, they stay.
    const auto offer = static_cast<uint32_t>(offer_.load(std::memory_order_acquire));
    if (offer == kStop) return;
    if (offer == kEach) {
      epoch = epoch_of(offer_.load(std::memory_order_relaxed));
      body_(context_, worker);
      // Past this barrier the caller may start the next region, which rewrites body_: nobody reads it any more.
      barrier(worker);
    } else {
      epoch = take_part(worker).epoch;
    }
  }
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
  const int64_t spin_ns = num_standby_ > 0 ? kSpinNsOutnumbered : kSpinNs;
  if (!spin_until(spin_ns, [&] { return phase_.load(std::memory_order_acquire) != phase; })) phase_.wait(phase, std::memory_order_acquire);
}

}  // namespace millrace
