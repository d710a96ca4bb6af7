#include <gtest/gtest.h>

#include <array>
#include <map>
#include <memory>
#include <random>
#include <utility>

#include "millrace/engine/fake_executor.h"
#include "millrace/engine/scheduler.h"
#include "millrace/engine/simulation_seeds.h"

// The server's own scheduler, allocator and sequences under random events, with a chain of hashes in the network's place
// (docs/design.md D7). A seed is a run.
namespace millrace {
namespace {

constexpr int64_t kEvents = 1000;  // of a run, besides the steps that end it

// A sequence with what its KV must hold: truth[p] is a hash of tokens 0..p, and where it matters of which were generated.
struct SimulatedSequence : Sequence {
  std::vector<uint64_t> truth;
  int64_t max_tokens = 1;
  int64_t num_taken = 0;  // of the last step that gave it tokens
};

// What the disk tier is to the scheduler: keeps copies of some blocks, loses some at any time, and fails to read some.
class ForgetfulStore final : public BlockStore {
 public:
  ForgetfulStore(std::mt19937_64& random, std::vector<std::vector<uint64_t>>& kv) : random_(random), kv_(kv) {}

  void offer(int64_t group, const BlockDigest& digest, int32_t block_id) override {
    if (random_() % 8 == 0) return;
    std::copy_n(block(group, block_id), kKvBlockTokens, blocks_[{group, digest.bytes}].begin());
  }
  bool contains(int64_t group, const BlockDigest& digest) override {
    if (random_() % 256 == 0) blocks_.erase({group, digest.bytes});
    return blocks_.contains({group, digest.bytes});
  }
  bool load(int64_t group, const BlockDigest& digest, int32_t block_id) override {
    const auto found = blocks_.find({group, digest.bytes});
    if (found == blocks_.end() || random_() % 16 == 0) {
      if (found != blocks_.end()) blocks_.erase(found);
      std::fill_n(block(group, block_id), kKvBlockTokens, random_());
      return false;
    }
    std::copy_n(found->second.begin(), kKvBlockTokens, block(group, block_id));
    ++num_loaded;
    return true;
  }
  void touch(int64_t, const BlockDigest&) override {}
  void forget(int64_t group, const BlockDigest& digest) override { blocks_.erase({group, digest.bytes}); }

  int64_t num_loaded = 0;

 private:
  uint64_t* block(int64_t group, int32_t block_id) {
    return kv_[static_cast<std::size_t>(group)].data() + static_cast<std::size_t>(block_id) * kKvBlockTokens;
  }

  std::mt19937_64& random_;
  std::vector<std::vector<uint64_t>>& kv_;
  std::map<std::pair<int64_t, std::array<uint8_t, 32>>, std::array<uint64_t, kKvBlockTokens>> blocks_;
};

class Simulation {
 public:
  explicit Simulation(uint64_t seed)
      : random_(seed),
        options_(make_options()),
        allocator_(make_pool()),
        store_(random_, kv_),
        scheduler_(options_, allocator_, pick(0, 1) == 0 ? &store_ : nullptr) {
    for (std::size_t g = 0; g < options_.windows.size(); ++g) {
      kv_.emplace_back(static_cast<std::size_t>(allocator_.num_blocks(static_cast<int64_t>(g)) * kKvBlockTokens), 0);
    }
    for (auto& prefix : prefixes_) {
      prefix.resize(pick(1, kMaxPrompt));
      for (int32_t& token : prefix) token = static_cast<int32_t>(pick(0, 5));
    }
  }

  // Returns the number of events; stops at the first failed expectation.
  int64_t run(int64_t num_events) {
    for (int64_t i = 0; i < num_events && !testing::Test::HasFatalFailure(); ++i) {
      const int64_t kind = pick(0, 99);
      if (kind < 12 && sequences_.size() < 30) {
        add();
      } else if (kind < 16 && !sequences_.empty()) {
        end(static_cast<std::size_t>(pick(0, static_cast<int64_t>(sequences_.size()) - 1)), pick(0, 9) == 0);
      } else if (kind < 20 && sequences_.size() < 30) {
        fork();
      } else {
        step();
      }
      ++num_events_;
      if (i % 16 == 0) check_blocks();
    }
    finish();
    return num_events_;
  }

