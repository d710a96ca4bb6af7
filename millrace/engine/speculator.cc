#include "millrace/engine/speculator.h"

#include <algorithm>
#include <utility>

#include "millrace/base/check.h"
#include "millrace/engine/model_drafter.h"
#include "millrace/engine/prompt_lookup.h"
#include "millrace/engine/suffix_drafter.h"

namespace millrace {

Result<std::unique_ptr<DraftSource>> make_draft_source(const EngineOptions& options, std::span<const int64_t> target_blocks) {
  const SpeculationOptions& speculation = options.speculation;
  switch (speculation.method) {
    case SpeculationMethod::kOff: return std::unique_ptr<DraftSource>();
    case SpeculationMethod::kNgram:
      return std::unique_ptr<DraftSource>(std::make_unique<PromptLookupSource>(speculation.prompt_lookup_min));
    case SpeculationMethod::kSuffix:
      return std::unique_ptr<DraftSource>(std::make_unique<SuffixSource>(speculation.past_output, speculation.prompt_lookup_min));
    case SpeculationMethod::kDraftModel: {
      int64_t num_blocks = speculation.draft_kv_blocks;
      if (num_blocks == 0) {
        for (const int64_t blocks : target_blocks) num_blocks = std::max(num_blocks, blocks);
      }
      MR_ASSIGN_OR_RETURN(auto source,
                          ModelDraftSource::create(*speculation.draft_executor,
                                                   {options.step_tokens_max, std::max<int64_t>(1, num_blocks), options.clock}));
      return std::unique_ptr<DraftSource>(std::move(source));
    }
  }
  MR_CHECK(false, "a method");
  return std::unique_ptr<DraftSource>();
}

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
    DraftCandidate& candidate = candidates_[i];
    candidate.probabilities.clear();
    sequence.drafter->predict(most, candidate.probabilities);
    // What it takes to begin is worth while the sequence goes on; how long is not known.
    constexpr int64_t kStepsLikely = 128;
    const int64_t num_left = request.max_tokens - sequence.completion.num_tokens();
    candidate.overhead_seconds = sequence.drafter->overhead_seconds() / static_cast<double>(std::clamp<int64_t>(num_left, 1, kStepsLikely));
  }
  if (options_.adaptive) {
    planner_.choose(candidates_, source_->draft_seconds());
  } else {
    for (DraftCandidate& candidate : candidates_) candidate.num_draft_tokens = static_cast<int64_t>(candidate.probabilities.size());
  }
  work_.clear();
  drafted_.clear();
  for (std::size_t i = 0; i < decoding_.size(); ++i) {
    LiveSequence& sequence = *decoding_[i];
    if (candidates_[i].num_draft_tokens == 0) continue;
    drafted_.push_back(&sequence);
    work_.push_back({.drafter = sequence.drafter.get(),
                     .tokens = &sequence.tokens,
                     .num_prompt_tokens = sequence.num_prompt_tokens,
                     .num_tokens_expected = sequence.num_prompt_tokens + sequence.request.max_tokens,
                     .count = candidates_[i].num_draft_tokens,
                     .sampling = sequence.sampling,
                     .min_tokens = sequence.request.request.min_tokens,
                     .stop_token_ids = sequence.request.stop_token_ids});
  }
  const bool takes_time = source_->draft_seconds() != nullptr;
  const double begun = takes_time ? clock_() : 0;
  source_->compute(work_);
  drafting_seconds_ = takes_time ? clock_() - begun : 0;
  for (std::size_t i = 0; i < work_.size(); ++i) {
    LiveSequence& sequence = *drafted_[i];
    const std::size_t before = sequence.tokens.size();
    sequence.drafter->draft(sequence.tokens, work_[i].count);
    sequence.num_draft_tokens = static_cast<int64_t>(sequence.tokens.size() - before);
  }
}

void Speculator::observe_drafts(int64_t num_decodes, int64_t num_draft_tokens, int64_t num_accepted_tokens) {
  if (!is_on() || source_->draft_seconds() == nullptr) return;
  planner_.observe_drafts(num_decodes, num_draft_tokens, num_accepted_tokens, drafting_seconds_);
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
