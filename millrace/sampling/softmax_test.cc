#include "millrace/sampling/softmax.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace millrace {
namespace {

TEST(Softmax, WeightsMatchExp) {
  std::vector<float> logits;
  for (int i = 0; i <= 87 * 64; ++i) logits.push_back(-static_cast<float>(i) / 64.0f);
  std::vector<float> weights(logits.size());
  softmax_weights(logits, 0.0f, 1.0f, weights);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double exact = std::exp(static_cast<double>(logits[i]));
    EXPECT_NEAR(weights[i] / exact, 1.0, 2.0 * std::numeric_limits<float>::epsilon()) << logits[i];
  }
}

TEST(Softmax, ExtremesAreOneAndZero) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (std::size_t size = 1; size <= 9; ++size) {  // vectors and tails
    std::vector<float> logits(size, -kInfinity), weights(size, 7.0f);
    logits.back() = 3e30f;
    softmax_weights(logits, 3e30f, 1.0f / 1e-5f, weights);
    for (std::size_t i = 0; i + 1 < size; ++i) EXPECT_EQ(weights[i], 0.0f);
    EXPECT_EQ(weights.back(), 1.0f);
  }
}

TEST(Softmax, FindsNonFiniteValuesAnywhere) {
  for (std::size_t size = 1; size <= 17; ++size) {
    std::vector<float> values(size, 3e38f);
    EXPECT_TRUE(all_finite(values));
    for (std::size_t i = 0; i < size; ++i) {
      for (const float bad :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
        std::vector<float> spoiled = values;
        spoiled[i] = bad;
        EXPECT_FALSE(all_finite(spoiled)) << size << " " << i << " " << bad;
      }
    }
  }
}

TEST(Softmax, SumsAndMaximaCoverEveryElement) {
  std::mt19937 random(5);
  for (std::size_t size = 1; size <= 40; ++size) {
    std::vector<float> values(size);
    for (float& value : values) value = -static_cast<float>(random() % 1000);
    double sum = 0;
    float best = values[0];
    for (const float value : values) sum += static_cast<double>(value), best = std::max(best, value);
    EXPECT_EQ(ordered_sum(values), sum);  // integers: exact
    EXPECT_EQ(largest(values), best);
  }
}

}  // namespace
}  // namespace millrace