  int64_t num_preemptions() const { return scheduler_.counters().num_preemptions; }
  int64_t num_hits() const { return scheduler_.counters().prefix_cache_hits; }
  int64_t num_completed() const { return num_completed_; }
  int64_t num_drafted() const { return num_drafted_; }
  int64_t num_accepted() const { return num_accepted_; }
  int64_t num_copies() const { return num_copies_; }
  int64_t num_restored() const { return store_.num_loaded; }

 private:
  static constexpr int64_t kMaxPrompt = 180, kMaxTokens = 60;

  int64_t pick(int64_t low, int64_t high) { return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1)); }

  SchedulerOptions make_options() {
    SchedulerOptions options;
    options.max_running_sequences = pick(1, 12);
    options.step_tokens_max = options.max_running_sequences + pick(0, 80);
    options.prefill_chunk_max = pick(1, 64);
    options.windows = {std::nullopt};
    if (pick(0, 1) == 0) options.windows.push_back(pick(1, 100));
    if (pick(0, 3) == 0) options.windows[0] = pick(1, 50);
    options.prompt_differs = pick(0, 1) == 0;
    options.scored_rows_max = pick(1, 40);
    options.restored_blocks_max = pick(1, 4);
    for (int64_t client = pick(0, 2); client > 0; --client) options.client_weights.push_back(static_cast<double>(pick(1, 8)) / 4);
    return options;
  }

  std::vector<int64_t> make_pool() {
    std::vector<int64_t> num_blocks;
    for (const auto& window : options_.windows) {
      const int64_t least = window ? Scheduler::window_blocks(*window, 1) : (kMaxPrompt + kMaxTokens) / kKvBlockTokens + 1;
      num_blocks.push_back(least + pick(0, 3) * pick(0, 12));
    }
    return num_blocks;
  }

  void add() {
    auto sequence = std::make_unique<SimulatedSequence>();
    sequence->arrival = ++num_added_;
    sequence->priority = pick(0, 9) == 0 ? static_cast<int32_t>(pick(-1, 1)) : 0;
    // Few prefixes, cut anywhere and sometimes continued: hits of every length.
    const std::vector<int32_t>& prefix = prefixes_[pick(0, 2)];
    sequence->tokens.assign(prefix.begin(), prefix.begin() + pick(1, static_cast<int64_t>(prefix.size())));
    while (pick(0, 3) != 0 && sequence->num_tokens() < kMaxPrompt) sequence->tokens.push_back(static_cast<int32_t>(pick(0, 5)));
    sequence->num_prompt_tokens = sequence->num_tokens();
    sequence->max_tokens = pick(1, kMaxTokens);
    sequence->shares_prefix = pick(0, 7) != 0;
    sequence->client = static_cast<int32_t>(pick(0, 2));
    if (pick(0, 5) == 0) sequence->score_end = sequence->num_prompt_tokens - 1;
    for (const int32_t token : sequence->tokens) extend_truth(*sequence, token, true);
    scheduler_.add(*sequence);
    sequences_.push_back(std::move(sequence));
  }

