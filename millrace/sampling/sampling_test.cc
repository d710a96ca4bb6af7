#include "millrace/sampling/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "millrace/sampling/reference_sampler.h"

namespace millrace {
namespace {

std::vector<float> random_logits(std::size_t size, uint32_t seed, float spread, bool coarse = false) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(size);
  for (float& logit : logits) logit = coarse ? std::round(normal(random)) : normal(random);  // coarse: many ties
  return logits;
}

SampledToken sample_once(const std::vector<float>& logits, const SamplingInput& input) {
  SamplingScratch scratch;
  SampledToken token;
  sample(logits, input, scratch, token);
  return token;
}

TEST(Sampling, MatchesBruteForce) {
  std::mt19937 random(42);
  SamplingScratch scratch;  // reused on purpose: nothing may leak from one draw to the next
  int compared = 0, undecided = 0;
  for (int round = 0; round < 4000; ++round) {
    const std::size_t vocab_size = std::vector<std::size_t>{1, 2, 5, 31, 32, 33, 100, 257, 1000, 3000}[random() % 10];
    const std::vector<float> logits = random_logits(vocab_size, random(), 0.5f + static_cast<float>(random() % 40) / 10, random() % 4 == 0);
    SamplingParams params;
    const auto sometimes = [&] { return random() % 2 == 0; };
    const auto some_id = [&] { return static_cast<int32_t>(random() % vocab_size); };
    params.temperature = std::vector<float>{0, 0.1f, 0.7f, 1, 1.5f, 10}[random() % 6];
    if (sometimes()) params.top_k = std::vector<int32_t>{-1, 0, 1, 2, 7, 40, 100, 1000, 1 << 30}[random() % 9];
    if (sometimes()) params.top_p = std::vector<float>{1e-6f, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f, 1}[random() % 7];
    if (sometimes()) params.min_p = std::vector<float>{0, 0.01f, 0.05f, 0.3f, 1}[random() % 5];
    if (random() % 4 == 0) params.repetition_penalty = std::vector<float>{0.5f, 1.1f, 2}[random() % 3];
    if (random() % 4 == 0) params.presence_penalty = 0.7f;
    if (random() % 4 == 0) params.frequency_penalty = -0.4f;
    if (random() % 4 == 0) params.logit_bias = {{some_id(), 3.0f}, {some_id(), -100.0f}};
    std::vector<int32_t> prompt, completion, forbidden;
    for (int i = 0; i < 20; ++i) prompt.push_back(some_id()), completion.push_back(some_id());
    if (random() % 4 == 0) forbidden = {some_id(), some_id()};
    std::vector<uint32_t> allowed;
    if (random() % 4 == 0) {
      for (std::size_t word = 0; word < (vocab_size + 31) / 32; ++word) allowed.push_back(static_cast<uint32_t>(random()));
    }
    const SamplingInput input{&params, random(), random() % 4, static_cast<uint64_t>(round), prompt, completion, allowed, forbidden};

    SampledToken token;
    sample(logits, input, scratch, token);
    const ReferenceSampler reference(logits, input);
    if (reference.survivors().tokens.empty()) {
      EXPECT_EQ(token.id, -1);
      continue;
    }
    const auto expected = reference.drawn();
    if (!expected) {
      ++undecided;
      continue;
    }
    ASSERT_EQ(token.id, expected->id) << "round " << round;
    ++compared;
  }
  EXPECT_GT(compared, 3300);
  EXPECT_LT(undecided, 400);
}

TEST(Sampling, GreedyTakesTheLowestOfEqualIds) {
  SamplingParams params;
  params.temperature = 0;
  const SamplingInput input{.params = &params};
  EXPECT_EQ(sample_once({1, 3, 2, 3, 3}, input).id, 1);
  EXPECT_EQ(sample_once({-5, -5}, input).id, 0);
  EXPECT_EQ(sample_once({7}, input).id, 0);
}

TEST(Sampling, TopKKeepsExactlyKOfEqualLogits) {
  SamplingParams params;
  params.top_k = 3;
  const std::vector<float> logits(500, 1.0f);
  std::set<int32_t> drawn;
  for (uint64_t position = 0; position < 200; ++position) {
    drawn.insert(sample_once(logits, {.params = &params, .seed = 9, .position = position}).id);
  }
  EXPECT_EQ(drawn, (std::set<int32_t>{0, 1, 2}));
}

TEST(Sampling, TopPKeepsTheSmallestSufficientSetOfEqualLogits) {
  SamplingParams params;
  params.top_p = 0.245f;  // of 20 equal tokens, 5 hold a quarter and 4 a fifth
  const std::vector<float> logits(20, -2.0f);
  std::set<int32_t> drawn;
  for (uint64_t position = 0; position < 400; ++position) {
    drawn.insert(sample_once(logits, {.params = &params, .seed = 9, .position = position}).id);
  }
  EXPECT_EQ(drawn, (std::set<int32_t>{0, 1, 2, 3, 4}));
}

TEST(Sampling, TopKOfOneAndTinyTopPAreGreedy) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    const std::vector<float> logits = random_logits(700, seed, 1.0f);
    SamplingParams greedy, one, tiny, strict;
    greedy.temperature = 0;
    one.top_k = 1;
    tiny.top_p = 1e-9f;
    strict.min_p = 1.0f;
    const int32_t expected = sample_once(logits, {.params = &greedy}).id;
    for (const SamplingParams* params : {&one, &tiny, &strict})
      EXPECT_EQ(sample_once(logits, {.params = params, .seed = seed}).id, expected);
  }
}

