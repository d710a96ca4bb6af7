#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

// For tests: runs that follow from a seed alone, on every CPU.
//
//   MILLRACE_SIMULATION_SEEDS=N  the first N seeds, in the place of a test's own number
//   MILLRACE_SIMULATION_SEED=S   seed S alone, on the calling thread: the replay of a failure that printed "seed S"
namespace millrace {

struct SimulationSeeds {
  uint64_t first = 0;
  int64_t count = 1;
};

// `sanitized`: the number under ASan and TSan, which take ten times as long.
inline SimulationSeeds simulation_seeds(int64_t count, int64_t sanitized) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  count = sanitized;
#else
  (void)sanitized;
#endif
  if (const char* seed = std::getenv("MILLRACE_SIMULATION_SEED")) return {std::strtoull(seed, nullptr, 10), 1};
  if (const char* asked = std::getenv("MILLRACE_SIMULATION_SEEDS")) count = std::max(1LL, std::atoll(asked));
  return {0, count};
}

// The sum of run(seed) over the seeds: `Totals` is made of nothing and has add(). Ends early after a fatal failure, which carries its seed.
template <class Totals, class Run>
Totals simulate(const SimulationSeeds& seeds, const Run& run) {
  Totals totals;
  std::mutex mutex;
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    Totals mine;
    for (int64_t i = next++; i < seeds.count && !testing::Test::HasFatalFailure(); i = next++) {
      const uint64_t seed = seeds.first + static_cast<uint64_t>(i);
      SCOPED_TRACE(fmt::format("seed {}", seed));
      mine.add(run(seed));
    }
    const std::lock_guard lock(mutex);
    totals.add(mine);
  };
  const int64_t num_threads = std::min<int64_t>(seeds.count, std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < num_threads; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  return totals;
}

}  // namespace millrace
