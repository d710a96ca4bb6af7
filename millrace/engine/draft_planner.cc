#include "millrace/engine/draft_planner.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace millrace {

void DraftPlanner::observe_step(int64_t num_rows, int64_t num_draft_tokens, double seconds) {
  step_seconds_.observe(num_rows, seconds);
  num_drafted_steps_ = num_draft_tokens > 0 ? num_drafted_steps_ + 1 : 0;
}

void DraftPlanner::observe_drafts(int64_t num_decodes, int64_t num_draft_tokens, int64_t num_accepted_tokens, double draft_seconds) {
  if (num_decodes == 0) return;
  const std::optional<double> plain = step_seconds_.estimate(num_decodes), with = step_seconds_.estimate(num_decodes + num_draft_tokens);
  if (!plain) return;
  // An accepted token saves its sequence one step without drafts.
  const double saved = static_cast<double>(num_accepted_tokens) / static_cast<double>(num_decodes) * *plain;
  const double row_seconds = with ? std::max(0.0, *with - *plain) : 0;
  balance_seconds_ += kTrialShare * *plain + saved - row_seconds - draft_seconds;
  balance_seconds_ = std::min(balance_seconds_, kBalanceStepsMax * *plain);
}

void DraftPlanner::choose(std::span<DraftCandidate> candidates, const StepSeconds* draft_seconds) {
  choices_.clear();
  for (DraftCandidate& candidate : candidates) candidate.num_draft_tokens = 0;
  const auto num_decodes = static_cast<int64_t>(candidates.size());
  const std::optional<double> plain_seconds = step_seconds_.estimate(num_decodes);
  if (!plain_seconds || num_drafted_steps_ >= kDraftedStepsMax) return;
  for (std::size_t c = 0; c < candidates.size(); ++c) {
    if (candidates[c].overhead_seconds > 0 && balance_seconds_ < 0) continue;
    double probability = 1, tokens = 1;
    std::size_t depth = 0;
    for (const double next : candidates[c].probabilities) {
      probability *= next;
      if (probability < kGainMin) break;
      choices_.push_back({std::log1p(probability / tokens), c, depth++});
      tokens += probability;
    }
  }
  // Within a sequence the gains fall, so that the best ones together are a beginning of each draft.
  const std::size_t num_choices = std::min<std::size_t>(choices_.size(), kDraftTokensMax);
  std::partial_sort(choices_.begin(), choices_.begin() + static_cast<std::ptrdiff_t>(num_choices), choices_.end(),
                    [](const Choice& a, const Choice& b) { return std::tie(b.gain, a.candidate) < std::tie(a.gain, b.candidate); });
  // Before a round was ever measured it is taken for free: the first one tells.
  const bool rounds_are_known = draft_seconds != nullptr && draft_seconds->estimate(1).has_value();
  const auto round_seconds = [&](int64_t sequences) -> std::optional<double> {
    return sequences == 0 || !rounds_are_known ? 0 : draft_seconds->estimate(sequences);
  };
  round_sequences_.assign(kDraftTokensMax, 0);
  double gain = 0, drafting = 0, best = kGainMin * static_cast<double>(num_decodes);
  std::size_t num_best = 0;
  for (std::size_t k = 0; k < num_choices; ++k) {
    gain += choices_[k].gain;
    std::optional<double> seconds = step_seconds_.estimate(num_decodes + static_cast<int64_t>(k) + 1);
    int64_t& sequences = round_sequences_[choices_[k].depth];
    const std::optional<double> round = round_seconds(sequences), longer = round_seconds(sequences + 1);
    if (!seconds || !round || !longer) break;
    ++sequences;
    drafting += *longer - *round;
    if (choices_[k].depth == 0) drafting += candidates[choices_[k].candidate].overhead_seconds;
    *seconds += drafting;
    // Without a clock that runs there is no cost to weigh.
    const double cost = *plain_seconds > 0 && *seconds > 0 ? static_cast<double>(num_decodes) * std::log(*seconds / *plain_seconds) : 0;
    if (gain - cost <= best) continue;
    best = gain - cost;
    num_best = k + 1;
  }
  for (std::size_t k = 0; k < num_best; ++k) ++candidates[choices_[k].candidate].num_draft_tokens;
  if (num_best == 0 && draft_seconds != nullptr && balance_seconds_ >= 0) try_one(candidates);
}

// What was right too rarely may have become better: the sequence that takes least to begin with tells.
void DraftPlanner::try_one(std::span<DraftCandidate> candidates) const {
  DraftCandidate* cheapest = nullptr;
  for (DraftCandidate& candidate : candidates) {
    if (candidate.probabilities.empty()) continue;
    if (cheapest == nullptr || candidate.overhead_seconds < cheapest->overhead_seconds) cheapest = &candidate;
  }
  if (cheapest != nullptr)
    cheapest->num_draft_tokens = std::min<int64_t>(kTrialTokens, static_cast<int64_t>(cheapest->probabilities.size()));
}

}  // namespace millrace
