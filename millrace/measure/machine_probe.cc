#include "millrace/measure/machine_probe.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>

#include "millrace/base/aligned_buffer.h"
#include "millrace/base/clock.h"
#include "millrace/base/system_memory.h"
#include "millrace/measure/peak_loops.h"

namespace millrace {
namespace {

constexpr int64_t kReadUnit = 1024;  // what a ReadLoop wants its size to be a multiple of
constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr double kRoundSeconds = 2e-3;  // short enough for rounds without a disturbance, long enough for the clock and the barriers
constexpr int64_t kPrefetchBytes = 4096;

// The loops of a level, with those of the levels that it extends where it has none of its own.
PeakLoops loops_of(Isa isa) {
  const auto extend = [](PeakLoops loops, const PeakLoops& own) {
    if (own.int8 != nullptr) loops.int8 = own.int8, loops.int8_short = own.int8_short;
    if (own.bf16 != nullptr) loops.bf16 = own.bf16;
    if (own.f32 != nullptr) loops.f32 = own.f32;
    if (own.read != nullptr) loops.read = own.read;
    return loops;
  };
  switch (isa) {
    case Isa::kScalar: return baseline::kPeakLoops;
    case Isa::kAvx2: return avx2::kPeakLoops;
    case Isa::kAvx2Vnni: return extend(avx2::kPeakLoops, avx2vnni::kPeakLoops);
    case Isa::kAvx512Vnni: return avx512::kPeakLoops;
    case Isa::kAvx512VnniBf16: return extend(avx512::kPeakLoops, avx512bf16::kPeakLoops);
    case Isa::kAmx: return extend(avx512::kPeakLoops, amx::kPeakLoops);
  }
  return baseline::kPeakLoops;
}

ReadLoop read_loop() {
  ReadLoop loop = nullptr;
  for (Isa isa : kAllIsas) {
    if (isa_runnable(isa)) loop = loops_of(isa).read;
  }
  return loop;
}

// body(worker) does `amount` on all workers together; one round after the other for `seconds`, at least `rounds_min`.
template <class Body>
MeasuredRate rates(ThreadPool& pool, double amount, double seconds, int rounds_min, const Body& body) {
  std::vector<double> times;
  const double end = steady_seconds() + seconds;
  while (static_cast<int>(times.size()) < rounds_min || steady_seconds() < end) {
    double start = 0, stop = 0;
    pool.run([&](int worker) {
      pool.barrier(worker);  // all are awake now
      if (worker == 0) start = steady_seconds();
      body(worker);
      pool.barrier(worker);
      if (worker == 0) stop = steady_seconds();
    });
    times.push_back(std::max(stop - start, 1e-9));
  }
  std::sort(times.begin(), times.end());
  return {amount / times.front(), amount / times[times.size() / 2]};
}

MeasuredRate compute_rate(ThreadPool& pool, ComputeLoop loop, double seconds) {
  if (loop == nullptr) return {};
  // How many rounds of the loop take kRoundSeconds, by doubling; this also wakes the wide units, which start slowly.
  int64_t rounds = 1024;
  double operations = 0;
  for (double start = steady_seconds(), time = 0; time < kRoundSeconds; rounds *= 2) {
    start = steady_seconds();
    operations = loop(rounds);
    time = steady_seconds() - start;
    if (time >= kRoundSeconds) break;
  }
  return rates(pool, operations * pool.num_threads(), seconds, 3, [&](int) { loop(rounds); });
}

// Every thread reads a buffer of its own again and again.
MeasuredRate cache_rate(ThreadPool& pool, int64_t buffer_bytes, double seconds) {
  std::vector<AlignedBuffer> buffers(static_cast<std::size_t>(pool.num_threads()));
  pool.run([&](int worker) {
    auto& buffer = buffers[static_cast<std::size_t>(worker)] = AlignedBuffer(static_cast<std::size_t>(buffer_bytes));
    std::memset(buffer.data(), 1, buffer.size());
  });
  const ReadLoop loop = read_loop();
  std::atomic<uint64_t> sink{0};
  int64_t repeats = 1;
  for (double time = 0; time < kRoundSeconds; repeats *= 2) {
    const double start = steady_seconds();
    for (int64_t i = 0; i < repeats; ++i) sink += loop(buffers[0].data(), buffer_bytes, 0);
    time = steady_seconds() - start;
    if (time >= kRoundSeconds) break;
  }
  return rates(pool, static_cast<double>(buffer_bytes * repeats) * pool.num_threads(), seconds, 3, [&](int worker) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < repeats; ++i) sum += loop(buffers[static_cast<std::size_t>(worker)].data(), buffer_bytes, 0);
    sink += sum;
  });
}

