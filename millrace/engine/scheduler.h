#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "millrace/engine/block_allocator.h"
#include "millrace/engine/block_store.h"
#include "millrace/engine/sequence.h"
#include "millrace/model/step_plan.h"

// Decides what the next step computes. Owns no tensor, thread or clock: a pure function of its state and of the calls made.
//   1. Running sequences decode first: a stalled stream is seen by a user, a late first token is not yet.
//   2. The rest of the token budget goes to prefill chunks, oldest request first. While several prompts wait, each gets at most
//      prefill_chunk_max rows in a first round, so that a short one is not stuck behind a long one; what is left goes to the oldest.
//   3. Waiting sequences are admitted strictly in order, when their whole prompt finds room: nobody is overtaken. The order is priority,
//      then what ran before (preempted, or a sibling does), then the client that has been given least, then arrival. What a client was
//      given is counted as in the virtual token counter of Sheng et al. 2024, arXiv:2401.00588: 1 for a prompt token computed, 2 for a
//      completion token, over the client's weight; one who comes back after a pause does not bring the time along in which it asked for
//      nothing. Clients who all have requests waiting then differ by no more than a bound that does not grow with time.
//   4. Out of KV blocks: preempt the youngest running sequence; it has the least work to lose, and is recomputed later (often from
//      its own cached blocks).
//   5. A sequence of an encoder-decoder is admitted when its source text finds blocks, too: it takes them then, keeps them as they are, and
//      the text counts against the step's budget, which the last one admitted may exceed.
//   6. Draft tokens take at most half of what decodes leave of the token budget, and blocks that nobody else wants in the step: they
//      preempt nobody and keep nobody waiting.
//   7. Rows whose logits are wanted because they score a prompt (Sequence::score_begin) are at most scored_rows_max in a step: logits take
//      the vocabulary times 4 bytes a row.
//   8. Where there is a store (the disk tier), the prefix of who is admitted may come from there, too: at most restored_blocks_max blocks
//   in a
//      step that others compute in. Who has more there is admitted in a later step, when all of it is back.
// Progress: the first in order is never preempted for another, and a step with anything to do computes at least one row.
namespace millrace {

struct SchedulerOptions {
  int64_t max_running_sequences = 64;  // at most step_tokens_max, so that every running sequence can decode in one step
  int64_t step_tokens_max = 512;
  int64_t prefill_chunk_max = 256;
  int64_t scored_rows_max = 64;
  int64_t restored_blocks_max = 16;             // blocks that a step may wait for the store to load
  std::vector<std::optional<int64_t>> windows;  // [num_groups] KvGroupSpec::window
  std::vector<double> client_weights;           // by Sequence::client, above 0; 1 where there is none
  bool prompt_differs = false;   // ExecutorInfo::prompt_differs: a cached prefix serves only tokens that would be computed in the same way
  std::vector<bool> cross = {};  // [num_groups] KvGroupSpec::cross, or empty: none
};

class Scheduler {
 public:
  struct Planned {
    Sequence* sequence;
    int64_t num_rows;  // draft tokens included, which are the last
    // A token is wanted after the last row exactly when the rows reach the end of the sequence's tokens, and then after every draft token,
    // too.
    bool wants_token() const { return sequence->num_computed + num_rows >= sequence->num_tokens(); }
  };
  struct Counters {
    int64_t num_preemptions = 0;
    int64_t prefix_cache_queries = 0;  // prompt tokens
    int64_t prefix_cache_hits = 0;
  };

  // The largest number of blocks a windowed group needs for one sequence whose steps have at most `rows` rows.
  static int64_t window_blocks(int64_t window, int64_t rows);

  // `store`: keeps full blocks beside the allocator's; null: there is none. Both must outlive the scheduler.
  Scheduler(SchedulerOptions options, BlockAllocator& allocator, BlockStore* store = nullptr);

  // The sequence must live until remove().
  void add(Sequence& sequence);
  // Where others may go on from: what a running sequence has computed. Its full blocks are found in the prefix cache; its last block, which
  // is not full, is kept until release(). None of it where that block does not exist.
  struct ForkPoint {
    std::vector<int32_t> blocks;  // [num_groups] with a reference each, or empty
    int64_t num_tokens = 0;
  };
  ForkPoint fork_point(const Sequence& running);
  void release(ForkPoint& point);
  // Adds a sequence whose tokens begin with those of the fork point. Where there is room in the next step it gets the point's block: itself
  // where nobody else does, else a copy of it. Otherwise it computes what full blocks do not hold.
  void add_forked(Sequence& sequence, const ForkPoint& point);
  // Finished, cancelled or failed, in any state: its blocks are free on return. `forget`: also its cached prefixes, because what
  // they hold is not to be trusted.
  void remove(Sequence& sequence, bool forget = false);

