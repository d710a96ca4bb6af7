#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "millrace/engine/prefix_digest.h"

namespace millrace {

enum class SequenceState {
  kWaiting,    // not admitted yet
  kRunning,    // has blocks; every step may compute some of its rows
  kPreempted,  // had blocks; waits to be admitted again, and then recomputes
  kFinished,
};

// One stream of tokens being extended, as the scheduler sees it: which tokens, how many of them are in KV, and in which blocks.
// The scheduler alone changes state, num_computed and the tables; its owner appends sampled tokens, and before a step draft tokens.
struct Sequence {
  // Set by the owner before Scheduler::add.
  int32_t priority = 0;
  uint64_t arrival = 0;         // of its request; unique together with `index`
  int32_t index = 0;            // among the request's n sequences
  int32_t client = 0;           // on whose account it runs
  std::vector<int32_t> tokens;  // prompt and completion; during a step also draft tokens
  int64_t num_prompt_tokens = 0;
  int64_t num_source_tokens = 0;  // of an encoder-decoder: what its blocks of cross groups hold, from its first step on
  BlockDigest prefix_root;        // PrefixHasher::root
  bool shares_prefix = true;      // looks for and leaves cached blocks
  // Rows at positions [score_begin, score_end) say how likely the prompt's next token was, so they have to be computed. The owner moves the
  // beginning along; what a preempted sequence computes again is not scored again.
  int64_t score_begin = 0, score_end = 0;

  SequenceState state = SequenceState::kWaiting;
  // A guess of how the sequence goes on: the last of `tokens`. Computed in the same step as the token before them, they are right as far as
  // each equals what is sampled after the token before it. Only where nothing but that token is left to compute.
  int64_t num_draft_tokens = 0;     // plan_step keeps as many as it plans; none are left after commit_step
  int64_t num_accepted_tokens = 0;  // of them; set by the owner between plan_step and commit_step
  int64_t num_computed = 0;         // tokens in KV
  int64_t num_planned_rows = 0;     // of the current step
  int64_t num_cached_tokens = 0;    // of the prompt, found in the prefix cache when first admitted
  bool was_admitted = false;
  std::vector<std::vector<int32_t>> block_tables;  // [num_groups] block ids; -1 where a window has passed
  std::vector<int64_t> num_passed;                 // [num_groups] leading entries that are -1
  std::vector<BlockDigest> digests;                // of the full blocks at the beginning, as far as they were needed
  int64_t num_keyed_blocks = 0;                    // of them offered to the cache
  // Of a sequence that goes on from another one: the blocks, one of each group, that hold the last of its first num_forked_tokens tokens
  // and are not full. References of its own, until the next step is planned.
  std::vector<int32_t> forked_blocks;
  int64_t num_forked_tokens = 0;

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()) - num_draft_tokens; }  // without drafts
  void keep_draft_tokens(int64_t count) {
    tokens.resize(static_cast<std::size_t>(num_tokens() + count));
    num_draft_tokens = count;
  }
  // Of the next `num_rows` rows, how many are scored.
  int64_t num_scored(int64_t num_rows) const {
    return std::max<int64_t>(0, std::min(num_computed + num_rows, score_end) - std::max(num_computed, score_begin));
  }
  int64_t num_uncomputed() const { return num_tokens() - num_computed; }

  // Who goes first.
  std::tuple<int32_t, uint64_t, int32_t> order() const { return {priority, arrival, index}; }
};

}  // namespace millrace