// Sizes that lie well inside each level of data cache: half of a core's own, and of a shared last level half of a thread's share, but no
// more than 32 MB together, since a virtual machine often reports a cache of which others use the most.
std::vector<ThreadProfile::Cache> cache_buffers(int num_threads) {
  std::vector<ThreadProfile::Cache> buffers;
  for (int index = 0; index < 8; ++index) {
    const std::string folder = fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/", index);
    std::ifstream level_file(folder + "level"), type_file(folder + "type"), size_file(folder + "size");
    int level = 0;
    std::string type;
    int64_t size = 0;
    char unit = 0;
    if (!(level_file >> level) || !(type_file >> type) || !(size_file >> size)) break;
    size_file >> unit;
    size <<= unit == 'K' ? 10 : unit == 'M' ? 20 : 0;
    if (type == "Instruction") continue;
    if (level >= 3) size = std::min(size, int64_t{64} << 20) / num_threads;
    const int64_t bytes = std::max(size / 2 / kReadUnit, int64_t{1}) * kReadUnit;
    if (!buffers.empty() && bytes <= 2 * buffers.back().buffer_bytes) continue;  // a share that a nearer cache nearly holds
    buffers.push_back({level, bytes, {}});
  }
  return buffers;
}

double barrier_seconds(ThreadPool& pool, double seconds) {
  if (pool.num_threads() == 1) return 0;
  constexpr int kBarriers = 1000;
  // Threads that only wait for one another may stay on one CPU; some work of their own first makes the system spread them.
  pool.run([](int) {
    for (const double end = steady_seconds() + 0.02; steady_seconds() < end;) {
    }
  });
  const MeasuredRate rate = rates(pool, kBarriers, seconds, 3, [&](int worker) {
    for (int i = 0; i < kBarriers; ++i) pool.barrier(worker);
  });
  return 1 / rate.median;
}

// What an operation of a step costs beyond its work.
double stage_seconds(ThreadPool& pool, double seconds) {
  constexpr int64_t kStages = 1000;
  std::vector<double> times;
  for (const double end = steady_seconds() + seconds; times.size() < 3 || steady_seconds() < end;) {
    const double start = steady_seconds();
    pool.run_stages(kStages, [&](int64_t) { return static_cast<int64_t>(pool.num_threads()); }, [](int64_t, int64_t, int) {});
    times.push_back((steady_seconds() - start) / static_cast<double>(kStages));
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

std::vector<ThreadProfile::Compute> compute_rates(ThreadPool& pool, double seconds) {
  std::vector<ThreadProfile::Compute> levels;
  std::vector<std::pair<ComputeLoop, MeasuredRate>> known;  // levels share loops
  const auto rate_of = [&](ComputeLoop loop) {
    for (const auto& [measured, rate] : known) {
      if (measured == loop) return rate;
    }
    known.emplace_back(loop, compute_rate(pool, loop, seconds));
    return known.back().second;
  };
  for (Isa isa : kAllIsas) {
    if (!isa_runnable(isa)) continue;
    const PeakLoops loops = loops_of(isa);
    const MeasuredRate wide = rate_of(loops.int8), narrow = rate_of(loops.int8_short);
    levels.push_back({isa, {narrow.best > wide.best ? narrow : wide, rate_of(loops.bf16), rate_of(loops.f32)}});
  }
  return levels;
}

}  // namespace

std::vector<int> probe_thread_counts(int num_cpus) {
  std::vector<int> counts;
  for (int n = 1; n < num_cpus; n = n < 4 ? n + 1 : 2 * n) counts.push_back(n);
  counts.push_back(num_cpus);
  return counts;
}

Result<ReadStream> ReadStream::create(int64_t num_bytes, bool huge_pages, ThreadPool& pool) {
  const int64_t rounded = (std::max(num_bytes, int64_t{1}) + kHugePage - 1) / kHugePage * kHugePage;
  // A mapping begins at any page: of one that is a huge page longer, the ends are given back.
  void* mapped = ::mmap(nullptr, static_cast<std::size_t>(rounded + kHugePage), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return Status::resource_exhausted(fmt::format("no memory for {} MB to read", rounded >> 20));
  auto* begin = static_cast<std::byte*>(mapped);
  const auto offset = static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin) % kHugePage);
  const int64_t before = offset == 0 ? 0 : kHugePage - offset;
  if (before > 0) ::munmap(begin, static_cast<std::size_t>(before));
  if (before < kHugePage) ::munmap(begin + before + rounded, static_cast<std::size_t>(kHugePage - before));
  ReadStream stream(begin + before, rounded);
  ::madvise(stream.data_, static_cast<std::size_t>(rounded), huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  // Written once, or every page would be the same page of zeros; by the threads that will read, so that it lies near them.
  pool.run([&](int worker) {
    const int64_t from = rounded * worker / pool.num_threads(), to = rounded * (worker + 1) / pool.num_threads();
    std::memset(stream.data_ + from, 1, static_cast<std::size_t>(to - from));
  });
  return stream;
}

ReadStream::ReadStream(ReadStream&& other) noexcept : data_(std::exchange(other.data_, nullptr)), num_bytes_(other.num_bytes_) {}

ReadStream::~ReadStream() {
  if (data_ != nullptr) ::munmap(data_, static_cast<std::size_t>(num_bytes_));
}

int64_t ReadStream::huge_page_bytes() const {
  // The kernel may have merged the mapping with a neighbour of the same kind, but splits none: what counts is the one that contains it.
  std::ifstream file("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    uintptr_t begin = 0, end = 0;
    int64_t kib = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2) {
      const auto data = reinterpret_cast<uintptr_t>(data_);
      inside = begin <= data && data < end;
    } else if (inside && std::sscanf(line.c_str(), "AnonHugePages: %" SCNd64, &kib) == 1) {
      return std::min(kib * 1024, num_bytes_);
    }
  }
  return 0;
}