  // The rows of the next step, decodes first, at most `prefill_rows_max` (at least 1) of prompts beside them; empty when there is nothing
  // to do. Valid until the next call.
  std::span<const Planned> plan_step(int64_t prefill_rows_max = std::numeric_limits<int64_t>::max());
  // What the step copies before it computes.
  std::span<const StepPlan::BlockCopy> block_copies() const { return block_copies_; }
  // The sequences that plan_step admitted for the first time.
  std::span<Sequence* const> newly_admitted() const { return newly_admitted_; }
  // The planned rows are in KV: full blocks become sharable, blocks behind a window are released, and those that only draft tokens
  // needed which were not accepted. Then the drafts are gone. Before tokens are appended, the accepted ones among them.
  void commit_step();

  std::span<Sequence* const> running() const { return running_; }  // in order
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return num_waiting_; }
  // What the client was given, over its weight.
  double service(int32_t client) const;
  const Counters& counters() const { return counters_; }

 private:
  struct Order {
    bool operator()(const Sequence* a, const Sequence* b) const { return a->order() < b->order(); }
  };

  struct Client {
    std::set<Sequence*, Order> queue;  // never admitted
    double weight = 1, service = 0;
  };

  Client& client_of(const Sequence& sequence);
  void enter_queue(Sequence& sequence);
  bool leave_queue(Sequence& sequence);
  Sequence* first_waiting();
  void charge(const Sequence& sequence, int64_t cost);
  void plan_decodes();
  void reserve_drafts();
  void extend_drafts();
  bool plan_prefills();  // false: a prefill found no block
  void admit_waiting();
  void extend_prefills();
  void plan(Sequence& sequence, int64_t num_rows);
  bool try_admit(Sequence& sequence);
  // scheduler_prefix.cc
  bool is_found(int64_t group, const BlockDigest& digest, bool stored) const;
  int64_t find_prefix(Sequence& sequence, bool stored);
  bool has_room(const Sequence& sequence, int64_t prefix_blocks);
  bool restore_prefix(const Sequence& sequence, int64_t num_blocks);
  void take_prefix(Sequence& sequence, int64_t num_blocks);
  void take_forked_blocks(Sequence& sequence);
  void drop_forked_blocks(Sequence& sequence);
  bool drop_all_forked_blocks(const Sequence* except = nullptr);  // false: there were none
  int64_t rows_to_score(const Sequence& sequence, int64_t num_rows, int64_t num_scored_max) const;
  int64_t rows_that_fit(const Sequence& sequence, int64_t num_rows) const;
  void grow(Sequence& sequence, int64_t num_rows);
  void shrink(Sequence& sequence);
  int64_t blocks_for(const Sequence& sequence, int64_t group, int64_t num_tokens) const;
  bool is_cross(int64_t group) const { return !options_.cross.empty() && options_.cross[static_cast<std::size_t>(group)]; }
  int64_t first_readable_block(int64_t group, int64_t num_computed) const;
  void preempt_youngest();
  void release_blocks(Sequence& sequence, bool forget);
  void extend_digests(Sequence& sequence, int64_t num_blocks);

  SchedulerOptions options_;
  BlockAllocator& allocator_;
  BlockStore* store_;
  std::map<int32_t, Client> clients_;
  std::set<Sequence*, Order> returning_;  // waiting ones that ran before, or whose siblings did
  int64_t num_waiting_ = 0;
  int32_t last_admitted_client_ = 0;
  std::vector<Sequence*> running_;  // in order()
  std::vector<Planned> planned_;
  std::vector<Sequence*> newly_admitted_;
  std::vector<Sequence*> forked_;                  // waiting ones that hold forked_blocks
  std::vector<StepPlan::BlockCopy> block_copies_;  // what they are copied from is referenced until commit_step
  int64_t budget_ = 0;
  int64_t scored_left_ = 0;    // rows that the step may still score
  int64_t restores_left_ = 0;  // blocks that it may still wait for
  bool preempted_in_step_ = false;
  Counters counters_;
};

}  // namespace millrace
