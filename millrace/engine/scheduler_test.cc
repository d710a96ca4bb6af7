#include "millrace/engine/scheduler.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>

namespace millrace {
namespace {

// A scheduler with one group and sequences to feed it.
struct Fixture {
  BlockAllocator allocator;
  Scheduler scheduler;
  std::deque<Sequence> sequences;

  explicit Fixture(int64_t num_blocks, SchedulerOptions options = {.max_running_sequences = 8,
                                                                   .step_tokens_max = 128,
                                                                   .prefill_chunk_max = 64,
                                                                   .windows = {std::nullopt}})
      : allocator(std::vector<int64_t>(options.windows.size(), num_blocks)), scheduler(options, allocator) {}

  Sequence& add(std::size_t num_tokens, int32_t priority = 0) {
    Sequence& sequence = sequences.emplace_back();
    sequence.priority = priority;
    sequence.arrival = sequences.size();
    sequence.tokens.assign(num_tokens, static_cast<int32_t>(sequences.size()));  // nobody shares a prefix
    sequence.num_prompt_tokens = static_cast<int64_t>(num_tokens);
    scheduler.add(sequence);
    return sequence;
  }

  // One step; every sequence that wants a token gets one. Rows by sequence.
  std::map<const Sequence*, int64_t> step() {
    std::map<const Sequence*, int64_t> rows;
    std::vector<Sequence*> wanting;
    for (const Scheduler::Planned& planned : scheduler.plan_step()) {
      rows[planned.sequence] = planned.num_rows;
      if (planned.wants_token()) wanting.push_back(planned.sequence);
    }
    scheduler.commit_step();
    for (Sequence* sequence : wanting) sequence->tokens.push_back(1);
    EXPECT_EQ(allocator.check_integrity(), "");
    return rows;
  }
};

TEST(Scheduler, DecodesGoFirstAndPrefillsShareTheRest) {
  Fixture test(100);
  Sequence& decoding = test.add(10);
  test.step();
  Sequence& long_prompt = test.add(1000);
  Sequence& short_prompt = test.add(20);
  auto rows = test.step();
  EXPECT_EQ(test.scheduler.num_running(), 3);
  EXPECT_EQ(rows[&decoding], 1);
  EXPECT_EQ(rows[&short_prompt], 20);           // is not stuck behind the long one
  EXPECT_EQ(rows[&long_prompt], 128 - 1 - 20);  // which takes what is left
  rows = test.step();
  EXPECT_EQ(rows[&long_prompt], 128 - 2);
  EXPECT_EQ(short_prompt.num_tokens(), 22);
}

TEST(Scheduler, APromptAloneGetsTheWholeStep) {
  Fixture test(100);
  Sequence& prompt = test.add(300);
  EXPECT_EQ(test.step()[&prompt], 128);
  EXPECT_EQ(test.step()[&prompt], 128);
  EXPECT_EQ(test.step()[&prompt], 44);
  EXPECT_EQ(prompt.num_tokens(), 301);
  EXPECT_EQ(test.step()[&prompt], 1);
}

TEST(Scheduler, NobodyIsOvertakenInTheQueue) {
  Fixture test(10);
  Sequence& first = test.add(200);   // 7 of 10 blocks
  Sequence& second = test.add(190);  // 6: must wait
  Sequence& third = test.add(5);     // would fit, but is younger than the second
  test.step();
  EXPECT_EQ(first.state, SequenceState::kRunning);
  EXPECT_EQ(second.state, SequenceState::kWaiting);
  EXPECT_EQ(third.state, SequenceState::kWaiting);
  test.scheduler.remove(first);
  test.step();
  EXPECT_EQ(second.state, SequenceState::kRunning);
  EXPECT_EQ(third.state, SequenceState::kRunning);
}

TEST(Scheduler, PriorityGoesBeforeArrival) {
  Fixture test(100, {.max_running_sequences = 1, .step_tokens_max = 64, .prefill_chunk_max = 64, .windows = {std::nullopt}});
  test.add(5, 1);
  test.add(5, 1);
  Sequence& urgent = test.add(5, -1);
  test.step();
  EXPECT_EQ(urgent.state, SequenceState::kRunning);
  EXPECT_EQ(test.scheduler.num_waiting(), 2);
}

TEST(Scheduler, PreemptsTheYoungestAndBringsItBack) {
  Fixture test(4);
  Sequence& oldest = test.add(60);  // two blocks each: 4 of 4
  Sequence& youngest = test.add(60);
  test.step();
  EXPECT_EQ(test.scheduler.num_running(), 2);
  while (test.scheduler.counters().num_preemptions == 0) test.step();
  EXPECT_EQ(oldest.state, SequenceState::kRunning);
  EXPECT_EQ(youngest.state, SequenceState::kPreempted);
  EXPECT_EQ(youngest.num_computed, 0);
  const int64_t num_tokens = youngest.num_tokens();
  test.scheduler.remove(oldest);
  test.step();
  EXPECT_EQ(youngest.state, SequenceState::kRunning);
  EXPECT_EQ(youngest.num_computed, num_tokens);
  EXPECT_EQ(youngest.num_tokens(), num_tokens + 1);
}

TEST(Scheduler, RemovedSequencesLeaveNothing) {
  Fixture test(4);
  Sequence& running = test.add(60);
  Sequence& other = test.add(60);
  Sequence& waiting = test.add(60);
  while (test.scheduler.counters().num_preemptions == 0) test.step();
  test.scheduler.remove(waiting);
  test.scheduler.remove(other);  // preempted
  test.scheduler.remove(running);
  EXPECT_EQ(test.allocator.num_used(0), 0);
  EXPECT_EQ(test.scheduler.num_running() + test.scheduler.num_waiting(), 0);
  EXPECT_TRUE(test.step().empty());
}

TEST(Scheduler, WindowsReleaseWhatTheyPass) {
  Fixture test(8, {.max_running_sequences = 2, .step_tokens_max = 32, .prefill_chunk_max = 32, .windows = {64}});
  Sequence& sequence = test.add(2000);  // 63 blocks, were it not for the window
  sequence.shares_prefix = false;
  for (int i = 0; i < 100; ++i) {
    test.step();
    EXPECT_LE(test.allocator.num_used(0), Scheduler::window_blocks(64, 32));
    const int64_t first_readable = std::max<int64_t>(0, sequence.num_computed - 64) / kKvBlockTokens;
    for (int64_t block = 0; block < static_cast<int64_t>(sequence.block_tables[0].size()); ++block) {
      EXPECT_EQ(sequence.block_tables[0][block] < 0, block < first_readable);
    }
  }
  EXPECT_GT(sequence.num_tokens(), 2000);
}

TEST(Scheduler, AWindowedGroupNeedsOnlyItsWindowForAHit) {
  // Group 0 sees everything, group 1 two blocks back. The windowed group is too small to keep the prompt's first blocks.
  BlockAllocator allocator(std::vector<int64_t>{20, 6});
  Scheduler scheduler({.max_running_sequences = 2, .step_tokens_max = 32, .prefill_chunk_max = 32, .windows = {std::nullopt, 64}},
                      allocator);
  std::vector<Sequence> sequences(2);
  for (int32_t i = 0; i < 2; ++i) {
    sequences[i].arrival = static_cast<uint64_t>(i);
    sequences[i].tokens.assign(321, 7);
    sequences[i].num_prompt_tokens = 321;
  }
  scheduler.add(sequences[0]);
  for (int i = 0; i < 11; ++i) {
    scheduler.plan_step();
    scheduler.commit_step();
  }
  scheduler.remove(sequences[0]);
  scheduler.add(sequences[1]);
  scheduler.plan_step();
  EXPECT_EQ(sequences[1].num_cached_tokens, 320);
  EXPECT_EQ(sequences[1].block_tables[1][7], -1);
  EXPECT_GE(sequences[1].block_tables[1][8], 0);
  EXPECT_EQ(allocator.num_used(0), 11);
  EXPECT_EQ(allocator.num_used(1), 3);
  EXPECT_EQ(allocator.check_integrity(), "");
}

}  // namespace
}  // namespace millrace