MeasuredRate ReadStream::measure(ThreadPool& pool, double seconds) const {
  const ReadLoop loop = read_loop();
  std::atomic<uint64_t> sink{0};
  const auto part = [&](int worker) { return num_bytes_ / kReadUnit * worker / pool.num_threads() * kReadUnit; };
  MeasuredRate better;
  // Hardware prefetchers are enough on some CPUs and not on others.
  for (const int64_t prefetch_bytes : {int64_t{0}, kPrefetchBytes}) {
    const MeasuredRate rate = rates(pool, static_cast<double>(num_bytes_), seconds / 2, 3, [&](int worker) {
      sink += loop(data_ + part(worker), part(worker + 1) - part(worker), prefetch_bytes);
    });
    if (rate.best > better.best) better = rate;
  }
  return better;
}

Result<MachineProfile> probe_machine(std::span<const int> thread_counts, const ProbeOptions& options) {
  MachineProfile profile = this_machine();
  std::vector<std::unique_ptr<ThreadPool>> pools;
  for (int count : thread_counts) {
    pools.push_back(std::make_unique<ThreadPool>(count));
    profile.threads.push_back({.num_threads = count});
  }
  if (pools.empty()) return profile;
  profile.memory_buffer_bytes =
      std::min({std::max(2 * profile.last_level_cache_bytes, int64_t{256} << 20), options.memory_bytes_max, available_memory_bytes() / 4});
  // More threads first touch the buffer than may read it; on one memory node that makes no difference, on several it spreads the pages.
  ThreadPool& all = *pools.back();
  for (const bool huge_pages : {true, false}) {
    MR_ASSIGN_OR_RETURN(const ReadStream stream, ReadStream::create(profile.memory_buffer_bytes, huge_pages, all));
    profile.memory_buffer_bytes = stream.num_bytes();
    if (huge_pages) profile.huge_page_bytes = stream.huge_page_bytes();
    for (std::size_t i = 0; i < pools.size(); ++i) {
      (huge_pages ? profile.threads[i].read_huge_pages : profile.threads[i].read_small_pages) =
          stream.measure(*pools[i], 4 * options.seconds_each);
    }
  }
  for (std::size_t i = 0; i < pools.size(); ++i) {
    ThreadProfile& t = profile.threads[i];
    t.caches = cache_buffers(t.num_threads);
    for (auto& cache : t.caches) cache.read = cache_rate(*pools[i], cache.buffer_bytes, options.seconds_each);
    t.compute = compute_rates(*pools[i], options.seconds_each);
    t.barrier_seconds = barrier_seconds(*pools[i], options.seconds_each);
    t.stage_seconds = stage_seconds(*pools[i], options.seconds_each);
  }
  return profile;
}

}  // namespace millrace
