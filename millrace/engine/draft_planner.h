#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "millrace/engine/step_seconds.h"

// How many draft tokens a step should compute. Pure: acceptance and times come in as arguments.
namespace millrace {

// One sequence that decodes: how likely its first draft token is right, the second given that the first was, and so on. Empty: no draft.
struct DraftCandidate {
  std::vector<double> probabilities;
  int64_t num_draft_tokens = 0;  // what choose() gave it
};

// A draft token pays where the tokens it is likely to bring are worth the time that its row adds to the step. What is maximized is the
// product of the sequences' speeds (expected tokens over step time): one sequence's long draft must not slow down its neighbours by more
// than it gains.
class DraftPlanner {
 public:
  // At most so many in a step: the rows that want logits take memory (the vocabulary times 4 bytes each).
  static constexpr int64_t kDraftTokensMax = 32;

  // A step without rows of prompts took so long.
  void observe_step(int64_t num_rows, int64_t num_draft_tokens, double seconds);
  // Divides at most kDraftTokensMax draft tokens among the candidates, which are all the sequences that decode in the next step.
  void choose(std::span<DraftCandidate> candidates);

 private:
  // A gain must be more than what the estimates' noise may feign: of each sequence's speed.
  static constexpr double kGainMin = 0.02;
  // So many steps with drafts, and one without them is measured again.
  static constexpr int64_t kDraftedStepsMax = 128;

  struct Choice {
    double gain;
    std::size_t candidate;
  };
  StepSeconds step_seconds_;
  int64_t num_drafted_steps_ = 0;  // since the last without
  std::vector<Choice> choices_;
};

}  // namespace millrace
