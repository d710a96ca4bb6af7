#include "millrace/engine/draft_acceptance.h"

#include <algorithm>

namespace millrace {

int64_t DraftAcceptance::class_of(int64_t match_length) {
  return match_length <= 4 ? std::max<int64_t>(match_length, 1) - 1 : match_length <= 8 ? 4 : 5;
}

void DraftAcceptance::observe(int64_t match_length, bool accepted) {
  seen_[static_cast<std::size_t>(class_of(match_length))].observe(accepted, kept_);
}

double DraftAcceptance::probability(int64_t match_length, const DraftAcceptance* prior) const {
  constexpr std::array<double, kClasses> kUsual = {.15, .3, .4, .5, .65, .85};  // of texts that repeat some of their prompt
  const auto index = static_cast<std::size_t>(class_of(match_length));
  return seen_[index].probability(prior != nullptr ? prior->probability(match_length) : kUsual[index]);
}

}  // namespace millrace
