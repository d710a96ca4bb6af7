#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "millrace/engine/live_request.h"
#include "millrace/engine/scheduler.h"
#include "millrace/model/step_plan.h"

namespace millrace {

// Writes down what the scheduler decided as the plan that an executor computes, and remembers whose its outputs are. The scheduler's
// sequences are LiveSequences.
class StepBuilder {
 public:
  // A sequence that wants tokens: one after its last row, and one after each draft token.
  struct Wanted {
    LiveSequence* sequence;
    std::size_t output_begin;  // of StepPlan::outputs
    int64_t num_draft_tokens, num_accepted_tokens;
  };
  // A sequence of which prompt tokens are scored.
  struct Scored {
    LiveSequence* sequence;
    std::size_t output_begin, num_outputs;
  };

  explicit StepBuilder(std::size_t num_kv_groups) : num_kv_groups_(num_kv_groups) {}

  // Valid until the next call; the sequences' tokens must stay as they are until the plan is computed.
  const StepPlan& build(std::span<const Scheduler::Planned> planned, std::span<const StepPlan::BlockCopy> block_copies);
  // Counts the draft tokens that came true, here and in the sequences.
  void accept_drafts(const StepOutput& output);

  // Of the last plan.
  std::span<const Wanted> wanted() const { return wanted_; }
  std::span<const Scored> scored() const { return scored_; }

 private:
  void add_outputs(LiveSequence& sequence, int32_t row_end);
  void add_scores(LiveSequence& sequence, int64_t num_rows, int32_t row_begin);

  std::size_t num_kv_groups_;
  StepPlan plan_;
  std::vector<Wanted> wanted_;
  std::vector<Scored> scored_;
  std::vector<SamplingInput> sampling_;  // [num_outputs]; never grows within a step: the plan points into it
};

}  // namespace millrace
