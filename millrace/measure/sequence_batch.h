#pragma once

#include <functional>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/model/step_plan.h"

namespace millrace {

// Equally long sequences of arbitrary tokens through an executor, in steps like the engine's: for timing. What is computed does not depend
// on the tokens, so they are the same in every run, and going back costs nothing: the next tokens overwrite the old ones' keys and values.
class SequenceBatch {
 public:
  // Takes the executor's KV memory for itself: `tokens_max` tokens of each sequence. ResourceExhausted: no memory for it;
  // InvalidArgument: longer than the model's context.
  static Result<SequenceBatch> create(Executor& executor, int64_t num_sequences, int64_t tokens_max);

  int64_t num_sequences() const { return num_sequences_; }
  // Every sequence now has `num_tokens` tokens, of those that were appended once.
  void rewind(int64_t num_tokens) { num_tokens_ = num_tokens; }

  // Appends `count` tokens to every sequence, in steps of at most `rows_max` rows, one sequence after the other; the logits after each
  // sequence's last one are computed. `on_step` is called after each step.
  using OnStep = std::function<void(const StepPlan& plan)>;
  // `as_prompt`: as tokens of the prompt; what is appended otherwise was generated.
  void append(int64_t count, int64_t rows_max, bool as_prompt, const OnStep& on_step);

 private:
  SequenceBatch(Executor& executor, int64_t num_sequences, int64_t tokens_max);
  void run_step(const OnStep& on_step);

  Executor* executor_;
  int64_t num_sequences_, blocks_each_, num_tokens_ = 0, num_prompt_tokens_ = 0;
  bool rope_long_;
  StepPlan plan_;
  std::vector<int32_t> plan_sequences_;  // parallel to plan_.sequences
};

}  // namespace millrace
