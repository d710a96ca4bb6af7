#include "millrace/engine/beam_search.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "millrace/base/check.h"

namespace millrace {

BeamSearch::BeamSearch(Options options) : options_(std::move(options)), running_(1) {
  MR_CHECK(options_.width >= 1 && options_.max_tokens >= 1, "a search of at least one beam and token");
}

void BeamSearch::advance(std::span<const std::vector<std::pair<int32_t, float>>> candidates) {
  MR_CHECK(!done_ && candidates.size() == running_.size(), "candidates of every running beam");
  struct Continuation {
    double score;
    int32_t beam, token;
  };
  std::vector<Continuation> all;
  for (std::size_t b = 0; b < running_.size(); ++b) {
    for (const auto& [token, logprob] : candidates[b])
      all.push_back({running_[b].score + static_cast<double>(logprob), static_cast<int32_t>(b), token});
  }
  const std::size_t kept = std::min(all.size(), static_cast<std::size_t>(num_candidates()));
  std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(kept), all.end(),
                    [](const auto& a, const auto& b) { return std::tie(b.score, a.beam, a.token) < std::tie(a.score, b.beam, b.token); });
  all.resize(kept);
  ++num_tokens_;
  const bool at_end = num_tokens_ >= options_.max_tokens;
  const std::size_t width = static_cast<std::size_t>(options_.width);
  const bool full = finished_.size() == width && options_.early_stopping == EarlyStopping::kYes;
  std::vector<Beam> next;
  for (std::size_t place = 0; place < all.size(); ++place) {
    const Continuation& continuation = all[place];
    const bool stops = at_end || std::find(options_.stop_token_ids.begin(), options_.stop_token_ids.end(), continuation.token) !=
                                     options_.stop_token_ids.end();
    // Of those that stop only the best ones count: the others would not have been kept, either.
    if (stops ? place >= width || full : next.size() >= width) continue;
    Beam beam{continuation.beam, running_[static_cast<std::size_t>(continuation.beam)].tokens, continuation.score};
    beam.tokens.push_back(continuation.token);
    if (stops) beam.score /= std::pow(static_cast<double>(num_tokens_), options_.length_penalty);
    (stops ? finished_ : next).push_back(std::move(beam));
  }
  std::stable_sort(finished_.begin(), finished_.end(), [](const Beam& a, const Beam& b) { return a.score > b.score; });
  if (finished_.size() > width) finished_.resize(width);
  running_ = std::move(next);
  const bool enough = finished_.size() == width && options_.early_stopping == EarlyStopping::kYes;
  done_ = at_end || enough || running_.empty() || !may_improve();
}

bool BeamSearch::may_improve() const {
  if (finished_.size() < static_cast<std::size_t>(options_.width)) return true;
  const bool at_any_length = options_.early_stopping == EarlyStopping::kNever && options_.length_penalty > 0;
  const auto length = static_cast<double>(at_any_length ? options_.max_tokens : num_tokens_);
  return running_[0].score / std::pow(length, options_.length_penalty) > finished_.back().score;
}

}  // namespace millrace
