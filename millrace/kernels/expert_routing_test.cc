#include "millrace/kernels/expert_routing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>
#include <vector>

namespace millrace {
namespace {

using Scoring = RoutingRule::Scoring;

struct Choice {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Choice route(const RoutingRule& rule, const std::vector<float>& logits) {
  Choice choice{std::vector<int32_t>(static_cast<std::size_t>(rule.experts_per_token), -1), std::vector<float>(static_cast<std::size_t>(rule.experts_per_token))};
  route_row(rule, logits.data(), choice.experts.data(), choice.weights.data());
  return choice;
}

// The formula in double, by sorting all experts.
Choice reference(const RoutingRule& rule, const std::vector<float>& logits) {
  std::vector<double> scores(logits.begin(), logits.end());
  double total = 0;
  for (double& score : scores) total += std::exp(score);
  for (double& score : scores) score = rule.scoring == Scoring::kSoftmax ? std::exp(score) / total : 1 / (1 + std::exp(-score));
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)]; });
  order.resize(static_cast<std::size_t>(rule.experts_per_token));
  std::sort(order.begin(), order.end());
  double sum = 0;
  for (const int32_t e : order) sum += scores[static_cast<std::size_t>(e)];
  Choice choice{order, {}};
  for (const int32_t e : order) {
    choice.weights.push_back(static_cast<float>(scores[static_cast<std::size_t>(e)] / (rule.normalize ? sum : 1) * static_cast<double>(rule.scale)));
  }
  return choice;
}

TEST(ExpertRouting, ChoosesAsSortingDoes) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  for (const int64_t num_experts : {1, 2, 6, 8, 60, 128, 1024}) {
    for (const int64_t experts_per_token : {int64_t{1}, int64_t{2}, int64_t{8}, num_experts}) {
      if (experts_per_token > num_experts) continue;
      for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid}) {
        for (const bool normalize : {false, true}) {
          SCOPED_TRACE(testing::Message() << num_experts << " experts, " << experts_per_token << " a token, normalize " << normalize);
          const RoutingRule rule{num_experts, experts_per_token, scoring, normalize, 1.5f};
          std::vector<float> logits(static_cast<std::size_t>(num_experts));
          for (float& logit : logits) logit = normal(random);
          const Choice got = route(rule, logits), want = reference(rule, logits);
          EXPECT_EQ(got.experts, want.experts);
          for (std::size_t i = 0; i < want.weights.size(); ++i) EXPECT_NEAR(got.weights[i], want.weights[i], 1e-5f * want.weights[i]);
        }
      }
    }
  }
}

TEST(ExpertRouting, NormalizedSoftmaxIsTheSoftmaxOfTheChosen) {
  const Choice choice = route({4, 2, Scoring::kSoftmax, true, 1.0f}, {1.0f, 3.0f, -2.0f, 2.0f});
  EXPECT_EQ(choice.experts, (std::vector<int32_t>{1, 3}));
  EXPECT_FLOAT_EQ(choice.weights[0], 1 / (1 + std::exp(-1.0f)));
  EXPECT_FLOAT_EQ(choice.weights[0] + choice.weights[1], 1.0f);
}

TEST(ExpertRouting, OfEqualScoresTheLowerExpertIsChosen) {
  EXPECT_EQ(route({5, 3, Scoring::kSoftmax, true, 1.0f}, {0.5f, 2.0f, 0.5f, 0.5f, 2.0f}).experts, (std::vector<int32_t>{0, 1, 4}));
}

TEST(ExpertRouting, NamesDifferentExpertsWhateverTheLogits) {
  const float infinity = INFINITY, nan = NAN;
  for (const std::vector<float>& logits : {std::vector<float>{nan, nan, nan, nan}, {nan, 1, 2, nan}, {infinity, -infinity, infinity, 0}, {1e30f, -1e30f, 1e30f, 0}}) {
    const Choice choice = route({4, 3, Scoring::kSoftmax, true, 1.0f}, logits);
    EXPECT_EQ(std::set<int32_t>(choice.experts.begin(), choice.experts.end()).size(), 3u);
    for (const int32_t expert : choice.experts) EXPECT_TRUE(expert >= 0 && expert < 4);
  }
}

}  // namespace
}  // namespace millrace
