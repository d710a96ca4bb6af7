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
  // Of guesses that are computed: what must be computed before the first of them, spread over the steps that it is likely to serve.
  double overhead_seconds = 0;
};

// A draft token pays where the tokens it is likely to bring are worth the time that its row adds to the step. What is maximized is the
// product of the sequences' speeds (expected tokens over step time): one sequence's long draft must not slow down its neighbours by more
// than it gains.
//
// Guesses that a draft model computes take time of their own: the k-th tokens of all sequences that have so many are computed together, one
// round after the other. And whether they are right is seen only where they are computed. So a ledger is kept of what drafting took and
// brought: where it is in the red no sequence is begun with, and where it is not and nothing seems to pay, a short draft is tried. It is
// credited a hundredth of the time, which is what finding out may cost in the long run.
class DraftPlanner {
 public:
  // At most so many in a step: the rows that want logits take memory (the vocabulary times 4 bytes each).
  static constexpr int64_t kDraftTokensMax = 32;

  // A step without rows of prompts took so long.
  void observe_step(int64_t num_rows, int64_t num_draft_tokens, double seconds);
  // Divides at most kDraftTokensMax draft tokens among the candidates, which are all the sequences that decode in the next step.
  // `draft_seconds`: what a round takes by the number of its sequences; null: guesses are free.
  void choose(std::span<DraftCandidate> candidates, const StepSeconds* draft_seconds = nullptr);
  // After each step with computed guesses or without: what they took, and how many came true.
  void observe_drafts(int64_t num_decodes, int64_t num_draft_tokens, int64_t num_accepted_tokens, double draft_seconds);

 private:
  // A gain must be more than what the estimates' noise may feign: of each sequence's speed.
  static constexpr double kGainMin = 0.02;
  // So many steps with drafts, and one without them is measured again.
  static constexpr int64_t kDraftedStepsMax = 128;

  // What the ledger is credited with of a step's time; and the most that it holds, in steps.
  static constexpr double kTrialShare = 0.01, kBalanceStepsMax = 8;
  static constexpr int64_t kTrialTokens = 2;

  struct Choice {
    double gain;
    std::size_t candidate, depth;  // the depth-th draft token of the candidate, from 0
  };
  void try_one(std::span<DraftCandidate> candidates) const;
  StepSeconds step_seconds_;
  int64_t num_drafted_steps_ = 0;  // since the last without
  double balance_seconds_ = 0;     // of the ledger
  std::vector<Choice> choices_;
  std::vector<int64_t> round_sequences_;  // [rounds] that have a draft token in it
};

}  // namespace millrace
