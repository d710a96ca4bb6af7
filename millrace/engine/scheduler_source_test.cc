// Sequences that answer a source text: their cross blocks are taken with the first rows, stay as they are, and go with the sequence.
#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <vector>

#include "millrace/engine/scheduler.h"

namespace millrace {
namespace {

struct Fixture {
  BlockAllocator allocator;
  Scheduler scheduler;
  std::deque<Sequence> sequences;

  Fixture(int64_t num_blocks, int64_t num_cross_blocks, int64_t step_tokens_max = 64)
      : allocator(std::vector<int64_t>{num_blocks, num_cross_blocks}),
        scheduler({.max_running_sequences = 8,
                   .step_tokens_max = step_tokens_max,
                   .prefill_chunk_max = 32,
                   .windows = {std::nullopt, std::nullopt},
                   .cross = {false, true}},
                  allocator) {}

  Sequence& add(int64_t num_source_tokens, std::size_t num_tokens = 1) {
    Sequence& sequence = sequences.emplace_back();
    sequence.arrival = sequences.size();
    sequence.tokens.assign(num_tokens, 0);
    sequence.num_prompt_tokens = static_cast<int64_t>(num_tokens);
    sequence.num_source_tokens = num_source_tokens;
    sequence.shares_prefix = false;
    scheduler.add(sequence);
    return sequence;
  }

  void step() {
    std::vector<Sequence*> wanting;
    for (const Scheduler::Planned& planned : scheduler.plan_step()) {
      const Sequence& sequence = *planned.sequence;
      EXPECT_EQ(static_cast<int64_t>(sequence.block_tables[1].size()), (sequence.num_source_tokens + 31) / 32);
      if (planned.wants_token()) wanting.push_back(planned.sequence);
    }
    scheduler.commit_step();
    for (Sequence* sequence : wanting) sequence->tokens.push_back(1);
    EXPECT_EQ(allocator.check_integrity(), "");
  }
};

TEST(SchedulerSources, OneWaitsForTheBlocksOfItsText) {
  Fixture test(40, 6);
  Sequence &first = test.add(70), &second = test.add(100);  // 3 and 4 blocks of 6
  for (int i = 0; i < 40; ++i) test.step();
  EXPECT_EQ(first.num_computed, 40);
  EXPECT_EQ(second.state, SequenceState::kWaiting);
  EXPECT_EQ(first.block_tables[1].size(), 3u);
  const std::vector<int32_t> blocks = first.block_tables[1];
  test.step();
  EXPECT_EQ(first.block_tables[1], blocks);
  test.scheduler.remove(first);
  EXPECT_EQ(test.allocator.num_used(1), 0);
  test.step();
  EXPECT_EQ(second.state, SequenceState::kRunning);
  EXPECT_EQ(test.allocator.num_used(1), 4);
}

TEST(SchedulerSources, TextsCountAgainstTheBudgetOfAStep) {
  Fixture test(40, 40);
  Sequence &first = test.add(40), &second = test.add(40), &third = test.add(1);
  test.step();
  EXPECT_EQ(first.num_computed, 1);
  EXPECT_EQ(second.num_computed, 1);  // beyond the budget of 64, since some of it was left
  EXPECT_EQ(third.num_computed, 0);
  test.step();
  EXPECT_EQ(third.num_computed, 1);
}

TEST(SchedulerSources, APreemptedOneGivesItsTextUpAndTakesItAgain) {
  Fixture test(3, 40);
  Sequence &first = test.add(33), &second = test.add(64);
  while (second.state != SequenceState::kPreempted) test.step();
  EXPECT_TRUE(second.block_tables[1].empty());
  EXPECT_EQ(test.allocator.num_used(1), 2);
  test.scheduler.remove(first);
  test.step();
  EXPECT_EQ(second.state, SequenceState::kRunning);
  EXPECT_EQ(second.block_tables[1].size(), 2u);
}

TEST(SchedulerSources, DraftsThatAreRejectedTakeNoCrossBlockAway) {
  Fixture test(10, 10);
  Sequence& sequence = test.add(65);
  test.step();
  while (sequence.num_tokens() < 31) test.step();
  sequence.tokens.insert(sequence.tokens.end(), {5, 5, 5});
  sequence.num_draft_tokens = 3;
  test.step();
  EXPECT_EQ(sequence.num_computed, 31);
  EXPECT_EQ(sequence.block_tables[0].size(), 1u);
  EXPECT_EQ(sequence.block_tables[1].size(), 3u);
}

// Whatever arrives and goes: nothing is lost, and everything ends.
TEST(SchedulerSources, RandomTrafficEnds) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    Fixture test(4 + static_cast<int64_t>(random() % 8), 4 + static_cast<int64_t>(random() % 8), 8 + static_cast<int64_t>(random() % 60));
    std::vector<Sequence*> live;
    int64_t left = 12;
    for (int steps = 0; left > 0 || !live.empty(); ++steps) {
      ASSERT_LT(steps, 4000);
      if (left > 0 && random() % 3 == 0) live.push_back(&test.add(1 + static_cast<int64_t>(random() % 120), 1 + random() % 2)), --left;
      if (live.empty()) continue;
      test.step();
      std::erase_if(live, [&](Sequence* sequence) {
        if (sequence->num_tokens() < 100 && random() % 60 != 0) return false;
        test.scheduler.remove(*sequence);
        return true;
      });
    }
    EXPECT_EQ(test.allocator.num_used(0) + test.allocator.num_used(1), 0);
  }
}

}  // namespace
}  // namespace millrace
