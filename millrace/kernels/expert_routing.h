#pragma once

#include <cstdint>
#include <vector>

namespace millrace {

// How the router of a mixture of experts chooses: scores from the logits, the largest of them, and what becomes of these as weights.
struct RoutingRule {
  enum class Scoring { kSoftmax, kSigmoid };  // over all experts; of each
  static constexpr int64_t kMaxExperts = 1024;

  int64_t num_experts = 0, experts_per_token = 0;  // 1 <= experts_per_token <= num_experts <= kMaxExperts
  Scoring scoring = Scoring::kSoftmax;
  bool normalize = true;  // the chosen weights are divided by their sum: with softmax the same as a softmax of the chosen logits
  float scale = 1.0f;     // multiplies the weights
  // Experts in equal groups, of which only the best are chosen from: DeepSeek-V2, arXiv:2405.04434, and -V3, arXiv:2412.19437.
  int64_t num_groups = 1, groups_per_token = 1;  // num_groups divides num_experts; the chosen groups hold at least experts_per_token
  enum class GroupScore {
    kLargest,
    kTwoLargest
  } group_score = GroupScore::kLargest;  // the best expert of a group, or the sum of its best two
  std::vector<float> correction;         // [num_experts], or empty: added to the scores for choosing, not to the weights
};

// Chooses for one token: experts [experts_per_token] in ascending order, and the weight of each. Of equal scores the lower expert is
// chosen. The result depends on nothing but the logits and the rule; it always names different experts, also where logits are NaN.
//
//   logits   [num_experts] f32
//
// Softmax routing as in Mixtral, arXiv:2401.04088, and Qwen1.5-MoE; computed in f32 as transformers does.
void route_row(const RoutingRule& rule, const float* logits, int32_t* experts, float* weights);

}  // namespace millrace
