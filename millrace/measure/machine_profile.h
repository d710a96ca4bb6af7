#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "millrace/base/cpu_features.h"
#include "millrace/base/json.h"
#include "millrace/base/status.h"

// What this machine can do, as measured: the numbers by which every report of ours divides (docs/performance.md).
namespace millrace {

// Of the rounds of one measurement, per second: bytes or operations.
struct MeasuredRate {
  double best = 0, median = 0;
};

// With what a product is computed. Weights of integer classes meet int8 activations.
enum class Arithmetic { kInt8, kBf16, kF32 };
inline constexpr std::size_t kNumArithmetics = 3;
std::string_view arithmetic_name(Arithmetic arithmetic);

// All threads of a pool together.
struct ThreadProfile {
  struct Cache {
    int level = 0;
    int64_t buffer_bytes = 0;  // of each thread
    MeasuredRate read;
  };
  struct Compute {
    Isa isa = Isa::kScalar;
    std::array<MeasuredRate, kNumArithmetics> rates;  // by Arithmetic; best is 0 where the level has no instruction for it
  };

  int num_threads = 0;
  MeasuredRate read_small_pages, read_huge_pages;  // a read-only stream through MachineProfile::memory_buffer_bytes
  std::vector<Cache> caches;                       // from the nearest
  std::vector<Compute> compute;                    // every level that runs here, narrowest first
  double barrier_seconds = 0;                      // one ThreadPool::barrier, median; 0 with one thread
  double stage_seconds = 0;  // one stage of ThreadPool::run_stages with a chunk for each thread and nothing in it, median

  double read_bandwidth() const { return std::max(read_small_pages.best, read_huge_pages.best); }
  // Operations a second at most, on a level. bf16 may always be computed in f32 instead: where that is faster, or there is no instruction
  // for it, the f32 rate counts. 0: the level does not run here.
  double peak(Isa isa, Arithmetic arithmetic) const;
};

struct MachineProfile {
  std::string cpu;                     // as the kernel names it, with family, model and stepping
  std::string isa;                     // the widest level that runs
  int num_cpus = 0;                    // that this process may use
  std::string version;                 // of millrace
  int64_t last_level_cache_bytes = 0;  // as the CPU reports it; a virtual machine may have the use of less. 0: unknown
  int64_t memory_buffer_bytes = 0;     // what the bandwidth was measured over
  int64_t huge_page_bytes = 0;         // of that buffer, what really was in 2 MB pages when they were asked for
  std::vector<ThreadProfile> threads;  // by ascending number

  // The profile of exactly `num_threads`; null: not measured.
  const ThreadProfile* of_threads(int num_threads) const;
  // Whether both describe one machine and one version, so that measurements of one serve for the other.
  bool same_machine(const MachineProfile& other) const;
};

// This machine, with nothing measured yet.
MachineProfile this_machine();

json::object to_json(const MachineProfile& profile);
// The inverse. Errors name the field.
Result<MachineProfile> machine_profile_from_json(const json::value& value);

}  // namespace millrace
