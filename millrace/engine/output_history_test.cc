#include "millrace/engine/output_history.h"

#include <gtest/gtest.h>

#include <random>

namespace millrace {
namespace {

using Tokens = std::vector<int32_t>;

bool knows(OutputHistory& history, const DraftOwner& owner, const Tokens& text) {
  const auto root = history.tree_of(owner);
  return root && history.forest().find(*root, text).has_value();
}

TEST(OutputHistory, KeepsOwnersApart) {
  OutputHistory history({});
  history.add({1, ""}, Tokens{1, 2, 3});
  history.add({1, "salt"}, Tokens{4, 5, 6});
  history.add({2, ""}, Tokens{7, 8, 9});
  EXPECT_EQ(history.num_owners(), 3);
  EXPECT_TRUE(knows(history, {1, ""}, {2, 3}));
  EXPECT_TRUE(knows(history, {1, "salt"}, {5, 6}));
  EXPECT_FALSE(knows(history, {1, ""}, {5, 6}));
  EXPECT_FALSE(knows(history, {1, "salt"}, {8, 9}));
  EXPECT_FALSE(knows(history, {2, "salt"}, {8, 9}));
  EXPECT_FALSE(knows(history, {3, ""}, {1}));
}

TEST(OutputHistory, ForgetsTheOldestWhosesoeverTheyAre) {
  OutputHistory history({.num_outputs_max = 2, .num_tokens_max = 10, .depth_max = 8});
  history.add({1, ""}, Tokens{1, 2, 3, 4});
  history.add({2, ""}, Tokens{5, 6, 7, 8});
  history.add({2, ""}, Tokens{9, 10});
  EXPECT_FALSE(knows(history, {1, ""}, {1}));
  EXPECT_TRUE(knows(history, {2, ""}, {5, 6}));
  EXPECT_EQ(history.num_owners(), 1);
  history.add({3, ""}, Tokens{11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23});  // the end of it, and nothing else
  EXPECT_EQ(history.num_tokens(), 10);
  EXPECT_EQ(history.num_outputs(), 1);
  EXPECT_TRUE(knows(history, {3, ""}, {22, 23}));
  EXPECT_FALSE(knows(history, {3, ""}, {13}));
  history.add({3, ""}, Tokens{});
  EXPECT_EQ(history.num_outputs(), 1);
}

TEST(OutputHistory, KeepsNothingWhereNothingIsWanted) {
  OutputHistory history({.num_outputs_max = 0});
  history.add({}, Tokens{1, 2, 3});
  EXPECT_EQ(history.num_tokens(), 0);
  EXPECT_FALSE(history.tree_of({}).has_value());
}

TEST(OutputHistory, StaysWithinItsBoundsWhoeverComes) {
  constexpr int64_t kTokensMax = 1000;
  OutputHistory history({.num_outputs_max = 40, .num_tokens_max = kTokensMax, .depth_max = 16});
  std::mt19937 random(1);
  for (int i = 0; i < 5000; ++i) {
    Tokens output(1 + random() % (i % 100 == 0 ? 3000 : 60));
    for (int32_t& token : output) token = static_cast<int32_t>(random() % 5);
    history.add({static_cast<int32_t>(random() % 3), std::string(random() % 20, 'x')}, output);
    ASSERT_LE(history.num_tokens(), kTokensMax);
    ASSERT_LE(history.num_outputs(), 40);
    ASSERT_LE(history.num_owners(), history.num_outputs());
    ASSERT_LE(history.forest().num_nodes(), 2 * history.num_tokens() + history.num_owners());
  }
}

}  // namespace
}  // namespace millrace
