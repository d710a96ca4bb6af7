#include "millrace/quality/divergence.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace millrace {
namespace {

std::vector<float> random_logits(std::size_t count, uint64_t seed, float spread) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(engine);
  return logits;
}

// The judge: the definition, in long double.
std::vector<long double> log_softmax(std::span<const float> logits) {
  long double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<long double>(logit));
  std::vector<long double> out;
  for (const float logit : logits) out.push_back(logit - std::log(sum));
  return out;
}

TEST(Divergence, IsTheDefinition) {
  for (const std::size_t vocab_size : {1u, 2u, 5u, 1023u, 1024u, 1025u, 3001u}) {
    for (const float spread : {0.1f, 3.0f}) {
      SCOPED_TRACE(testing::Message() << vocab_size << " tokens, spread " << spread);
      const auto r = random_logits(vocab_size, vocab_size, spread), noise = random_logits(vocab_size, vocab_size + 1, 0.05f);
      std::vector<float> c = r;
      for (std::size_t i = 0; i < c.size(); ++i) c[i] += noise[i];
      const auto p = log_softmax(r), q = log_softmax(c);
      long double kl = 0, difference = 0;
      for (std::size_t i = 0; i < p.size(); ++i) {
        kl += std::exp(p[i]) * (p[i] - q[i]);
        difference = std::max<long double>(difference, std::abs(r[i] - c[i]));
      }
      const auto target = static_cast<int32_t>(vocab_size / 2);
      const RowDivergence row = compare_rows({r, false}, c, target);
      EXPECT_NEAR(row.kl, static_cast<double>(kl), 2e-7);
      EXPECT_NEAR(row.nll, static_cast<double>(-q[static_cast<std::size_t>(target)]), 1e-6);
      EXPECT_NEAR(row.reference_nll, static_cast<double>(-p[static_cast<std::size_t>(target)]), 1e-6);
      EXPECT_NEAR(negative_log_likelihood(c, target), row.nll, 1e-12);
      EXPECT_NEAR(row.max_difference, static_cast<double>(difference), 1e-6);
      EXPECT_EQ(row.same_top, std::max_element(r.begin(), r.end()) - r.begin() == std::max_element(c.begin(), c.end()) - c.begin());
    }
  }
}

TEST(Divergence, OfEqualDistributionsIsNothing) {
  const auto r = random_logits(5000, 1, 3.0f);
  const RowDivergence same = compare_rows({r, false}, r, 7);
  EXPECT_NEAR(same.kl, 0, 1e-15);
  EXPECT_TRUE(same.same_top);
  EXPECT_EQ(same.max_difference, 0);
  // A shift of all logits changes no probability. In eighths, so that it is exact.
  std::vector<float> coarse, shifted;
  for (const float logit : r) coarse.push_back(std::round(logit * 8) / 8);
  for (const float logit : coarse) shifted.push_back(logit + 24);
  EXPECT_NEAR(compare_rows({coarse, false}, shifted, 7).kl, 0, 1e-12);
}

TEST(Divergence, LogProbabilitiesCountFromMinus16On) {
  // Three tokens that the file knows and one that it clamped, to which the model gives a tenth: only the three count, unnormalized.
  const std::vector<float> reference{std::log(0.5f), std::log(0.3f), std::log(0.2f), -16.0f};
  const std::vector<float> logits{std::log(0.4f) + 3, std::log(0.3f) + 3, std::log(0.2f) + 3, std::log(0.1f) + 3};
  const RowDivergence row = compare_rows({reference, true}, logits, 3);
  EXPECT_NEAR(row.kl, 0.5 * std::log(0.5 / 0.4), 1e-6);
  EXPECT_NEAR(row.reference_nll, 16, 1e-6);
  EXPECT_NEAR(row.nll, -std::log(0.1), 1e-6);
  EXPECT_NEAR(row.max_difference, std::log(0.5 / 0.4), 1e-6);
  EXPECT_TRUE(row.same_top);
}

TEST(Divergence, OfEqualTopsTheFirstCounts) {
  const std::vector<float> reference{1, 2, 2, 0}, first{0, 3, 3, 3}, second{0, 1, 2, 2};
  EXPECT_TRUE(compare_rows({reference, false}, first, 0).same_top);
  EXPECT_FALSE(compare_rows({reference, false}, second, 0).same_top);
}

TEST(Estimate, HasTheStandardErrorOfTheMean) {
  const std::vector<double> values{1, 2, 3, 4}, others{0, 2, 2, 4};
  EXPECT_DOUBLE_EQ(estimate(values).mean, 2.5);
  EXPECT_DOUBLE_EQ(estimate(values).standard_error, std::sqrt(5.0 / 3 / 4));
  EXPECT_DOUBLE_EQ(estimate_difference(values, others).mean, 0.5);
  EXPECT_DOUBLE_EQ(estimate_difference(values, others).standard_error, std::sqrt(1.0 / 3 / 4));
  EXPECT_EQ(estimate(std::vector<double>{5}).standard_error, 0);
  EXPECT_EQ(estimate({}).mean, 0);
}

TEST(Quantile, InterpolatesBetweenNeighbours) {
  const std::vector<double> sorted{1, 2, 4, 8};
  EXPECT_DOUBLE_EQ(quantile(sorted, 0), 1);
  EXPECT_DOUBLE_EQ(quantile(sorted, 0.5), 3);
  EXPECT_DOUBLE_EQ(quantile(sorted, 1), 8);
  EXPECT_DOUBLE_EQ(quantile(sorted, 0.9), 6.8);
  EXPECT_DOUBLE_EQ(quantile(std::vector<double>{3}, 0.99), 3);
}

}  // namespace
}  // namespace millrace
