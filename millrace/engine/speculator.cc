#include "millrace/engine/speculator.h"

#include <algorithm>

namespace millrace {

void Speculator::propose(std::span<Sequence* const> running) {
  if (!is_on()) return;
  decoding_.clear();
  for (Sequence* candidate : running) {
    LiveSequence& sequence = static_cast<LiveSequence&>(*candidate);
    if (sequence.request.request.sampling.needs_previous_draw()) continue;  // one position a step
    if (sequence.num_uncomputed() == 1 && sequence.completion.num_tokens() > 0) decoding_.push_back(&sequence);
  }
  candidates_.resize(decoding_.size());
  for (std::size_t i = 0; i < decoding_.size(); ++i) {
    LiveSequence& sequence = *decoding_[i];
    const LiveRequest& request = sequence.request;
    if (sequence.drafter == nullptr) sequence.drafter = source_->follow({request.request.client, request.request.cache_salt});
    sequence.drafter->extend(sequence.tokens, sequence.num_prompt_tokens);
    // The step's last token is sampled, not drafted.
    const int64_t most = std::min(options_.num_speculative_tokens, request.max_tokens - sequence.completion.num_tokens() - 1);
    candidates_[i].probabilities.clear();
    sequence.drafter->predict(most, candidates_[i].probabilities);
  }
  if (options_.adaptive) {
    planner_.choose(candidates_);
  } else {
    for (DraftCandidate& candidate : candidates_) candidate.num_draft_tokens = static_cast<int64_t>(candidate.probabilities.size());
  }
  for (std::size_t i = 0; i < decoding_.size(); ++i) {
    LiveSequence& sequence = *decoding_[i];
    if (candidates_[i].num_draft_tokens == 0) continue;
    sequence.drafter->draft(sequence.tokens, candidates_[i].num_draft_tokens);
    sequence.num_draft_tokens = candidates_[i].num_draft_tokens;
  }
}

void Speculator::finish(LiveSequence& sequence, bool forget) {
  if (sequence.drafter == nullptr) return;
  const auto num_tokens = static_cast<std::size_t>(sequence.num_tokens());
  if (!forget) sequence.drafter->finish(std::span(sequence.tokens).first(num_tokens), sequence.num_prompt_tokens);
  sequence.drafter = nullptr;
}

void Speculator::observe_step(int64_t num_rows, int64_t num_draft_tokens, double seconds) {
  if (is_on()) planner_.observe_step(num_rows, num_draft_tokens, seconds);
}

}  // namespace millrace
