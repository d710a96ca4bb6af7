#pragma once

#include <optional>
#include <vector>

#include "millrace/base/thread_pool.h"
#include "millrace/measure/sequence_batch.h"
#include "millrace/measure/step_profile.h"

// How fast steps of one model are, and how far from what this machine could do.
namespace millrace {

struct StepTimingOptions {
  int64_t prompt_tokens = 512, new_tokens = 128;  // of each sequence; 0: that phase is left out
  int64_t batch = 1;                              // sequences: prefilled together, then decoding in one step
  int64_t depth = 0;                              // tokens of each sequence that are in the KV cache before
  int64_t chunk = 512;                            // most tokens of a prefill step
  int repeat = 5;
  bool profile = false;         // runs as many repeats again, noting the times of operations
  bool profile_layers = false;  // a row for each layer, not for each kind of operation
};

// One phase: prefill of `tokens` tokens, or decoding them.
struct PhaseResult {
  int64_t tokens = 0;                  // of all sequences together
  std::vector<double> seconds;         // [repeat], ascending
  OpCost cost;                         // of the whole phase
  double bound_seconds = 0;            // sum of each operation's bound
  std::optional<StepProfile> profile;  // of the whole prefill, or of one step of decoding

  double median_seconds() const { return seconds[seconds.size() / 2]; }
};

struct StepTimingResult {
  std::optional<PhaseResult> prefill, decode;
  MachineBound bound;  // by which the shares were taken
  // Where bound.bytes_per_second comes from, and what was seen: "memory" is the probe's stream through memory; "step" a stream through a
  // buffer of the size of what a step reads, between the repeats, which a large cache may hold as it may hold the model; "decode" the
  // phase itself, where it was faster than either.
  std::string bandwidth_source;
  double memory_bytes_per_second = 0, step_bytes_per_second = 0;
  int64_t step_bytes = 0;
};

// Share of the best bandwidth: published bytes of the tensors read plus KV a second (docs/design.md section 4).
double mbu(const PhaseResult& phase, const MachineBound& bound);
// Share of the compute peak of the arithmetic used; with several kinds of it, the time that they need at their peaks over the time taken.
double mfu(const PhaseResult& phase, const MachineBound& bound);

// Runs and measures. Each repeat does both phases from `depth` tokens on; one more before them warms up and is not counted.
// `machine` is the profile for the pool's number of threads. Errors: as SequenceBatch::create.
Result<StepTimingResult> time_steps(CpuExecutor& executor, ThreadPool& pool, const ThreadProfile& machine,
                                    const StepTimingOptions& options);

}  // namespace millrace
