#include "millrace/engine/draft_planner.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

namespace millrace {
namespace {

DraftCandidate candidate(double probability, int64_t count = 16) {
  return {std::vector<double>(static_cast<std::size_t>(count), probability)};
}

TEST(StepSeconds, KnowsWhatItSawAndDrawsLinesBetween) {
  StepSeconds seconds;
  EXPECT_FALSE(seconds.estimate(1).has_value());
  for (const double outlier : {1.0, 1.1, 50.0}) seconds.observe(1, outlier);
  seconds.observe(5, 3.1);
  EXPECT_DOUBLE_EQ(*seconds.estimate(1), 1.1);
  EXPECT_DOUBLE_EQ(*seconds.estimate(5), 3.1);
  EXPECT_NEAR(*seconds.estimate(3), 2.1, 1e-9);
  EXPECT_NEAR(*seconds.estimate(7), 4.1, 1e-9) << "the line goes on";
  EXPECT_FALSE(seconds.estimate(9).has_value()) << "too far to guess";
  EXPECT_FALSE(seconds.estimate(StepSeconds::kRowsMax + 1).has_value());
  EXPECT_FALSE(seconds.estimate(0).has_value());
}

TEST(StepSeconds, HopesForTheBestWhereNothingWasTried) {
  StepSeconds seconds;
  seconds.observe(4, 1);
  EXPECT_LT(*seconds.estimate(5), 1.05);
  EXPECT_GT(*seconds.estimate(5), 1);
  EXPECT_LT(*seconds.estimate(3), 1);
  EXPECT_GT(*seconds.estimate(3), .95);
}

TEST(StepSeconds, ForgetsOldTimes) {
  StepSeconds seconds;
  for (int i = 0; i < 5; ++i) seconds.observe(8, 100);
  for (int i = 0; i < 600; ++i) seconds.observe(1, 1);
  EXPECT_FALSE(seconds.estimate(8).has_value()) << "nobody knows any more";
  EXPECT_LT(*seconds.estimate(2), 1.1);
}

// A machine that takes `cost(rows)` seconds, and one sequence whose drafts are accepted with a probability: what the planner settles on.
struct Settled {
  double speed = 0;    // tokens a second, against a run without drafts
  double drafted = 0;  // draft tokens a step
};

Settled settle(const std::function<double(int64_t)>& cost, double acceptance, int64_t num_sequences = 1, double noise = 0) {
  DraftPlanner planner;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform(0, 1);
  double seconds = 0, tokens = 0, drafted = 0;
  constexpr int kSteps = 4000;
  for (int step = 0; step < kSteps; ++step) {
    std::vector<DraftCandidate> candidates(static_cast<std::size_t>(num_sequences), candidate(acceptance));
    planner.choose(candidates);
    int64_t num_drafts = 0;
    for (const DraftCandidate& c : candidates) {
      num_drafts += c.num_draft_tokens;
      ++tokens;
      for (int64_t i = 0; i < c.num_draft_tokens && uniform(random) < acceptance; ++i) ++tokens;
    }
    const double took = cost(num_sequences + num_drafts) * (1 + noise * (uniform(random) - .5) + (uniform(random) < noise / 20 ? 3 : 0));
    planner.observe_step(num_sequences + num_drafts, num_drafts, took);
    seconds += took;
    drafted += static_cast<double>(num_drafts);
  }
  const double plain = static_cast<double>(num_sequences) / cost(num_sequences) / (1 + .15 * noise);
  return {tokens / seconds / plain, drafted / kSteps};
}

double memory_bound(int64_t rows) { return rows <= 4 ? 1 : 1 + .2 * static_cast<double>(rows - 4); }
double compute_bound(int64_t rows) { return static_cast<double>(rows); }

TEST(DraftPlanner, GoesAsFarAsRowsAreCheap) {
  const Settled settled = settle(memory_bound, .9);
  EXPECT_GT(settled.drafted, 2.5);
  EXPECT_GT(settled.speed, 2.5);
}

TEST(DraftPlanner, GoesFarWhereDraftsAreAlwaysRight) {
  EXPECT_GT(settle([](int64_t rows) { return 1 + .05 * static_cast<double>(rows); }, 1).drafted, 14);
}

TEST(DraftPlanner, SwitchesItselfOffWhereItDoesNotPay) {
  for (const int64_t num_sequences : {1, 4, 20}) {
    for (const double acceptance : {.0, .3, .6, .9}) {
      const Settled settled = settle(compute_bound, acceptance, num_sequences);
      EXPECT_GT(settled.speed, .98) << num_sequences << " sequences, acceptance " << acceptance;
    }
  }
  EXPECT_GT(settle(memory_bound, 0).speed, .98);
  EXPECT_LT(settle(memory_bound, .01).drafted, .1);
}

TEST(DraftPlanner, IsNotMisledByNoise) {
  for (const double acceptance : {.05, .2, .8}) {
    EXPECT_GT(settle(compute_bound, acceptance, 1, .3).speed, .97) << acceptance;
    EXPECT_GT(settle(memory_bound, acceptance, 1, .3).speed, .97) << acceptance;
  }
}

TEST(DraftPlanner, GivesMoreToWhomItHelpsMore) {
  DraftPlanner planner;
  for (int64_t rows = 1; rows <= 40; ++rows) planner.observe_step(rows, 0, 1 + .05 * static_cast<double>(rows));
  std::vector<DraftCandidate> candidates = {candidate(.95), candidate(.3), {}, candidate(.95, 2)};
  planner.choose(candidates);
  EXPECT_GT(candidates[0].num_draft_tokens, candidates[1].num_draft_tokens);
  EXPECT_GT(candidates[0].num_draft_tokens, 2);
  EXPECT_EQ(candidates[2].num_draft_tokens, 0);
  EXPECT_EQ(candidates[3].num_draft_tokens, 2) << "no more than it has";
}

TEST(DraftPlanner, HasALimitAndNeedsATimeToCompareWith) {
  DraftPlanner planner;
  std::vector<DraftCandidate> candidates(8, candidate(.99));
  planner.choose(candidates);
  int64_t sum = 0;
  for (const DraftCandidate& c : candidates) sum += c.num_draft_tokens;
  EXPECT_EQ(sum, 0) << "no step was seen yet";
  planner.observe_step(8, 0, 0);
  planner.observe_step(60, 0, 0);  // a clock that stands still: rows cost nothing
  planner.choose(candidates);
  for (const DraftCandidate& c : candidates) sum += c.num_draft_tokens;
  EXPECT_EQ(sum, DraftPlanner::kDraftTokensMax);
}

TEST(DraftPlanner, NowAndThenMeasuresAStepWithoutDrafts) {
  DraftPlanner planner;
  planner.observe_step(1, 0, 1);
  int64_t without = 0;
  for (int step = 0; step < 1000; ++step) {
    std::vector<DraftCandidate> candidates = {candidate(1)};
    planner.choose(candidates);
    without += candidates[0].num_draft_tokens == 0 ? 1 : 0;
    planner.observe_step(1 + candidates[0].num_draft_tokens, candidates[0].num_draft_tokens, 1);
  }
  EXPECT_GE(without, 5);
  EXPECT_LE(without, 10);
}

}  // namespace
}  // namespace millrace
