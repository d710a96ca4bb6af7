#include "millrace/engine/scheduler.h"

#include <algorithm>

#include "millrace/base/check.h"

namespace millrace {
namespace {

// What a token counts for its client: as in the paper, where one that is made costs twice one that is read.
constexpr int64_t kPromptTokenCost = 1, kCompletionTokenCost = 2;

int64_t num_blocks_of(int64_t num_tokens) { return (num_tokens + kKvBlockTokens - 1) / kKvBlockTokens; }

}  // namespace

int64_t Scheduler::window_blocks(int64_t window, int64_t rows) {
  // The span from the oldest readable position to the last row starts and ends anywhere in a block.
  return num_blocks_of(window + rows) + 1;
}

Scheduler::Scheduler(SchedulerOptions options, BlockAllocator& allocator, BlockStore* store)
    : options_(std::move(options)), allocator_(allocator), store_(store) {
  MR_CHECK(options_.restored_blocks_max >= 1, "a stored prefix comes back some day");
  MR_CHECK(options_.max_running_sequences >= 1 && options_.max_running_sequences <= options_.step_tokens_max &&
               options_.prefill_chunk_max >= 1 && options_.scored_rows_max >= 1,
           "every running sequence must be able to decode in one step");
  MR_CHECK(static_cast<int64_t>(options_.windows.size()) == allocator.num_groups(), "one window, or none, for each group");
}

void Scheduler::add(Sequence& sequence) {
  MR_CHECK(sequence.state == SequenceState::kWaiting && sequence.num_tokens() > 0 && sequence.num_computed == 0 &&
               sequence.num_draft_tokens == 0,
           "a new sequence");
  sequence.block_tables.resize(static_cast<std::size_t>(allocator_.num_groups()));
  sequence.num_passed.resize(static_cast<std::size_t>(allocator_.num_groups()), 0);
  enter_queue(sequence);
}

Scheduler::ForkPoint Scheduler::fork_point(const Sequence& running) {
  MR_CHECK(running.state == SequenceState::kRunning, "only a running sequence has blocks");
  ForkPoint point;
  point.num_tokens = running.num_computed;
  if (running.num_computed % kKvBlockTokens == 0 || !running.shares_prefix) return point;
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
    point.blocks.push_back(running.block_tables[g].back());
    allocator_.add_reference(g, point.blocks.back());
  }
  return point;
}

void Scheduler::release(ForkPoint& point) {
  for (std::size_t g = 0; g < point.blocks.size(); ++g) allocator_.release(static_cast<int64_t>(g), point.blocks[g]);
  point.blocks.clear();
}

void Scheduler::add_forked(Sequence& sequence, const ForkPoint& point) {
  MR_CHECK(point.num_tokens < sequence.num_tokens(), "a forked sequence has a token to compute");
  add(sequence);
  if (point.blocks.empty()) return;
  sequence.forked_blocks = point.blocks;
  sequence.num_forked_tokens = point.num_tokens;
  for (std::size_t g = 0; g < point.blocks.size(); ++g) allocator_.add_reference(static_cast<int64_t>(g), point.blocks[g]);
  forked_.push_back(&sequence);
}

// Behind the prefix it has just taken, where that reaches so far.
void Scheduler::take_forked_blocks(Sequence& sequence) {
  if (sequence.forked_blocks.empty() || sequence.num_computed != sequence.num_forked_tokens / kKvBlockTokens * kKvBlockTokens) return;
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
    if (allocator_.num_references(g, sequence.forked_blocks[g]) > 1 && allocator_.num_available(g) == 0) return;
  }
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
    int32_t& block = sequence.forked_blocks[g];
    if (allocator_.num_references(g, block) > 1) {
      const int32_t from = block;
      block = *allocator_.allocate(g);
      block_copies_.push_back({static_cast<int32_t>(g), from, block});  // keeps the reference
    }
    sequence.block_tables[g].push_back(block);
  }
  sequence.num_computed = sequence.num_forked_tokens;
  sequence.forked_blocks.clear();
}

