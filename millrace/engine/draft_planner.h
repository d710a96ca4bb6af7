#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

// How many draft tokens a step should compute. Pure: acceptance and times come in as arguments.
namespace millrace {

// What a step takes by its number of rows, learned from the steps themselves: the median of the last few of each number, straight lines
// between numbers, and a little beyond them an optimistic guess, so that what was never tried is tried. Old times are forgotten: contexts
// and other load change.
class StepSeconds {
 public:
  static constexpr int64_t kRowsMax = 128;

  void observe(int64_t rows, double seconds);
  // Absent before anything was observed, for far more rows than were, and for more than kRowsMax.
  std::optional<double> estimate(int64_t rows) const;

 private:
  static constexpr int64_t kKept = 5, kStepsOfMany = 512;
  struct Times {
    std::array<double, kKept> seconds{};
    int64_t count = 0, next = 0, last_step = 0;
  };
  bool is_fresh(const Times& times) const;
  double median(int64_t rows) const;

  std::array<Times, kRowsMax + 1> by_rows_;
  int64_t num_steps_ = 0;
};

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
