#include "millrace/quality/text_windows.h"

#include <gtest/gtest.h>

#include <numeric>

namespace millrace {
namespace {

std::vector<int32_t> counted(int64_t count) {
  std::vector<int32_t> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

TEST(TextWindows, SideBySideScoreTheirSecondHalf) {
  const auto text = cut_windows(counted(23), 99, 10, std::nullopt);
  ASSERT_TRUE(text.is_ok());
  ASSERT_EQ(text->windows.size(), 2u);
  EXPECT_EQ(text->windows[1].begin, 10);
  EXPECT_EQ(text->windows[1].count, 10);
  EXPECT_EQ(text->windows[1].first_row, 5);
  EXPECT_EQ(text->num_scored(), 8);  // rows 5 to 8 of each: what follows row 9 is not in the window
  EXPECT_EQ(text->input(text->windows[1], 0), 99);
  EXPECT_EQ(text->input(text->windows[1], 5), 15);
  EXPECT_EQ(text->target(text->windows[1], 5), 16);
}

TEST(TextWindows, WithAStrideEveryTokenIsScoredOnce) {
  for (const int64_t num_tokens : {2, 9, 10, 11, 20, 23, 50}) {
    for (const int64_t stride : {1, 3, 5, 9, 10}) {
      SCOPED_TRACE(testing::Message() << num_tokens << " tokens, stride " << stride);
      const auto text = cut_windows(counted(num_tokens), std::nullopt, 10, stride);
      ASSERT_TRUE(text.is_ok());
      std::vector<int> times(static_cast<std::size_t>(num_tokens), 0);
      for (const auto& window : text->windows) {
        EXPECT_LE(window.count, 10);
        EXPECT_EQ(window.begin % stride, 0);
        for (int64_t row = window.first_row; row < window.count - 1; ++row) ++times[static_cast<std::size_t>(text->target(window, row))];
      }
      for (int64_t token = 0; token < num_tokens; ++token) {
        // Windows side by side: their first token has nothing before it.
        const bool first = token == 0 || (stride == 10 && token % 10 == 0);
        EXPECT_EQ(times[static_cast<std::size_t>(token)], first ? 0 : 1) << token;
      }
    }
  }
}

TEST(TextWindows, RefusesWhatGivesNoWindow) {
  EXPECT_NE(cut_windows(counted(9), std::nullopt, 10, std::nullopt).status().message().find("9 tokens, at least 10"), std::string::npos);
  EXPECT_NE(cut_windows(counted(1), std::nullopt, 10, 5).status().message().find("at least 2"), std::string::npos);
  EXPECT_NE(cut_windows(counted(9), std::nullopt, 3, std::nullopt).status().message().find("context of 3"), std::string::npos);
  for (const int64_t stride : {-1, 0, 11})
    EXPECT_NE(cut_windows(counted(50), std::nullopt, 10, stride).status().message().find("stride"), std::string::npos);
}

}  // namespace
}  // namespace millrace
