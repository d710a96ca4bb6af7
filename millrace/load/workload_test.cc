#include "millrace/load/workload.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace millrace {
namespace {

int64_t num_words_of(const std::string& text) { return std::count(text.begin(), text.end(), ' ') + (text.empty() ? 0 : 1); }

TEST(Workload, IsAFunctionOfTheSeed) {
  const Workload a({.seed = 1}), same({.seed = 1}), other({.seed = 2});
  EXPECT_EQ(a.request(0, 3).prompt, same.request(0, 3).prompt);
  std::set<std::string> prompts{other.request(0, 3).prompt};
  for (int64_t point = 0; point < 3; ++point) {
    for (int64_t index = 0; index < 50; ++index) prompts.insert(a.request(point, index).prompt);
  }
  EXPECT_EQ(prompts.size(), 151u);
  EXPECT_DOUBLE_EQ(a.arrival_gap_s(0, 5, 2), same.arrival_gap_s(0, 5, 2));
}

TEST(Workload, PromptsHaveTheTokensAskedFor) {
  Workload workload({.prompt_tokens = 100, .output_tokens = 7});
  EXPECT_EQ(num_words_of(workload.request(0, 0).prompt), 100);
  EXPECT_EQ(workload.request(0, 0).output_tokens, 7);
  workload.set_scale({.per_word = 2.5, .extra = 10});
  EXPECT_EQ(num_words_of(workload.request(0, 0).prompt), 36);
  EXPECT_EQ(workload.request(0, 0).prompt_tokens, 100);
}

TEST(Workload, SharesThePrefixAndNothingElse) {
  const Workload workload({.prompt_tokens = 20, .shared_prefix_tokens = 50});
  const std::string a = workload.request(0, 0).prompt, b = workload.request(1, 7).prompt;
  EXPECT_EQ(num_words_of(a), 70);
  const auto differ = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first;
  const int64_t num_common = std::count(a.begin(), differ, ' ');
  EXPECT_GE(num_common, 50);
  EXPECT_LE(num_common, 55);  // the next words are equal by chance at most
}

TEST(Workload, TakesWordsOfAText) {
  const Workload workload({.prompt_tokens = 5, .words = {"a", "b", "c"}});
  EXPECT_NE(std::string("a b c a b c a b c").find(workload.request(0, 0).prompt), std::string::npos);
}

TEST(Workload, ShareGptLengthsKeepTheirLimitsAndMeans) {
  const Workload workload({.lengths = Lengths::kShareGpt});
  constexpr int64_t kNumRequests = 20000;
  double prompt_sum = 0, output_sum = 0;
  for (int64_t i = 0; i < kNumRequests; ++i) {
    const PlannedRequest request = workload.request(0, i);
    ASSERT_GE(request.prompt_tokens, 4);
    ASSERT_LE(request.prompt_tokens, 1024);
    ASSERT_GE(request.output_tokens, 4);
    ASSERT_LE(request.prompt_tokens + request.output_tokens, 2048);
    prompt_sum += static_cast<double>(request.prompt_tokens);
    output_sum += static_cast<double>(request.output_tokens);
  }
  EXPECT_NEAR(prompt_sum / kNumRequests, 215, 5);
  EXPECT_NEAR(output_sum / kNumRequests, 198, 4);
}

TEST(Workload, ArrivalsAreAPoissonProcess) {
  const Workload workload({});
  constexpr int kNumGaps = 20000;
  double sum = 0, squares = 0;
  for (int i = 0; i < kNumGaps; ++i) {
    const double gap = workload.arrival_gap_s(0, i, 4);
    ASSERT_GE(gap, 0);
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / kNumGaps;
  EXPECT_NEAR(mean, 0.25, 0.01);
  EXPECT_NEAR(std::sqrt(squares / kNumGaps - mean * mean), 0.25, 0.01);  // an exponential's deviation is its mean
}

TEST(Workload, NamesAFileItCannotUse) {
  EXPECT_NE(read_words("/nonexistent/text").status().message().find("/nonexistent/text"), std::string::npos);
}

}  // namespace
}  // namespace millrace