  // Others go on from a running sequence, which ends or goes on itself.
  void fork() {
    if (scheduler_.num_running() == 0) return;
    auto& parent = static_cast<SimulatedSequence&>(*scheduler_.running()[static_cast<std::size_t>(pick(0, scheduler_.num_running() - 1))]);
    const int64_t left = parent.max_tokens - (parent.num_computed - parent.num_prompt_tokens);
    if (parent.num_computed < parent.num_prompt_tokens || parent.num_uncomputed() != 1 || left < 2 || parent.score_begin < parent.score_end)
      return;
    Scheduler::ForkPoint point = scheduler_.fork_point(parent);
    for (int64_t children = pick(1, 3); children > 0; --children) {
      auto child = std::make_unique<SimulatedSequence>();
      child->arrival = ++num_added_;
      child->client = parent.client;
      child->tokens.assign(parent.tokens.begin(), parent.tokens.begin() + parent.num_computed);
      child->truth.assign(parent.truth.begin(), parent.truth.begin() + parent.num_computed);
      child->num_prompt_tokens = parent.num_prompt_tokens;
      child->max_tokens = parent.max_tokens;
      child->prefix_root = parent.prefix_root;
      child->shares_prefix = parent.shares_prefix;
      child->was_admitted = true;
      for (int64_t more = pick(1, std::min<int64_t>(left - 1, 3)); more > 0; --more) {
        child->tokens.push_back(static_cast<int32_t>(pick(0, 5)));
        extend_truth(*child, child->tokens.back(), false);
      }
      scheduler_.add_forked(*child, point);
      sequences_.push_back(std::move(child));
    }
    if (pick(0, 2) != 0) {
      end(static_cast<std::size_t>(std::find_if(sequences_.begin(), sequences_.end(), [&](const auto& s) { return s.get() == &parent; }) -
                                   sequences_.begin()),
          false);
    }
    scheduler_.release(point);
  }

  void extend_truth(SimulatedSequence& sequence, int32_t token, bool of_prompt) {
    const uint64_t row = static_cast<uint64_t>(token) + (options_.prompt_differs && !of_prompt ? 1000 : 0);
    sequence.truth.push_back(FakeNetwork::mix(sequence.truth.empty() ? 0 : sequence.truth.back(), row));
  }
  static int32_t sampled_after(uint64_t truth) { return static_cast<int32_t>(truth % 6); }

  // Drafts that are right for a while: `truth` runs ahead with them, wrong ones included, as the KV cache does.
  void propose_drafts() {
    for (Sequence* running : scheduler_.running()) {
      auto& sequence = static_cast<SimulatedSequence&>(*running);
      const int64_t left = sequence.max_tokens - (sequence.num_tokens() - sequence.num_prompt_tokens) - 1;
      if (sequence.num_uncomputed() != 1 || left <= 0 || pick(0, 1) == 0) continue;
      const int64_t count = pick(1, std::min<int64_t>(left, 40));
      for (int64_t i = 0; i < count; ++i) {
        const int32_t right = sampled_after(sequence.truth.back());
        const int32_t token = pick(0, 15) == 0 ? (right + 1) % 6 : right;
        sequence.tokens.push_back(token);
        extend_truth(sequence, token, false);
      }
      sequence.num_draft_tokens = count;
    }
  }

  void end(std::size_t index, bool failed) {
    scheduler_.remove(*sequences_[index], failed);
    std::swap(sequences_[index], sequences_.back());
    sequences_.pop_back();
  }

  uint64_t& slot(const Sequence& sequence, std::size_t group, int64_t position) {
    const int32_t block = sequence.block_tables[group][static_cast<std::size_t>(position / kKvBlockTokens)];
    MR_CHECK(block >= 0, "a row reads a block that its window has passed");
    return kv_[group][static_cast<std::size_t>(block * kKvBlockTokens + position % kKvBlockTokens)];
  }