void Scheduler::drop_forked_blocks(Sequence& sequence) {
  for (std::size_t g = 0; g < sequence.forked_blocks.size(); ++g) allocator_.release(static_cast<int64_t>(g), sequence.forked_blocks[g]);
  sequence.forked_blocks.clear();
}

bool Scheduler::drop_all_forked_blocks(const Sequence* except) {
  bool any = false;
  for (Sequence* sequence : forked_) {
    if (sequence == except || sequence->forked_blocks.empty()) continue;
    drop_forked_blocks(*sequence);
    any = true;
  }
  std::erase_if(forked_, [&](const Sequence* sequence) { return sequence != except; });
  return any;
}

void Scheduler::remove(Sequence& sequence, bool forget) {
  if (!sequence.forked_blocks.empty()) {
    drop_forked_blocks(sequence);
    std::erase(forked_, &sequence);
  }
  if (sequence.state == SequenceState::kRunning) {
    release_blocks(sequence, forget);
    running_.erase(std::find(running_.begin(), running_.end(), &sequence));
  } else {
    MR_CHECK(leave_queue(sequence), "the scheduler does not know this sequence");
  }
  sequence.state = SequenceState::kFinished;
}

Scheduler::Client& Scheduler::client_of(const Sequence& sequence) {
  const auto [found, is_new] = clients_.try_emplace(sequence.client);
  const auto index = static_cast<std::size_t>(std::max(0, sequence.client));
  if (is_new && index < options_.client_weights.size()) found->second.weight = options_.client_weights[index];
  return found->second;
}

double Scheduler::service(int32_t client) const {
  const auto found = clients_.find(client);
  return found == clients_.end() ? 0 : found->second.service;
}

void Scheduler::enter_queue(Sequence& sequence) {
  ++num_waiting_;
  Client& client = client_of(sequence);
  if (sequence.was_admitted || sequence.index > 0) {
    MR_CHECK(returning_.insert(&sequence).second, "two sequences with one place in the order");
    return;
  }
  if (client.queue.empty()) {
    // One who asked for nothing has no claim to what the others were given meanwhile.
    std::optional<double> least;
    for (const auto& [id, other] : clients_) {
      if (!other.queue.empty()) least = std::min(least.value_or(other.service), other.service);
    }
    client.service = std::max(client.service, least ? *least : service(last_admitted_client_));
  }
  MR_CHECK(client.queue.insert(&sequence).second, "two sequences with one place in the order");
}

bool Scheduler::leave_queue(Sequence& sequence) {
  const bool left = returning_.erase(&sequence) == 1 || client_of(sequence).queue.erase(&sequence) == 1;
  num_waiting_ -= left ? 1 : 0;
  return left;
}

// Whose turn it is; null when nobody waits.
Sequence* Scheduler::first_waiting() {
  Sequence* first = returning_.empty() ? nullptr : *returning_.begin();
  const Client* client_of_first = nullptr;  // null: it returns, and goes before its equals
  for (const auto& [id, client] : clients_) {
    if (client.queue.empty()) continue;
    Sequence* sequence = *client.queue.begin();
    const bool before = first == nullptr || sequence->priority < first->priority ||
                        (sequence->priority == first->priority && client_of_first != nullptr &&
                         std::tuple(client.service, sequence->order()) < std::tuple(client_of_first->service, first->order()));
    if (before) first = sequence, client_of_first = &client;
  }
  return first;
}

void Scheduler::charge(const Sequence& sequence, int64_t cost) {
  Client& client = client_of(sequence);
  client.service += static_cast<double>(cost) / client.weight;
}

std::span<const Scheduler::Planned> Scheduler::plan_step(int64_t prefill_rows_max) {
  MR_CHECK(prefill_rows_max >= 1, "a prompt makes progress");
  planned_.clear();
  block_copies_.clear();
  newly_admitted_.clear();
  budget_ = options_.step_tokens_max;
  scored_left_ = options_.scored_rows_max;
  restores_left_ = options_.restored_blocks_max;
  preempted_in_step_ = false;
  plan_decodes();
  reserve_drafts();
  budget_ = std::min(budget_, prefill_rows_max);
  // What was just preempted must not come back in the same step, and no one may overtake a prefill that waits for blocks.
  if (plan_prefills() && !preempted_in_step_) admit_waiting();
  extend_prefills();
  extend_drafts();
  // Who was not admitted does not keep blocks from those who were.
  drop_all_forked_blocks();
  MR_CHECK(!planned_.empty() || (running_.empty() && num_waiting_ == 0), "work but no progress");
  return planned_;
}

