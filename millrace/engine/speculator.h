#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "millrace/engine/draft_planner.h"
#include "millrace/engine/engine_options.h"
#include "millrace/engine/live_request.h"

namespace millrace {

// Gives the sequences that decode their draft tokens before a step.
class Speculator {
 public:
  explicit Speculator(const SpeculationOptions& options) : options_(options), source_(make_draft_source(options)) {}

  bool is_on() const { return source_ != nullptr; }
  // Sets num_draft_tokens and appends the drafts to the tokens of running LiveSequences. Every sequence that decodes is followed, also
  // where no draft of it is computed: whether its drafts would have been right is seen for nothing.
  void propose(std::span<Sequence* const> running);
  // The sequence has ended. `forget`: nothing is to be learned from it.
  void finish(LiveSequence& sequence, bool forget);
  int64_t num_past_tokens() const { return is_on() ? source_->num_past_tokens() : 0; }
  // A step without rows of prompts took so long.
  void observe_step(int64_t num_rows, int64_t num_draft_tokens, double seconds);

 private:
  const SpeculationOptions& options_;
  const std::unique_ptr<DraftSource> source_;  // outlives the drafters of live sequences: what it learns is theirs in common
  std::vector<LiveSequence*> decoding_;
  std::vector<DraftCandidate> candidates_;  // of decoding_
  DraftPlanner planner_;
};

}  // namespace millrace
