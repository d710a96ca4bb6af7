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
  Choice choice{std::vector<int32_t>(static_cast<std::size_t>(rule.experts_per_token), -1),
                std::vector<float>(static_cast<std::size_t>(rule.experts_per_token))};
  route_row(rule, logits.data(), choice.experts.data(), choice.weights.data());
  return choice;
}

// The formula in double, by sorting all experts.
Choice reference(const RoutingRule& rule, const std::vector<float>& logits) {
  std::vector<double> scores(logits.begin(), logits.end());
  double total = 0;
  for (double& score : scores) total += std::exp(score);
  for (double& score : scores) score = rule.scoring == Scoring::kSoftmax ? std::exp(score) / total : 1 / (1 + std::exp(-score));
  std::vector<double> corrected = scores;
  for (std::size_t e = 0; e < rule.correction.size(); ++e) corrected[e] += rule.correction[e];
  const auto by_score = [](const std::vector<double>& of) {
    return [&of](int32_t a, int32_t b) { return of[static_cast<std::size_t>(a)] > of[static_cast<std::size_t>(b)]; };
  };
  // The groups, best first, then the experts of the best groups.
  const std::size_t size = scores.size() / static_cast<std::size_t>(rule.num_groups);
  std::vector<double> of_group;
  for (std::size_t g = 0; g < scores.size(); g += size) {
    std::vector<double> group(corrected.begin() + static_cast<std::ptrdiff_t>(g),
                              corrected.begin() + static_cast<std::ptrdiff_t>(g + size));
    std::sort(group.rbegin(), group.rend());
    of_group.push_back(rule.group_score == RoutingRule::GroupScore::kTwoLargest && size > 1 ? group[0] + group[1] : group[0]);
  }
  std::vector<int32_t> groups(of_group.size()), order;
  std::iota(groups.begin(), groups.end(), 0);
  std::stable_sort(groups.begin(), groups.end(), by_score(of_group));
  groups.resize(static_cast<std::size_t>(rule.groups_per_token));
  std::sort(groups.begin(), groups.end());
  for (const int32_t g : groups) {
    for (std::size_t i = 0; i < size; ++i) order.push_back(static_cast<int32_t>(static_cast<std::size_t>(g) * size + i));
  }
  std::stable_sort(order.begin(), order.end(), by_score(corrected));
  order.resize(static_cast<std::size_t>(rule.experts_per_token));
  std::sort(order.begin(), order.end());
  double sum = 0;
  for (const int32_t e : order) sum += scores[static_cast<std::size_t>(e)];
  Choice choice{order, {}};
  for (const int32_t e : order) {
    choice.weights.push_back(
        static_cast<float>(scores[static_cast<std::size_t>(e)] / (rule.normalize ? sum : 1) * static_cast<double>(rule.scale)));
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

TEST(ExpertRouting, ChoosesFromTheBestGroups) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  for (int trial = 0; trial < 200; ++trial) {
    RoutingRule rule{24, 4, trial % 2 == 0 ? Scoring::kSoftmax : Scoring::kSigmoid, trial % 3 == 0, 2.5f};
    rule.num_groups = 6;
    rule.groups_per_token = 1 + trial % 6;
    rule.group_score = trial % 5 < 2 ? RoutingRule::GroupScore::kLargest : RoutingRule::GroupScore::kTwoLargest;
    std::vector<float> logits(24);
    for (float& logit : logits) logit = normal(random);
    if (trial % 4 != 0) {
      for (int e = 0; e < 24; ++e) rule.correction.push_back(0.3f * normal(random));
    }
    const Choice got = route(rule, logits), want = reference(rule, logits);
    EXPECT_EQ(got.experts, want.experts) << trial;
    for (std::size_t i = 0; i < want.weights.size(); ++i) EXPECT_NEAR(got.weights[i], want.weights[i], 1e-5f * want.weights[i]);
  }
}

// A correction moves the choice, never the weights.
TEST(ExpertRouting, WeightsAreThoseOfTheLogits) {
  RoutingRule rule{4, 1, Scoring::kSigmoid, false, 1.0f};
  rule.correction = {0, 0, 1, 0};
  const Choice choice = route(rule, {3.0f, 0.0f, -1.0f, 0.0f});
  EXPECT_EQ(choice.experts, (std::vector<int32_t>{2}));
  EXPECT_FLOAT_EQ(choice.weights[0], 1 / (1 + std::exp(1.0f)));
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
  for (const std::vector<float>& logits :
       {std::vector<float>{nan, nan, nan, nan}, {nan, 1, 2, nan}, {infinity, -infinity, infinity, 0}, {1e30f, -1e30f, 1e30f, 0}}) {
    RoutingRule grouped{4, 2, Scoring::kSigmoid, true, 1.0f};
    grouped.num_groups = 2;
    const Choice of_group = route(grouped, logits);
    EXPECT_EQ(of_group.experts[0] + 1, of_group.experts[1]);
    EXPECT_TRUE(of_group.experts[0] == 0 || of_group.experts[0] == 2);
    const Choice choice = route({4, 3, Scoring::kSoftmax, true, 1.0f}, logits);
    EXPECT_EQ(std::set<int32_t>(choice.experts.begin(), choice.experts.end()).size(), 3u);
    for (const int32_t expert : choice.experts) EXPECT_TRUE(expert >= 0 && expert < 4);
  }
}

}  // namespace
}  // namespace millrace
