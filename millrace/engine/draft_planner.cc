#include "millrace/engine/draft_planner.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace millrace {

void DraftPlanner::observe_step(int64_t num_rows, int64_t num_draft_tokens, double seconds) {
  step_seconds_.observe(num_rows, seconds);
  num_drafted_steps_ = num_draft_tokens > 0 ? num_drafted_steps_ + 1 : 0;
}

void DraftPlanner::choose(std::span<DraftCandidate> candidates) {
  choices_.clear();
  for (DraftCandidate& candidate : candidates) candidate.num_draft_tokens = 0;
  const auto num_decodes = static_cast<int64_t>(candidates.size());
  const std::optional<double> plain_seconds = step_seconds_.estimate(num_decodes);
  if (!plain_seconds || num_drafted_steps_ >= kDraftedStepsMax) return;
  for (std::size_t c = 0; c < candidates.size(); ++c) {
    double probability = 1, tokens = 1;
    for (const double next : candidates[c].probabilities) {
      probability *= next;
      if (probability < kGainMin) break;
      choices_.push_back({std::log1p(probability / tokens), c});
      tokens += probability;
    }
  }
  // Within a sequence the gains fall, so that the best ones together are a beginning of each draft.
  const std::size_t num_choices = std::min<std::size_t>(choices_.size(), kDraftTokensMax);
  std::partial_sort(choices_.begin(), choices_.begin() + static_cast<std::ptrdiff_t>(num_choices), choices_.end(),
                    [](const Choice& a, const Choice& b) { return std::tie(b.gain, a.candidate) < std::tie(a.gain, b.candidate); });
  double gain = 0, best = kGainMin * static_cast<double>(num_decodes);
  std::size_t num_best = 0;
  for (std::size_t k = 0; k < num_choices; ++k) {
    gain += choices_[k].gain;
    const std::optional<double> seconds = step_seconds_.estimate(num_decodes + static_cast<int64_t>(k) + 1);
    if (!seconds) break;
    // Without a clock that runs there is no cost to weigh.
    const double cost = *plain_seconds > 0 && *seconds > 0 ? static_cast<double>(num_decodes) * std::log(*seconds / *plain_seconds) : 0;
    if (gain - cost <= best) continue;
    best = gain - cost;
    num_best = k + 1;
  }
  for (std::size_t k = 0; k < num_best; ++k) ++candidates[choices_[k].candidate].num_draft_tokens;
}

}  // namespace millrace