  void step() {
    if (drafts_) propose_drafts();
    const int64_t prefill_rows_max = pick(0, 1) == 0 ? pick(1, 30) : std::numeric_limits<int64_t>::max();
    const auto planned = scheduler_.plan_step(prefill_rows_max);
    for (const StepPlan::BlockCopy& copy : scheduler_.block_copies()) {
      std::vector<uint64_t>& kv = kv_[static_cast<std::size_t>(copy.group)];
      std::copy_n(kv.begin() + copy.from * kKvBlockTokens, kKvBlockTokens, kv.begin() + copy.to * kKvBlockTokens);
      ++num_copies_;
    }
    int64_t num_rows = 0, num_scored = 0, num_prefill_rows = 0;
    wanting_.clear();
    for (const Scheduler::Planned& rows : planned) {
      auto& sequence = static_cast<SimulatedSequence&>(*rows.sequence);
      num_rows += rows.num_rows;
      if (rows.sequence->num_uncomputed() > 1) num_prefill_rows += rows.num_rows;
      // Every position is scored once, also of those that are preempted and computed again.
      const int64_t scored = sequence.num_scored(rows.num_rows);
      if (sequence.score_begin < sequence.score_end) {
        ASSERT_LE(sequence.num_computed, sequence.score_begin) << "a position is skipped";
      }
      num_scored += scored;
      sequence.score_begin += scored;
      for (std::size_t g = 0; g < kv_.size(); ++g) {
        for (int64_t p = sequence.num_computed; p < sequence.num_computed + rows.num_rows; ++p) {
          const int64_t first = options_.windows[g] ? std::max<int64_t>(0, p - *options_.windows[g]) : 0;
          // A row reads its oldest, its newest and some other position, and finds there what its own tokens make.
          for (const int64_t read : {first, std::max(first, p - 1), p > first ? pick(first, p - 1) : first}) {
            if (read >= p) continue;
            ASSERT_EQ(slot(sequence, g, read), sequence.truth[static_cast<std::size_t>(read)]);
          }
          slot(sequence, g, p) = sequence.truth[static_cast<std::size_t>(p)];
        }
      }
      if (!rows.wants_token()) continue;
      wanting_.push_back(&sequence);
      ASSERT_EQ(sequence.num_computed + rows.num_rows, sequence.num_tokens() + sequence.num_draft_tokens);
      const int64_t num_tokens = sequence.num_tokens();
      int64_t& accepted = sequence.num_accepted_tokens;
      while (accepted < sequence.num_draft_tokens &&
             sequence.tokens[static_cast<std::size_t>(num_tokens + accepted)] ==
                 sampled_after(sequence.truth[static_cast<std::size_t>(num_tokens + accepted - 1)])) {
        ++accepted;
      }
      num_drafted_ += sequence.num_draft_tokens;
      num_accepted_ += accepted;
      sequence.num_taken = accepted + 1;
    }
    ASSERT_LE(num_rows, options_.step_tokens_max);
    ASSERT_LE(num_scored, options_.scored_rows_max);
    ASSERT_LE(num_prefill_rows, prefill_rows_max);
    ASSERT_EQ(planned.empty(), sequences_.empty()) << "work, but nothing planned";
    scheduler_.commit_step();
    for (const auto& sequence : sequences_) {
      ASSERT_EQ(sequence->num_draft_tokens, 0);
      sequence->truth.resize(static_cast<std::size_t>(sequence->num_tokens()));
    }
    for (SimulatedSequence* sequence : wanting_) {
      for (int64_t i = 0; i < sequence->num_taken; ++i) {
        const int32_t token = sampled_after(sequence->truth.back());
        sequence->tokens.push_back(token);
        extend_truth(*sequence, token, false);
      }
      ASSERT_EQ(sequence->num_uncomputed(), 1);
      for (std::size_t g = 0; g < kv_.size(); ++g)
        ASSERT_EQ(static_cast<int64_t>(sequence->block_tables[g].size()), (sequence->num_computed + kKvBlockTokens - 1) / kKvBlockTokens);
    }
    for (std::size_t i = sequences_.size(); i-- > 0;) {
      if (sequences_[i]->num_tokens() - sequences_[i]->num_prompt_tokens < sequences_[i]->max_tokens) continue;
      ASSERT_GE(sequences_[i]->score_begin, sequences_[i]->score_end) << "a position was not scored";
      end(i, false);
      ++num_completed_;
    }
  }

