#include "millrace/kernels/expert_routing.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "millrace/base/check.h"

namespace millrace {
namespace {

using Scores = std::array<float, RoutingRule::kMaxExperts>;
using Marks = std::array<bool, RoutingRule::kMaxExperts>;

// Marks the `wanted` largest of scores[0, count) that are not marked yet, of equal ones the lower.
void mark_largest(const Scores& scores, int64_t count, int64_t wanted, Marks& marks) {
  for (int64_t n = 0; n < wanted; ++n) {
    int64_t best = -1;
    for (int64_t i = 0; i < count; ++i) {
      if (!marks[static_cast<std::size_t>(i)] && (best < 0 || scores[static_cast<std::size_t>(i)] > scores[static_cast<std::size_t>(best)]))
        best = i;
    }
    marks[static_cast<std::size_t>(best)] = true;
  }
}

// Marks the experts of all groups but the best.
void mark_other_groups(const RoutingRule& rule, const Scores& scores, Marks& marks) {
  const int64_t size = rule.num_experts / rule.num_groups;
  Scores of_group;
  for (int64_t g = 0; g < rule.num_groups; ++g) {
    float largest = -INFINITY, second = -INFINITY;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) {
      const float score = scores[static_cast<std::size_t>(e)];
      second = std::max(second, std::min(largest, score));
      largest = std::max(largest, score);
    }
    of_group[static_cast<std::size_t>(g)] = rule.group_score == RoutingRule::GroupScore::kLargest || size == 1 ? largest : largest + second;
  }
  Marks chosen;
  std::fill_n(chosen.begin(), rule.num_groups, false);
  mark_largest(of_group, rule.num_groups, rule.groups_per_token, chosen);
  for (int64_t e = 0; e < rule.num_experts; ++e) marks[static_cast<std::size_t>(e)] = !chosen[static_cast<std::size_t>(e / size)];
}

}  // namespace

void route_row(const RoutingRule& rule, const float* logits, int32_t* experts, float* weights) {
  MR_DCHECK(rule.experts_per_token >= 1 && rule.experts_per_token <= rule.num_experts && rule.num_experts <= RoutingRule::kMaxExperts,
            "a rule out of range");
  Scores scores;
  Marks chosen, excluded;
  const int64_t count = rule.num_experts;
  if (rule.scoring == RoutingRule::Scoring::kSoftmax) {
    const float largest = *std::max_element(logits, logits + count);
    float sum = 0;
    for (int64_t e = 0; e < count; ++e) sum += scores[static_cast<std::size_t>(e)] = std::exp(logits[e] - largest);
    for (int64_t e = 0; e < count; ++e) scores[static_cast<std::size_t>(e)] /= sum;
  } else {
    for (int64_t e = 0; e < count; ++e) scores[static_cast<std::size_t>(e)] = 1.0f / (1.0f + std::exp(-logits[e]));
  }
  Scores corrected;
  std::copy_n(scores.begin(), count, corrected.begin());
  for (std::size_t e = 0; e < rule.correction.size(); ++e) corrected[e] += rule.correction[e];
  std::fill_n(excluded.begin(), count, false);
  if (rule.groups_per_token < rule.num_groups) mark_other_groups(rule, corrected, excluded);
  std::copy_n(excluded.begin(), count, chosen.begin());
  mark_largest(corrected, count, rule.experts_per_token, chosen);
  float sum = 0;
  int64_t n = 0;
  for (int64_t e = 0; e < count; ++e) {
    if (!chosen[static_cast<std::size_t>(e)] || excluded[static_cast<std::size_t>(e)]) continue;
    experts[n] = static_cast<int32_t>(e);
    weights[n++] = scores[static_cast<std::size_t>(e)];
    sum += scores[static_cast<std::size_t>(e)];
  }
  const float factor = rule.normalize ? rule.scale / sum : rule.scale;
  for (n = 0; n < rule.experts_per_token; ++n) weights[n] *= factor;
}

}  // namespace millrace