void Scheduler::commit_step() {
  for (const StepPlan::BlockCopy& copy : block_copies_) allocator_.release(copy.group, copy.from);
  block_copies_.clear();
  for (const Planned& planned : planned_) {
    Sequence& sequence = *planned.sequence;
    MR_CHECK(sequence.num_accepted_tokens <= sequence.num_draft_tokens, "accepted what was not drafted");
    const int64_t num_rejected = sequence.num_draft_tokens - sequence.num_accepted_tokens;
    if (planned.wants_token()) charge(sequence, kCompletionTokenCost * (1 + sequence.num_accepted_tokens));
    sequence.num_computed += planned.num_rows - num_rejected;
    sequence.num_planned_rows = 0;
    if (num_rejected > 0) shrink(sequence);
    const int64_t num_full = sequence.num_computed / kKvBlockTokens;
    if (sequence.shares_prefix && num_full > sequence.num_keyed_blocks) {
      extend_digests(sequence, num_full);
      for (int64_t block = sequence.num_keyed_blocks; block < num_full; ++block) {
        for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
          const int32_t block_id = sequence.block_tables[g][block];
          if (allocator_.insert(g, block_id, sequence.digests[block]) && store_ != nullptr)
            store_->offer(g, sequence.digests[block], block_id);
        }
      }
      sequence.num_keyed_blocks = num_full;
    }
    for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
      const int64_t first = first_readable_block(g, sequence.num_computed);
      for (int64_t& passed = sequence.num_passed[g]; passed < first; ++passed) {
        allocator_.release(g, sequence.block_tables[g][passed]);
        sequence.block_tables[g][passed] = -1;
      }
    }
    sequence.num_accepted_tokens = 0;
    sequence.keep_draft_tokens(0);
  }
  planned_.clear();
}

void Scheduler::plan(Sequence& sequence, int64_t num_rows) {
  grow(sequence, num_rows);
  scored_left_ -= sequence.num_scored(num_rows);
  sequence.num_planned_rows = num_rows;
  planned_.push_back({&sequence, num_rows});
  budget_ -= num_rows;
}

void Scheduler::plan_decodes() {
  // Victims come from the end, so what lies before `i` stays.
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.num_uncomputed() != 1) {
      MR_CHECK(sequence.num_draft_tokens == 0, "a draft of a sequence that does not decode");
      continue;
    }
    while (sequence.state == SequenceState::kRunning && rows_that_fit(sequence, 1) == 0) {
      if (!drop_all_forked_blocks()) preempt_youngest();
    }
    if (sequence.state == SequenceState::kRunning) plan(sequence, 1);
  }
}

// Rows for drafts, before prefills take the rest; which of them find blocks is seen when everybody else has theirs.
void Scheduler::reserve_drafts() {
  int64_t left = budget_ / 2;
  for (const Planned& planned : planned_) {
    Sequence& sequence = *planned.sequence;
    if (sequence.num_draft_tokens == 0) continue;
    sequence.keep_draft_tokens(std::min(sequence.num_draft_tokens, left));
    left -= sequence.num_draft_tokens;
    budget_ -= sequence.num_draft_tokens;
  }
}

void Scheduler::extend_drafts() {
  for (Planned& planned : planned_) {
    Sequence& sequence = *planned.sequence;
    if (sequence.num_draft_tokens == 0) continue;
    planned.num_rows = rows_that_fit(sequence, 1 + sequence.num_draft_tokens);
    sequence.keep_draft_tokens(planned.num_rows - 1);
    sequence.num_planned_rows = planned.num_rows;
    grow(sequence, planned.num_rows);
  }
}