TEST(Sampling, FrequenciesFollowTheProbabilities) {
  constexpr int kDraws = 20000;
  const std::vector<float> logits = {1.0f, 0.5f, 0.0f, -0.5f, -1.0f, 1.5f, 0.2f, 0.1f, -0.1f, -0.2f};
  for (const int32_t top_k : {0, 6}) {
    for (const float top_p : {1.0f, 0.9f}) {
      SamplingParams params;
      params.temperature = 0.8f;
      params.top_k = top_k;
      params.top_p = top_p;
      SamplingInput input{.params = &params, .seed = 1234};
      const Survivors survivors = ReferenceSampler(logits, input).survivors();
      std::map<int32_t, int> counts;
      for (int i = 0; i < kDraws; ++i) {
        input.sequence = static_cast<uint64_t>(i % 4);
        input.position = static_cast<uint64_t>(i / 4);
        ++counts[sample_once(logits, input).id];
      }
      double chi_square = 0;
      int covered = 0;
      for (const auto& [id, logit, probability] : survivors.tokens) {
        const double expected = probability * kDraws;
        chi_square += (counts[id] - expected) * (counts[id] - expected) / expected;
        covered += counts[id];
      }
      EXPECT_EQ(covered, kDraws) << "a token outside the set was drawn";
      EXPECT_LT(chi_square, 27.88) << "top_k " << top_k << " top_p " << top_p;  // 9 degrees of freedom, one in a thousand
    }
  }
}

TEST(Sampling, NonFiniteLogitsAreReported) {
  SamplingParams params;
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    std::vector<float> logits(50, 0.0f);
    logits[33] = bad;
    const SampledToken token = sample_once(logits, {.params = &params});
    EXPECT_FALSE(token.finite);
    EXPECT_EQ(token.id, -1);
  }
  EXPECT_TRUE(sample_once({3e38f, -3e38f}, {.params = &params}).finite);
}

TEST(Sampling, LogprobsAreOfTheUnmodifiedDistribution) {
  const std::vector<float> logits = random_logits(300, 3, 2.0f);
  SamplingParams params;
  params.temperature = 0.3f;
  params.top_k = 5;
  params.repetition_penalty = 1.5f;
  params.logit_bias = {{17, 50.0f}};
  params.num_logprobs = 4;
  const std::vector<int32_t> completion = {1, 2, 17};
  const SampledToken token = sample_once(logits, {.params = &params, .seed = 5, .completion_tokens = completion});
  EXPECT_EQ(token.id, 17);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  EXPECT_NEAR(token.logprob, logits[17] - std::log(sum), 1e-5);
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  ASSERT_EQ(token.top_logprobs.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(token.top_logprobs[i].first, ids[i]);
    EXPECT_NEAR(token.top_logprobs[i].second, logits[ids[i]] - std::log(sum), 1e-5);
  }
  params.num_logprobs = 0;
  EXPECT_TRUE(sample_once(logits, {.params = &params}).top_logprobs.empty());
  params.num_logprobs = 1000;  // more than there are tokens
  EXPECT_EQ(sample_once(logits, {.params = &params}).top_logprobs.size(), logits.size());
}

TEST(Sampling, AGivenTokenIsScoredInsteadOfDrawn) {
  std::vector<float> logits = random_logits(300, 3, 2.0f);
  logits[40] = logits[20] = logits[30];  // equals: the lower id goes first
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  SamplingParams params;
  params.temperature = 0.3f;
  params.logit_bias = {{17, 50.0f}};
  for (const int32_t num_logprobs : {-1, 0, 3}) {
    params.num_logprobs = num_logprobs;
    for (std::size_t rank = 0; rank < ids.size(); ++rank) {
      const SampledToken token = sample_once(logits, {.params = &params, .given = ids[rank]});
      EXPECT_EQ(token.id, ids[rank]);
      EXPECT_EQ(token.rank, static_cast<int64_t>(rank) + 1);
      EXPECT_NEAR(token.logprob, logits[ids[rank]] - std::log(sum), 1e-5);
      ASSERT_EQ(token.top_logprobs.size(), static_cast<std::size_t>(std::max(0, num_logprobs)));
      for (std::size_t i = 0; i < token.top_logprobs.size(); ++i) EXPECT_EQ(token.top_logprobs[i].first, ids[i]);
    }
  }
  logits[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(sample_once(logits, {.params = &params, .given = 1}).finite);
}

TEST(Sampling, HugeParametersStayFinite) {
  const std::vector<float> logits = {1e30f, -1e30f, 2.0f, 0.0f};
  SamplingParams params;
  params.repetition_penalty = 1e-30f;
  params.frequency_penalty = 1e30f;
  params.temperature = 1e30f;
  const std::vector<int32_t> tokens = {0, 1, 2, 3};
  for (uint64_t position = 0; position < 20; ++position) {
    const SampledToken token =
        sample_once(logits, {.params = &params, .position = position, .prompt_tokens = tokens, .completion_tokens = tokens});
    EXPECT_GE(token.id, 0);
    EXPECT_LT(token.id, 4);
  }
}

}  // namespace
}  // namespace millrace
