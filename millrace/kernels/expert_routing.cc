#include "millrace/kernels/expert_routing.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "millrace/base/check.h"

namespace millrace {

void route_row(const RoutingRule& rule, const float* logits, int32_t* experts, float* weights) {
  MR_DCHECK(rule.experts_per_token >= 1 && rule.experts_per_token <= rule.num_experts && rule.num_experts <= RoutingRule::kMaxExperts, "a rule out of range");
  std::array<float, RoutingRule::kMaxExperts> scores;
  std::array<bool, RoutingRule::kMaxExperts> chosen;
  const int64_t count = rule.num_experts;
  if (rule.scoring == RoutingRule::Scoring::kSoftmax) {
    const float largest = *std::max_element(logits, logits + count);
    float sum = 0;
    for (int64_t e = 0; e < count; ++e) sum += scores[static_cast<std::size_t>(e)] = std::exp(logits[e] - largest);
    for (int64_t e = 0; e < count; ++e) scores[static_cast<std::size_t>(e)] /= sum;
  } else {
    for (int64_t e = 0; e < count; ++e) scores[static_cast<std::size_t>(e)] = 1.0f / (1.0f + std::exp(-logits[e]));
  }
  std::fill_n(chosen.begin(), count, false);
  for (int64_t n = 0; n < rule.experts_per_token; ++n) {
    int64_t best = -1;
    for (int64_t e = 0; e < count; ++e) {
      if (!chosen[static_cast<std::size_t>(e)] && (best < 0 || scores[static_cast<std::size_t>(e)] > scores[static_cast<std::size_t>(best)])) best = e;
    }
    chosen[static_cast<std::size_t>(best)] = true;
  }
  float sum = 0;
  int64_t n = 0;
  for (int64_t e = 0; e < count; ++e) {
    if (!chosen[static_cast<std::size_t>(e)]) continue;
    experts[n] = static_cast<int32_t>(e);
    weights[n++] = scores[static_cast<std::size_t>(e)];
    sum += scores[static_cast<std::size_t>(e)];
  }
  const float factor = rule.normalize ? rule.scale / sum : rule.scale;
  for (n = 0; n < rule.experts_per_token; ++n) weights[n] *= factor;
}

}  // namespace millrace