  // Every reference that the allocator counts is an entry of some table, and the other way round.
  void check_blocks() {
    ASSERT_EQ(allocator_.check_integrity(), "");
    for (std::size_t g = 0; g < kv_.size(); ++g) {
      std::vector<int64_t> references(static_cast<std::size_t>(allocator_.num_blocks(static_cast<int64_t>(g))), 0);
      for (const auto& sequence : sequences_) {
        for (const int32_t block : sequence->block_tables[g]) {
          if (block >= 0) ++references[static_cast<std::size_t>(block)];
        }
        if (!sequence->forked_blocks.empty()) ++references[static_cast<std::size_t>(sequence->forked_blocks[g])];
      }
      for (std::size_t block = 0; block < references.size(); ++block) {
        ASSERT_EQ(allocator_.num_references(static_cast<int64_t>(g), static_cast<int32_t>(block)), references[block]) << "block " << block;
      }
    }
  }

  // No starvation: without new arrivals everything ends, in at most as many steps as there are rows to compute one by one, the
  // recomputation after preemptions included generously.
  void finish() {
    int64_t steps_left = 10;
    for (const auto& sequence : sequences_) steps_left += 10 * (sequence->num_prompt_tokens + sequence->max_tokens);
    while (!sequences_.empty() && !testing::Test::HasFatalFailure()) {
      ASSERT_GT(steps_left--, 0) << "starvation";
      step();
      ++num_events_;
    }
    check_blocks();
    for (int64_t g = 0; g < allocator_.num_groups(); ++g) ASSERT_EQ(allocator_.num_used(g), 0);
  }

  std::mt19937_64 random_;
  SchedulerOptions options_;
  BlockAllocator allocator_;
  std::vector<std::vector<uint64_t>> kv_;  // [num_groups][num_blocks * block size]
  ForgetfulStore store_;
  Scheduler scheduler_;
  std::vector<std::unique_ptr<SimulatedSequence>> sequences_;
  std::vector<SimulatedSequence*> wanting_;
  std::array<std::vector<int32_t>, 3> prefixes_;
  uint64_t num_added_ = 0;
  bool drafts_ = pick(0, 1) == 0;
  int64_t num_events_ = 0, num_completed_ = 0, num_drafted_ = 0, num_accepted_ = 0, num_copies_ = 0;
};

struct Totals {
  int64_t events = 0, preemptions = 0, hits = 0, completed = 0, drafted = 0, accepted = 0, copies = 0, restored = 0;
  void add(const Totals& other) {
    events += other.events, preemptions += other.preemptions, hits += other.hits, completed += other.completed;
    drafted += other.drafted, accepted += other.accepted, copies += other.copies;
    restored += other.restored;
  }
};

TEST(SchedulerSimulation, HoldsItsInvariantsForEverySeed) {
  const SimulationSeeds seeds = simulation_seeds(100000, 1000);
  const Totals totals = simulate<Totals>(seeds, [](uint64_t seed) {
    Simulation simulation(seed);
    Totals of_run;
    of_run.events = simulation.run(kEvents);
    of_run.preemptions = simulation.num_preemptions(), of_run.hits = simulation.num_hits(), of_run.completed = simulation.num_completed();
    of_run.drafted = simulation.num_drafted(), of_run.accepted = simulation.num_accepted(), of_run.copies = simulation.num_copies();
    of_run.restored = simulation.num_restored();
    return of_run;
  });
  fmt::print(
      "{} seeds, {} events, {} preemptions, {} cached tokens, {} sequences completed, {} of {} draft tokens accepted, {} blocks restored\n",
      seeds.count, totals.events, totals.preemptions, totals.hits, totals.completed, totals.accepted, totals.drafted, totals.restored);
  if (HasFatalFailure() || seeds.count < 100) return;
  // The runs must have been through what they are meant to test.
  EXPECT_GE(totals.events, seeds.count * kEvents);
  EXPECT_GT(totals.preemptions, seeds.count / 10);
  EXPECT_GT(totals.hits, seeds.count * 32);
  EXPECT_GT(totals.completed, seeds.count);
  EXPECT_GT(totals.copies, seeds.count);
  EXPECT_GT(totals.restored, seeds.count);
  EXPECT_GT(totals.accepted, seeds.count * 10);
  EXPECT_GT(totals.drafted - totals.accepted, seeds.count * 10);
}

}  // namespace
}  // namespace millrace
