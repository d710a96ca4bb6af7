#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "millrace/model/step_plan.h"

namespace millrace {

// One sequence through an executor without an engine: for logits, verify and tests. It makes the same step plans as the engine does,
// so there is still one way to compute a model.
class SequenceRunner {
 public:
  // Takes the executor's KV memory for itself: `max_tokens` tokens.
  static Result<SequenceRunner> create(Executor& executor, int64_t max_tokens);

  using OnLogits = std::function<void(int64_t position, std::span<const float> logits)>;

  // Appends tokens in steps of at most `chunk` rows, and calls `on_logits` after every token (all_positions) or after the last one.
  // Errors: no room (max_tokens, or the model's context), an id outside the vocabulary.
  Status append(std::span<const int32_t> tokens, int64_t chunk, bool all_positions, const OnLogits& on_logits);

  int64_t num_tokens() const { return num_tokens_; }
  // Forgets everything, and says how long the next sequence will get, which decides the rope variant (docs/design.md D5), and how many of
  // its tokens are a prompt's.
  void reset(int64_t expected_tokens, int64_t num_prompt_tokens = std::numeric_limits<int32_t>::max());
  // The same of an encoder-decoder: the tokens appended then answer `source`, at most max_tokens tokens. Errors: it is empty or too long.
  Status reset_with_source(std::span<const int32_t> source, int64_t expected_tokens, int64_t num_prompt_tokens);

 private:
  SequenceRunner(Executor& executor, int64_t max_tokens) : executor_(&executor), max_tokens_(max_tokens) {}
  Executor* executor_;
  int64_t max_tokens_, num_tokens_ = 0, num_prompt_tokens_ = std::numeric_limits<int32_t>::max();
  bool rope_long_ = false;
  std::vector<int32_t> source_;
  StepPlan plan_;
};

}  // namespace millrace
