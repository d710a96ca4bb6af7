#include "millrace/engine/suffix_drafter.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

using Tokens = std::vector<int32_t>;

struct Source {
  SuffixSource source{{}, 2};

  void answered(const Tokens& prompt, const Tokens& completion, const DraftOwner& owner = {}) {
    Tokens tokens = prompt;
    tokens.insert(tokens.end(), completion.begin(), completion.end());
    source.follow(owner)->finish(tokens, static_cast<int64_t>(prompt.size()));
  }
};

// All that is guessed of what comes after the tokens, and how sure the first is.
Tokens guess(Drafter& drafter, Tokens tokens, int64_t num_prompt_tokens, int64_t most, double* first = nullptr) {
  const std::size_t size = tokens.size();
  drafter.extend(tokens, num_prompt_tokens);
  std::vector<double> probabilities;
  drafter.predict(most, probabilities);
  if (first != nullptr) *first = probabilities.empty() ? 0 : probabilities[0];
  EXPECT_LE(static_cast<int64_t>(probabilities.size()), most);
  if (!probabilities.empty()) drafter.draft(tokens, static_cast<int64_t>(probabilities.size()));
  for (const double probability : probabilities) {
    EXPECT_GE(probability, 0);
    EXPECT_LE(probability, 1);
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(size), tokens.end()};
}

TEST(SuffixDrafter, GoesOnAsPastAnswersDidMostOften) {
  Source history;
  history.answered({100}, {1, 2, 3, 4, 5});
  history.answered({100}, {1, 2, 3, 6, 7});
  history.answered({100}, {9, 2, 3, 6, 8});
  EXPECT_EQ(guess(*history.source.follow({}), {50, 51, 2, 3}, 3, 1), Tokens{6});
  EXPECT_EQ(guess(*history.source.follow({}), {50, 51, 2, 3}, 3, 8), (Tokens{6, 8}));
  EXPECT_EQ(guess(*history.source.follow({}), {50, 51, 2, 3, 4}, 3, 8), Tokens{5});
  EXPECT_TRUE(guess(*history.source.follow({}), {50, 51, 52}, 2, 8).empty());
  EXPECT_TRUE(guess(*history.source.follow({7, ""}), {50, 51, 2, 3}, 3, 8).empty());
}

// The end of the prompt belongs to the text: how an answer to a like question began.
TEST(SuffixDrafter, KnowsHowAnswersBegin) {
  Source history;
  history.answered({30, 31, 32, 33}, {1, 2, 3});
  history.answered({40, 41, 42, 43}, {1, 5, 6});
  EXPECT_EQ(guess(*history.source.follow({}), {30, 31, 32, 33, 1}, 4, 4), (Tokens{2, 3}));
  EXPECT_EQ(guess(*history.source.follow({}), {40, 41, 42, 43, 1}, 4, 4), (Tokens{5, 6}));
}

TEST(SuffixDrafter, FollowsItsOwnTokensWhereTheySayMore) {
  Source history;
  history.answered({100}, {7, 2, 1, 1});
  // A long match within the sequence against two tokens of a past answer.
  EXPECT_EQ(guess(*history.source.follow({}), {10, 11, 12, 7, 2, 20, 21, 22, 10, 11, 12, 7, 2}, 12, 3), (Tokens{20, 21, 22}));
}

TEST(SuffixDrafter, LearnsHowOftenItIsRight) {
  Source history;
  for (int32_t i = 0; i < 200; ++i) history.answered({100}, {1, 2, i % 4 == 0 ? 50 : 60 + i, 3});
  double at_first = 0, at_last = 0;
  guess(*history.source.follow({}), {200, 1, 2}, 1, 1, &at_first);
  // What came most often never comes.
  for (int32_t i = 0; i < 50; ++i) {
    const auto drafter = history.source.follow({});
    guess(*drafter, {200, 1, 2}, 1, 1, &at_last);
    guess(*drafter, {200, 1, 2, 7}, 1, 1);
  }
  EXPECT_NEAR(at_first, .25, .02);
  EXPECT_LT(at_last, .05);
}

}  // namespace
}  // namespace millrace
