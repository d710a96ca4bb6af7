#include "millrace/tokenizer/unicode.h"

#include <gtest/gtest.h>

#include <string>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/normalizer.h"
#include "millrace/tokenizer/regex.h"

namespace millrace {
namespace {

template <class Predicate>
int count(Predicate&& belongs) {
  int num = 0;
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c == 0xD800) c = 0xE000;
    num += belongs(c) ? 1 : 0;
  }
  return num;
}

// The counts of Unicode 16.0, which Hugging Face's split patterns match exactly (measured over every code point).
TEST(Unicode, EveryCodePointIsInItsCategory) {
  const auto num_in = [](unicode::CategoryMask mask) { return count([mask](char32_t c) { return unicode::is_in(c, mask); }); };
  EXPECT_EQ(num_in(unicode::kLetter), 141028);
  EXPECT_EQ(num_in(unicode::kNumber), 1911);
  EXPECT_EQ(num_in(unicode::kPunctuation), 855);
  EXPECT_EQ(num_in(unicode::kSymbol), 8514);
  EXPECT_EQ(num_in(unicode::kMark), 2501);
  EXPECT_EQ(num_in(unicode::bits(unicode::kNd, unicode::kNd)), 760);
  EXPECT_EQ(count(unicode::is_white_space), 25);
  EXPECT_FALSE(unicode::is_white_space(0x180E));
  EXPECT_TRUE(unicode::is_white_space(0x85));
  EXPECT_EQ(count(unicode::is_plain_word), 144667);
}

// The regex engine's own tables are older: the classes it is given must be ours, alone and inside brackets.
TEST(Unicode, TheRegexEngineMatchesTheSameCategories) {
  const struct {
    const char* pattern;
    unicode::CategoryMask mask;
  } classes[] = {{R"(\p{L})", unicode::kLetter},
                 {R"([\p{N}\p{P}])", unicode::kNumber | unicode::kPunctuation},
                 {R"([^\P{L}])", unicode::kLetter},
                 {R"(\pS)", unicode::kSymbol}};
  for (const auto& one : classes) {
    const Regex regex = Regex::compile(one.pattern).value();
    std::string text;
    int num_wrong = 0;
    for (char32_t c = 0; c <= 0x10FFFF; c += c < 0x3000 ? 1 : 7) {
      if (c >= 0xD800 && c < 0xE000) continue;
      text.clear();
      utf8::append(text, c);
      num_wrong += regex.find(text, 0).value().has_value() != unicode::is_in(c, one.mask) ? 1 : 0;
    }
    EXPECT_EQ(num_wrong, 0) << one.pattern;
  }
}

TEST(Regex, BadPatternsAreErrors) {
  for (const char* pattern : {"(", "[", "a\\", "\\p{", "[a&&b]", "[[:nonsense:]]", "\\p{NoSuchScript}", "(?<=a+)b"}) {
    EXPECT_FALSE(Regex::compile(pattern).is_ok()) << pattern;
  }
  EXPECT_FALSE(Regex::compile(std::string(1 << 20, 'a')).is_ok());
}

TEST(Regex, AHungryPatternGivesUp) {
  const Regex regex = Regex::compile("(?:a|aa)+$").value();
  EXPECT_FALSE(regex.find(std::string(200, 'a') + "!", 0).is_ok());
  EXPECT_TRUE(regex.find("aaa", 0).value().has_value());
}

std::string normalized(std::string_view text, NormalizationForm form) {
  NormalizedText out = NormalizedText::of(text, true);
  normalize(out, form);
  EXPECT_EQ(out.origins.size(), out.text.size());
  return out.text;
}

TEST(Unicode, NormalizationForms) {
  EXPECT_EQ(normalized("e\u0301", NormalizationForm::kC), "é");
  EXPECT_EQ(normalized("é", NormalizationForm::kD), "e\u0301");
  EXPECT_EQ(normalized("ﬁ①", NormalizationForm::kKC), "fi1");
  EXPECT_EQ(normalized("ﬁ①", NormalizationForm::kC), "ﬁ①");
  EXPECT_EQ(normalized("각", NormalizationForm::kD), "\u1100\u1161\u11A8");
  EXPECT_EQ(normalized("\u1100\u1161\u11A8", NormalizationForm::kC), "각");
  EXPECT_EQ(normalized("a\u0315\u0300\u05AE\u0062", NormalizationForm::kC), "\u00E0\u05AE\u0315b") << "marks are sorted by class";
  EXPECT_EQ(normalized("㋿", NormalizationForm::kKC), "㋿") << "the reference's tables are older than this character";
}

TEST(Unicode, GraphemeClusters) {
  const auto first = [](std::string_view text) { return std::string(text.substr(0, unicode::grapheme_end(text, 0))); };
  EXPECT_EQ(first("e\u0301x"), "e\u0301");
  EXPECT_EQ(first("\r\nx"), "\r\n");
  EXPECT_EQ(first("👩‍👩‍👧x"), "👩‍👩‍👧");
  EXPECT_EQ(first("🇩🇪🇫🇷"), "🇩🇪");
  EXPECT_EQ(first("각가"), "각");
  EXPECT_EQ(first("ab"), "a");
}

}  // namespace
}  // namespace millrace
