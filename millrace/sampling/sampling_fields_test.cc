#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "millrace/sampling/logit_changes.h"
#include "millrace/sampling/reference_sampler.h"

// Every field of SamplingParams against the judge, alone over the whole of its range and with all others.
namespace millrace {
namespace {

template <class T>
T one_of(std::mt19937& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

// What a draw is made of, besides the parameters.
struct Situation {
  std::vector<float> logits;
  std::vector<int32_t> prompt, completion, forbidden;
  std::vector<uint32_t> allowed;
  uint64_t seed = 0, position = 0;
  std::optional<double> mu;

  int32_t some_id(std::mt19937& random) const { return static_cast<int32_t>(random() % logits.size()); }

  SamplingInput input(const SamplingParams& params) const {
    return {&params, seed, seed % 4, position, prompt, completion, allowed, forbidden, mu};
  }
};

Situation random_situation(std::mt19937& random) {
  Situation situation;
  situation.logits.resize(one_of<std::size_t>(random, {1, 2, 5, 31, 32, 33, 100, 257, 1000, 3000}));
  std::normal_distribution<float> normal(0, 0.5f + static_cast<float>(random() % 40) / 10);
  const bool coarse = random() % 3 == 0, equal = random() % 20 == 0;
  for (float& logit : situation.logits) logit = equal ? 1.0f : coarse ? std::round(normal(random)) : normal(random);
  // Few distinct tokens, so that sequences of them repeat.
  const uint32_t num_distinct = 1 + random() % 6;
  for (uint32_t i = random() % 30; i > 0; --i)
    situation.prompt.push_back(static_cast<int32_t>(random() % num_distinct % situation.logits.size()));
  for (uint32_t i = random() % 30; i > 0; --i)
    situation.completion.push_back(static_cast<int32_t>(random() % num_distinct % situation.logits.size()));
  situation.seed = random();
  situation.position = situation.completion.size();
  return situation;
}

struct Field {
  const char* name;
  void (*set)(std::mt19937&, Situation&, SamplingParams&);
};

const Field kFields[] = {
    {"temperature",
     [](auto& random, auto&, auto& params) { params.temperature = one_of(random, {0.0f, 1e-4f, 0.1f, 0.7f, 1.0f, 1.5f, 100.0f}); }},
    {"top_k", [](auto& random, auto&,
                 auto& params) { params.top_k = one_of(random, {-1, 0, 1, 2, 7, 40, 100, 1000, std::numeric_limits<int32_t>::max()}); }},
    {"top_p", [](auto& random, auto&, auto& params) { params.top_p = one_of(random, {1e-6f, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f, 1.0f}); }},
    {"min_p", [](auto& random, auto&, auto& params) { params.min_p = one_of(random, {0.0f, 1e-9f, 0.01f, 0.05f, 0.3f, 1.0f}); }},
    {"typical_p", [](auto& random, auto&, auto& params) { params.typical_p = one_of(random, {1e-6f, 0.1f, 0.5f, 0.9f, 0.999f, 1.0f}); }},
    {"top_n_sigma",
     [](auto& random, auto&, auto& params) { params.top_n_sigma = one_of(random, {-1.0f, 0.0f, 0.01f, 0.5f, 1.0f, 2.0f, 100.0f}); }},
    {"xtc",
     [](auto& random, auto&, auto& params) {
       params.xtc_probability = one_of(random, {0.0f, 0.3f, 0.7f, 1.0f});
       params.xtc_threshold = one_of(random, {0.0f, 1e-3f, 0.04f, 0.1f, 0.3f, 0.5f, 0.6f, 1.0f});
     }},
    {"dry",
     [](auto& random, auto&, auto& params) {
       params.dry_multiplier = one_of(random, {0.0f, 0.8f, 3.0f, 100.0f});
       params.dry_base = one_of(random, {1.0f, 1.1f, 1.75f, 100.0f});
       params.dry_allowed_length = one_of(random, {1, 2, 4, 50});
       params.dry_penalty_last_n = one_of(random, {-1, -1, 0, 1, 2, 17, std::numeric_limits<int32_t>::max()});
       if (random() % 2 == 0) params.dry_breakers = std::make_shared<const std::vector<int32_t>>(std::vector<int32_t>{0, 3});
     }},
    {"mirostat",
     [](auto& random, auto& situation, auto& params) {
       params.mirostat = 2;
       params.mirostat_tau = one_of(random, {0.0f, 1.0f, 5.0f, 100.0f});
       params.mirostat_eta = one_of(random, {0.0f, 0.1f, 1.0f});
       if (random() % 2 == 0) situation.mu = one_of(random, {-50.0, 0.0, 0.7, 3.0, 9.5, 1e6});
     }},
    {"repetition_penalty",
     [](auto& random, auto&, auto& params) { params.repetition_penalty = one_of(random, {1e-3f, 0.5f, 1.1f, 2.0f, 100.0f}); }},
    {"presence_penalty", [](auto& random, auto&, auto& params) { params.presence_penalty = one_of(random, {-2.0f, -0.5f, 0.7f, 2.0f}); }},
    {"frequency_penalty", [](auto& random, auto&, auto& params) { params.frequency_penalty = one_of(random, {-2.0f, -0.4f, 0.3f, 2.0f}); }},
    {"logit_bias",
     [](auto& random, auto& situation, auto& params) {
       for (uint32_t i = random() % 4; i > 0; --i)
         params.logit_bias.emplace_back(situation.some_id(random), one_of(random, {-100.0f, -1.0f, 3.0f, 100.0f}));
     }},
    {"allowed_token_ids",
     [](auto& random, auto& situation, auto& params) {
       for (uint32_t i = 1 + random() % 9; i > 0; --i) params.allowed_token_ids.push_back(situation.some_id(random));  // at times one twice
     }},
    {"bad_words",
     [](auto& random, auto& situation, auto& params) {
       for (uint32_t i = 1 + random() % 5; i > 0; --i) {
         std::vector<int32_t> word;
         // The end of the completion, at times, and a likely token behind it.
         const std::size_t before = std::min<std::size_t>(random() % 4, situation.completion.size());
         word.assign(situation.completion.end() - static_cast<std::ptrdiff_t>(before), situation.completion.end());
         if (before > 0 && random() % 3 == 0) word[0] = situation.some_id(random);
         const auto best = std::max_element(situation.logits.begin(), situation.logits.end()) - situation.logits.begin();
         word.push_back(random() % 2 == 0 ? static_cast<int32_t>(best) : situation.some_id(random));
         params.bad_words.push_back(word);
       }
     }},
    {"forbidden",
     [](auto& random, auto& situation, auto&) { situation.forbidden = {situation.some_id(random), situation.some_id(random)}; }},
    {"allowed",
     [](auto& random, auto& situation, auto&) {
       for (std::size_t word = 0; word < (situation.logits.size() + 31) / 32; ++word)
         situation.allowed.push_back(static_cast<uint32_t>(random()));
     }},
};

struct Tally {
  int compared = 0, undecided = 0, empty = 0;
};

void compare_with_judge(const Situation& situation, const SamplingParams& params, SamplingScratch& scratch, Tally& tally) {
  const SamplingInput input = situation.input(params);
  SampledToken token;
  sample(situation.logits, input, scratch, token);
  const ReferenceSampler reference(situation.logits, input);
  if (reference.survivors().tokens.empty()) {
    ASSERT_EQ(token.id, -1);
    ++tally.empty;
    return;
  }
  const auto expected = reference.drawn();
  if (!expected) {
    ASSERT_GE(token.id, 0);
    ASSERT_LT(token.id, static_cast<int32_t>(situation.logits.size()));
    ++tally.undecided;
    return;
  }
  ASSERT_EQ(token.id, expected->id);
  if (params.mirostat == 2 && params.temperature > 0) {
    ASSERT_NEAR(token.mirostat_mu, reference.next_mu(*expected), 1e-4 * (1 + std::abs(token.mirostat_mu)));
  }
  ++tally.compared;
}

TEST(SamplingFields, EachMatchesTheJudgeAlone) {
  for (const Field& field : kFields) {
    SCOPED_TRACE(field.name);
    std::mt19937 random(7);
    SamplingScratch scratch;  // reused on purpose: nothing may leak from one draw to the next
    Tally tally;
    for (int round = 0; round < 1000; ++round) {
      SCOPED_TRACE(round);
      Situation situation = random_situation(random);
      SamplingParams params;
      field.set(random, situation, params);
      ASSERT_NO_FATAL_FAILURE(compare_with_judge(situation, params, scratch, tally));
    }
    EXPECT_GT(tally.compared, 700) << tally.undecided << " undecided, " << tally.empty << " without any token";
  }
}

TEST(SamplingFields, EveryPairMatchesTheJudge) {
  std::mt19937 random(8);
  SamplingScratch scratch;
  for (const Field& first : kFields) {
    for (const Field& second : kFields) {
      SCOPED_TRACE(testing::Message() << first.name << " and " << second.name);
      Tally tally;
      for (int round = 0; round < 30; ++round) {
        Situation situation = random_situation(random);
        SamplingParams params;
        first.set(random, situation, params);
        second.set(random, situation, params);
        ASSERT_NO_FATAL_FAILURE(compare_with_judge(situation, params, scratch, tally));
      }
      EXPECT_GT(tally.compared + tally.empty, 12);
    }
  }
}

TEST(SamplingFields, AnyCombinationMatchesTheJudge) {
  std::mt19937 random(9);
  SamplingScratch scratch;
  Tally tally;
  for (int round = 0; round < 6000; ++round) {
    SCOPED_TRACE(round);
    Situation situation = random_situation(random);
    SamplingParams params;
    for (const Field& field : kFields) {
      if (random() % 4 == 0) field.set(random, situation, params);
    }
    ASSERT_NO_FATAL_FAILURE(compare_with_judge(situation, params, scratch, tally));
  }
  EXPECT_GT(tally.compared, 4000) << tally.undecided << " undecided, " << tally.empty << " without any token";
}

TEST(SamplingFields, ExtremeNumbersGiveATokenOrSayThatTheyAreNotFinite) {
  std::mt19937 random(10);
  SamplingScratch scratch;
  SampledToken token;
  for (int round = 0; round < 3000; ++round) {
    Situation situation = random_situation(random);
    const bool broken = random() % 2 == 0;
    for (int i = 0; i < 3; ++i) situation.logits[random() % situation.logits.size()] = one_of(random, {3e38f, -3e38f, 1e-40f, 0.0f});
    if (broken) {
      constexpr float kInfinity = std::numeric_limits<float>::infinity();
      situation.logits[random() % situation.logits.size()] =
          one_of(random, {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity});
    }
    SamplingParams params;
    for (const Field& field : kFields) {
      const std::string_view name = field.name;
      if (random() % 3 == 0 && name != "forbidden" && name != "allowed" && name != "bad_words") field.set(random, situation, params);
    }
    sample(situation.logits, situation.input(params), scratch, token);
    EXPECT_EQ(token.finite, !broken);
    if (broken) continue;
    ASSERT_GE(token.id, 0);
    ASSERT_LT(token.id, static_cast<int32_t>(situation.logits.size()));
    if (!params.allowed_token_ids.empty()) {
      EXPECT_TRUE(std::count(params.allowed_token_ids.begin(), params.allowed_token_ids.end(), token.id) > 0);
    }
    ASSERT_TRUE(std::isfinite(token.mirostat_mu));
  }
}

TEST(SamplingFields, IdsOutsideTheVocabularyAreOfNoEffect) {
  SamplingParams params;
  params.temperature = 0;
  params.logit_bias = {{5, 100.0f}, {-1, 100.0f}};
  params.allowed_token_ids = {99, 1, -3};
  params.bad_words = {{99}};
  const std::vector<int32_t> forbidden = {99, -1};
  SamplingScratch scratch;
  SampledToken token;
  sample(std::vector<float>{3, 2, 1}, {.params = &params, .forbidden = forbidden}, scratch, token);
  EXPECT_EQ(token.id, 1);
}

TEST(SamplingFields, MirostatBringsTheSurpriseToTau) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0, 2);
  SamplingScratch scratch;
  SampledToken token;
  for (const float tau : {2.0f, 4.0f, 6.0f}) {
    SamplingParams params;
    params.mirostat = 2;
    params.mirostat_tau = tau;
    SamplingInput input{.params = &params, .seed = 3};
    double bits = 0;
    constexpr int kDraws = 600;
    for (int i = 0; i < kDraws; ++i) {
      std::vector<float> logits(2000);
      for (float& logit : logits) logit = normal(random);
      input.position = static_cast<uint64_t>(i);
      sample(logits, input, scratch, token);
      const double before = input.mirostat_mu.value_or(2 * tau);
      input.mirostat_mu = token.mirostat_mu;
      if (i >= 100) bits += (before - token.mirostat_mu) / static_cast<double>(params.mirostat_eta) + static_cast<double>(tau);
    }
    EXPECT_NEAR(bits / (kDraws - 100), tau, 0.2);
  }
}

TEST(SamplingFields, XtcActsAsOftenAsAsked) {
  SamplingParams params;
  params.xtc_probability = 0.25f;
  const std::vector<float> logits = {2.0f, 1.9f, 0.0f};  // two top choices, of which the second stays
  SamplingScratch scratch;
  SampledToken token;
  int firsts = 0;
  for (uint64_t position = 0; position < 4000; ++position) {
    sample(logits, {.params = &params, .seed = 1, .position = position}, scratch, token);
    firsts += token.id == 0 ? 1 : 0;
  }
  EXPECT_NEAR(firsts / 4000.0, 0.75 * std::exp(2.0) / (std::exp(2.0) + std::exp(1.9) + 1), 0.03);
}

TEST(LogitChanges, MatchesOfTheEndAreThoseOfBruteForce) {
  std::mt19937 random(12);
  std::vector<int32_t> lengths;
  for (int round = 0; round < 500; ++round) {
    std::vector<int32_t> text(random() % 60);
    for (int32_t& id : text) id = static_cast<int32_t>(random() % (1 + round % 3));
    matches_of_the_end(text, lengths);
    ASSERT_EQ(lengths.size(), text.size());
    for (std::size_t j = 1; j < text.size(); ++j) {
      int32_t expected = 0;
      while (j + static_cast<std::size_t>(expected) < text.size() &&
             text[static_cast<std::size_t>(expected)] == text[j + static_cast<std::size_t>(expected)])
        ++expected;
      ASSERT_EQ(lengths[j], expected);
    }
  }
}

}  // namespace
}  // namespace millrace
