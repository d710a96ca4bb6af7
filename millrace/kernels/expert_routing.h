#pragma once

#include <cstdint>

namespace millrace {

// How the router of a mixture of experts chooses: scores from the logits, the largest of them, and what becomes of these as weights.
struct RoutingRule {
  enum class Scoring { kSoftmax, kSigmoid };  // over all experts; of each
  static constexpr int64_t kMaxExperts = 1024;

  int64_t num_experts = 0, experts_per_token = 0;  // 1 <= experts_per_token <= num_experts <= kMaxExperts
  Scoring scoring = Scoring::kSoftmax;
  bool normalize = true;  // the chosen weights are divided by their sum: with softmax the same as a softmax of the chosen logits
  float scale = 1.0f;     // multiplies the weights
};

// Chooses for one token: experts [experts_per_token] in ascending order, and the weight of each. Of equal scores the lower expert is chosen. The result
// depends on nothing but the logits; it always names different experts, also where logits are NaN.
//
//   logits   [num_experts] f32
//
// Softmax routing as in Mixtral, arXiv:2401.04088, and Qwen1.5-MoE; computed in f32 as transformers does.
void route_row(const RoutingRule& rule, const float* logits, int32_t* experts, float* weights);

}  // namespace millrace