bool Scheduler::plan_prefills() {
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.num_planned_rows > 0) continue;
    if (budget_ == 0) return false;
    const int64_t wanted =
        rows_to_score(sequence, std::min({sequence.num_uncomputed(), options_.prefill_chunk_max, budget_}), scored_left_);
    if (wanted == 0) continue;  // older prompts have what the step scores
    int64_t fitting = rows_that_fit(sequence, wanted);
    if (fitting == 0 && drop_all_forked_blocks()) fitting = rows_that_fit(sequence, wanted);
    // A younger prefill gives way. A younger decode that is already planned does not: it ends some day, and nobody is admitted before.
    while (fitting == 0 && running_.back() != &sequence && running_.back()->num_planned_rows == 0) {
      preempt_youngest();
      fitting = rows_that_fit(sequence, wanted);
    }
    if (fitting == 0) return false;
    plan(sequence, fitting);
  }
  return true;
}

void Scheduler::admit_waiting() {
  while (num_waiting_ > 0 && budget_ > 0 && num_running() < options_.max_running_sequences) {
    Sequence& sequence = *first_waiting();
    if (sequence.score_begin < sequence.score_end && scored_left_ == 0) return;
    if (!try_admit(sequence)) return;
    const int64_t wanted =
        rows_to_score(sequence, std::min({sequence.num_uncomputed(), options_.prefill_chunk_max, budget_}), scored_left_);
    const int64_t fitting = rows_that_fit(sequence, wanted);
    MR_CHECK(fitting > 0, "an admitted sequence has room for a row");
    plan(sequence, fitting);
    budget_ = std::max<int64_t>(0, budget_ - sequence.num_source_tokens);
  }
}

void Scheduler::extend_prefills() {
  // In order: a newly admitted sequence may be older than a running one.
  for (Sequence* sequence : running_) {
    if (budget_ == 0) return;
    const int64_t rows = sequence->num_planned_rows;
    if (rows == 0 || rows == sequence->num_uncomputed()) continue;
    const int64_t num_scored = sequence->num_scored(rows);
    const int64_t extended =
        rows_that_fit(*sequence, rows_to_score(*sequence, std::min(sequence->num_uncomputed(), rows + budget_), num_scored + scored_left_));
    if (extended <= rows) continue;
    grow(*sequence, extended);
    scored_left_ -= sequence->num_scored(extended) - num_scored;
    budget_ -= extended - rows;
    sequence->num_planned_rows = extended;
    std::find_if(planned_.begin(), planned_.end(), [&](const Planned& planned) { return planned.sequence == sequence; })->num_rows =
        extended;
  }
}

int64_t Scheduler::first_readable_block(int64_t group, int64_t num_computed) const {
  const std::optional<int64_t> window = options_.windows[group];
  // The next row is at position num_computed and reads nothing before num_computed - window.
  return window ? std::max<int64_t>(0, (num_computed - *window) / kKvBlockTokens) : 0;
}

int64_t Scheduler::blocks_for(const Sequence& sequence, int64_t group, int64_t num_tokens) const {
  if (is_cross(group)) return num_blocks_of(sequence.num_source_tokens);
  const int64_t all = num_blocks_of(num_tokens);
  const std::optional<int64_t> window = options_.windows[group];
  return window ? std::min(all, window_blocks(*window, std::min(num_tokens, options_.prefill_chunk_max))) : all;
}

// As many of the next rows as have at most `num_scored_max` scored ones among them.
int64_t Scheduler::rows_to_score(const Sequence& sequence, int64_t num_rows, int64_t num_scored_max) const {
  if (sequence.num_scored(num_rows) <= num_scored_max) return num_rows;
  return std::max(sequence.num_computed, sequence.score_begin) - sequence.num_computed + num_scored_max;
}

int64_t Scheduler::rows_that_fit(const Sequence& sequence, int64_t num_rows) const {
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
    const int64_t reachable = static_cast<int64_t>(sequence.block_tables[g].size()) + allocator_.num_available(g);
    if (is_cross(g)) {
      if (reachable < num_blocks_of(sequence.num_source_tokens)) return 0;
      continue;
    }
    num_rows = std::min(num_rows, reachable * kKvBlockTokens - sequence.num_computed);
  }
  return num_rows;
}

