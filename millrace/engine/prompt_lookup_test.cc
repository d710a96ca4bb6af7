#include "millrace/engine/prompt_lookup.h"

#include <gtest/gtest.h>

#include <random>

namespace millrace {
namespace {

using Tokens = std::vector<int32_t>;

struct Watched {
  PromptLookup lookup;
  DraftAcceptance own{.98}, all{.995};

  explicit Watched(int64_t ngram_min = 2) : lookup(ngram_min) {}
  void extend(const Tokens& tokens, int64_t num_prompt_tokens) { lookup.extend(tokens, num_prompt_tokens, own, all); }
  Tokens draft(Tokens tokens, int64_t count) const {
    const std::size_t size = tokens.size();
    if (lookup.match_length() > 0) lookup.draft(tokens, count);
    return {tokens.begin() + static_cast<std::ptrdiff_t>(size), tokens.end()};
  }
};

TEST(PromptLookup, GoesOnAsTheSameTokensWentOnBefore) {
  Watched watched;
  const Tokens tokens = {1, 2, 3, 4, 5, 6, 9, 2, 3};
  watched.extend(tokens, 9);
  EXPECT_EQ(watched.lookup.match_length(), 2);
  EXPECT_EQ(watched.draft(tokens, 4), (Tokens{4, 5, 6, 9}));
}

TEST(PromptLookup, PrefersTheLongestMatchAndThenTheLast) {
  Watched watched;
  Tokens tokens = {7, 1, 2, 30, 8, 1, 2, 31, 9, 1, 2, 32, 8, 1, 2};
  watched.extend(tokens, 15);
  EXPECT_EQ(watched.lookup.match_length(), 3);
  EXPECT_EQ(watched.draft(tokens, 1), Tokens{31});  // after 8 1 2, though 1 2 was last followed by 32
  Watched other;
  tokens = {7, 1, 2, 30, 8, 1, 2, 31, 9, 1, 2};
  other.extend(tokens, 11);
  EXPECT_EQ(other.draft(tokens, 1), Tokens{31});
}

TEST(PromptLookup, PredictsALoopForEver) {
  Watched watched;
  const Tokens tokens = {5, 1, 2, 3, 1, 2, 3};
  watched.extend(tokens, 7);
  EXPECT_EQ(watched.draft(tokens, 8), (Tokens{1, 2, 3, 1, 2, 3, 1, 2}));
}

TEST(PromptLookup, HasNothingToSayWithoutAMatch) {
  Watched watched;
  for (Tokens tokens : {Tokens{1}, Tokens{1, 2}, Tokens{1, 2, 3, 4, 5}, Tokens{1, 2, 3, 4, 5, 1}}) {
    watched.extend(tokens, 6);
    EXPECT_EQ(watched.lookup.match_length(), 0);
    EXPECT_TRUE(watched.draft(tokens, 3).empty());
  }
}

TEST(PromptLookup, FollowsAMatchWhileItIsRightAndLooksAgainWhenItIsWrong) {
  Watched watched;
  Tokens tokens = {1, 2, 3, 4, 5, 6, 7, 8, 50, 4, 60, 1, 2};
  const int64_t num_prompt_tokens = 13;
  watched.extend(tokens, num_prompt_tokens);
  for (const int32_t next : {3, 4, 5}) {
    EXPECT_EQ(watched.draft(tokens, 1), Tokens{next});
    tokens.push_back(next);
    watched.extend(tokens, num_prompt_tokens);
  }
  EXPECT_EQ(watched.lookup.match_length(), 5);
  tokens.push_back(8);  // not 6
  watched.extend(tokens, num_prompt_tokens);
  EXPECT_EQ(watched.lookup.match_length(), 0);
  tokens.push_back(50);
  watched.extend(tokens, num_prompt_tokens);
  EXPECT_EQ(watched.draft(tokens, 2), (Tokens{4, 60}));
}

// Three right and one wrong after long matches: what was seen outweighs what is usual, and the other's prior where nothing was.
TEST(PromptLookup, CountsWhatItPredicts) {
  DraftAcceptance own(1), all(1);
  const double usual = own.probability(20);
  for (int i = 0; i < 100; ++i) own.observe(20, i % 4 == 0), all.observe(2, true);
  EXPECT_NEAR(own.probability(20), .25, .05);
  EXPECT_LT(own.probability(20), usual);
  EXPECT_GT(own.probability(2, &all), .9);
  EXPECT_LT(own.probability(2), .5);
}

// The judge looks at every place; the chains look at no more than the most recent ones, so the texts here are short.
TEST(PromptLookup, AgreesWithAnExhaustiveSearch) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    const int64_t ngram_min = 1 + static_cast<int64_t>(random() % 3);
    Tokens tokens(1 + random() % 30);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 3);
    Watched watched(ngram_min);
    watched.extend(tokens, static_cast<int64_t>(tokens.size()));
    int64_t longest = 0, source = 0;
    const auto size = static_cast<int64_t>(tokens.size());
    for (int64_t place = size - 2; place >= 0; --place) {
      int64_t length = 0;
      while (length <= place && length < 16 &&
             tokens[static_cast<std::size_t>(place - length)] == tokens[static_cast<std::size_t>(size - 1 - length)])
        ++length;
      if (length >= ngram_min && length > longest) longest = length, source = place + 1;
    }
    ASSERT_EQ(watched.lookup.match_length(), longest) << "round " << round;
    if (longest > 0) {
      ASSERT_EQ(watched.draft(tokens, 1), Tokens{tokens[static_cast<std::size_t>(source)]}) << "round " << round;
    }
  }
}

// Given piece by piece or at once, and over the growth of its table.
TEST(PromptLookup, DoesNotDependOnHowTheTokensCame) {
  std::mt19937 random(4);
  Tokens tokens(1500);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 40);
  Watched pieces, whole;
  for (std::size_t size = 0; size < tokens.size();) {
    size = std::min(tokens.size(), size + 1 + random() % 7);
    pieces.extend(Tokens(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(size)), 200);
  }
  whole.extend(tokens, 200);
  EXPECT_EQ(pieces.lookup.match_length(), whole.lookup.match_length());
  EXPECT_EQ(pieces.draft(tokens, 5), whole.draft(tokens, 5));
  EXPECT_EQ(pieces.own.probability(2), whole.own.probability(2));
}

}  // namespace
}  // namespace millrace
