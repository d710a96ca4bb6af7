#include "millrace/engine/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

namespace millrace {
namespace {

struct Outcome {
  std::string text;
  std::optional<std::size_t> matched;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

Outcome run(const std::vector<std::string>& stop, const std::vector<std::string>& pieces, bool include = false) {
  StopStringMatcher matcher(stop, include);
  Outcome outcome;
  for (const std::string& piece : pieces) {
    outcome.matched = matcher.push(piece, outcome.text);
    if (outcome.matched) return outcome;
  }
  matcher.finish(outcome.text);
  return outcome;
}

TEST(StopStrings, HoldsBackWhatMayBecomeAStopString) {
  const std::vector<std::string> stop = {"END", "\n\n"};
  StopStringMatcher matcher(stop, false);
  std::string out;
  EXPECT_FALSE(matcher.push("the E", out));
  EXPECT_EQ(out, "the ");
  EXPECT_FALSE(matcher.push("N", out));
  EXPECT_EQ(out, "the ");
  EXPECT_FALSE(matcher.push("T\n", out));
  EXPECT_EQ(out, "the ENT");
  EXPECT_EQ(matcher.push("\nmore", out), 1u);
  EXPECT_EQ(out, "the ENT");
}

TEST(StopStrings, FinishLetsGoOfWhatWasHeld) { EXPECT_EQ(run({"END"}, {"the E", "N"}), (Outcome{"the EN", std::nullopt})); }

TEST(StopStrings, MayBeIncluded) {
  EXPECT_EQ(run({"END"}, {"a E", "ND b"}, true), (Outcome{"a END", 0}));
  EXPECT_EQ(run({"END"}, {"a E", "ND b"}, false), (Outcome{"a ", 0}));
}

TEST(StopStrings, TheMatchThatEndsFirstCountsThenTheLongest) {
  EXPECT_EQ(run({"bcd", "c"}, {"abcd"}), (Outcome{"ab", 1}));
  EXPECT_EQ(run({"c", "abc"}, {"xabc"}), (Outcome{"x", 1}));
}

TEST(StopStrings, SelfOverlappingStringsAreFound) {
  EXPECT_EQ(run({"aab"}, {"a", "a", "a", "b"}), (Outcome{"a", 0}));
  EXPECT_EQ(run({"abab"}, {"aba", "aba", "b"}), (Outcome{"aba", 0}));
}

TEST(StopStrings, PassedTextIsNotLookedAt) {
  const std::vector<std::string> stop = {"ab"};
  StopStringMatcher matcher(stop, false);
  std::string out;
  matcher.pass("xaba", out);
  EXPECT_FALSE(matcher.push("b", out));
  EXPECT_EQ(out, "xabab");
  EXPECT_TRUE(matcher.push("ab", out));
  EXPECT_EQ(out, "xabab");
}

// Whatever the tokens were, the outcome is that of one character at a time.
TEST(StopStrings, DoesNotDependOnWhereThePiecesWereCut) {
  std::mt19937 random(11);
  for (int round = 0; round < 5000; ++round) {
    const auto word = [&](std::size_t max_length) {
      std::string text(1 + random() % max_length, 'a');
      for (char& c : text) c = static_cast<char>('a' + random() % 2);
      return text;
    };
    std::vector<std::string> stop;
    for (std::size_t i = 0; i < 1 + random() % 3; ++i) stop.push_back(word(5));
    const std::string text = word(25);
    std::vector<std::string> characters, pieces;
    for (const char c : text) characters.emplace_back(1, c);
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t size = random() % 6;
      pieces.push_back(text.substr(i, size));
      i += size;
    }
    const bool include = random() % 2 == 0;
    ASSERT_EQ(run(stop, pieces, include), run(stop, characters, include)) << text;
  }
}

}  // namespace
}  // namespace millrace