void Scheduler::grow(Sequence& sequence, int64_t num_rows) {
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
    const int64_t num_tokens = is_cross(g) ? sequence.num_source_tokens : sequence.num_computed + num_rows;
    std::vector<int32_t>& table = sequence.block_tables[g];
    while (static_cast<int64_t>(table.size()) < num_blocks_of(num_tokens)) {
      const std::optional<int32_t> block_id = allocator_.allocate(g);
      MR_CHECK(block_id.has_value(), "rows_that_fit promised this block");
      table.push_back(*block_id);
    }
  }
}

// Gives back the blocks beyond what is computed. They are nobody else's: what is not full of accepted tokens has no key.
void Scheduler::shrink(Sequence& sequence) {
  const auto num_blocks = static_cast<std::size_t>(num_blocks_of(sequence.num_computed));
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
    if (is_cross(g)) continue;
    for (std::vector<int32_t>& table = sequence.block_tables[g]; table.size() > num_blocks; table.pop_back())
      allocator_.release(g, table.back());
  }
}

void Scheduler::preempt_youngest() {
  Sequence& victim = *running_.back();
  MR_CHECK(victim.num_planned_rows == 0, "a planned sequence keeps its blocks");
  running_.pop_back();
  victim.keep_draft_tokens(0);
  release_blocks(victim, /*forget=*/false);
  victim.state = SequenceState::kPreempted;
  enter_queue(victim);
  ++counters_.num_preemptions;
  preempted_in_step_ = true;
}

void Scheduler::release_blocks(Sequence& sequence, bool forget) {
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
    std::vector<int32_t>& table = sequence.block_tables[g];
    // Last block first: when memory is short the end of a cached chain goes before its beginning, without which it is useless.
    for (; !table.empty(); table.pop_back()) {
      if (table.back() < 0) continue;
      if (forget) allocator_.forget(g, table.back());
      allocator_.release(g, table.back());
    }
    sequence.num_passed[g] = 0;
  }
  if (store_ != nullptr) {
    // In the same order, for the same reason.
    for (int64_t block = sequence.num_keyed_blocks; block-- > 0;) {
      const BlockDigest& digest = sequence.digests[static_cast<std::size_t>(block)];
      for (int64_t g = 0; g < allocator_.num_groups(); ++g) forget ? store_->forget(g, digest) : store_->touch(g, digest);
    }
  }
  sequence.num_computed = 0;
  sequence.num_keyed_blocks = 0;
  sequence.num_planned_rows = 0;
}

bool Scheduler::try_admit(Sequence& sequence) {
  int64_t prefix_blocks = find_prefix(sequence, /*stored=*/true);
  if (!has_room(sequence, prefix_blocks)) return false;
  if (store_ != nullptr) {
    if (!restore_prefix(sequence, prefix_blocks)) return false;
    // As far as the store gave back what it had.
    prefix_blocks = find_prefix(sequence, /*stored=*/false);
    if (!has_room(sequence, prefix_blocks)) return false;
  }
  take_prefix(sequence, prefix_blocks);
  take_forked_blocks(sequence);
  drop_forked_blocks(sequence);  // where it could not be taken
  leave_queue(sequence);
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence, Order()), &sequence);
  sequence.state = SequenceState::kRunning;
  if (!sequence.was_admitted) {
    sequence.was_admitted = true;
    newly_admitted_.push_back(&sequence);
    last_admitted_client_ = sequence.client;
    if (sequence.index == 0) charge(sequence, kPromptTokenCost * (sequence.num_prompt_tokens - sequence.num_computed));
    // Its siblings find what the request itself has just computed: that says nothing about the cache.
    if (sequence.index == 0) {
      sequence.num_cached_tokens = sequence.num_computed;
      counters_.prefix_cache_queries += sequence.num_prompt_tokens;
      counters_.prefix_cache_hits += sequence.num_computed;
    }
  }
  return true;
}

}  // namespace millrace
