#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "millrace/engine/draft_planner.h"
#include "millrace/engine/engine_options.h"
#include "millrace/engine/live_request.h"

namespace millrace {

// Null: off. Of a draft model `target_blocks`, what each KV group of the target has, decide how many it gets; its KV memory is allocated.
// Errors: what its executor says.
Result<std::unique_ptr<DraftSource>> make_draft_source(const EngineOptions& options, std::span<const int64_t> target_blocks);

// Gives the sequences that decode their draft tokens before a step.
class Speculator {
 public:
  // `source`: of make_draft_source(); the options, of complete_options(), must outlive the speculator.
  Speculator(const EngineOptions& options, std::unique_ptr<DraftSource> source)
      : options_(options.speculation), clock_(options.clock), source_(std::move(source)) {}

  bool is_on() const { return source_ != nullptr; }
  // Sets num_draft_tokens and appends the drafts to the tokens of running LiveSequences. Every sequence that decodes is followed, also
  // where no draft of it is computed: whether its drafts would have been right is seen for nothing.
  void propose(std::span<Sequence* const> running);
  // The sequence has ended. `forget`: nothing is to be learned from it.
  void finish(LiveSequence& sequence, bool forget);
  int64_t num_past_tokens() const { return is_on() ? source_->num_past_tokens() : 0; }
  int64_t num_used_draft_blocks() const { return is_on() ? source_->num_used_blocks() : 0; }
  // A step without rows of prompts took so long.
  void observe_step(int64_t num_rows, int64_t num_draft_tokens, double seconds);
  // What became of the drafts of any step.
  void observe_drafts(int64_t num_decodes, int64_t num_draft_tokens, int64_t num_accepted_tokens);

 private:
  const SpeculationOptions& options_;
  const std::function<double()>& clock_;       // seconds
  const std::unique_ptr<DraftSource> source_;  // outlives the drafters of live sequences: what it learns is theirs in common
  std::vector<LiveSequence*> decoding_;
  std::vector<DraftCandidate> candidates_;  // of decoding_
  std::vector<DraftWork> work_;             // of those that get drafts
  std::vector<LiveSequence*> drafted_;      // likewise
  double drafting_seconds_ = 0;             // of the last propose()
  DraftPlanner planner_;
};

}  // namespace millrace
