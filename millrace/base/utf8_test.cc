#include "millrace/base/utf8.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace millrace {
namespace {

bool is_scalar_value(char32_t c) { return c <= 0x10FFFF && (c < 0xD800 || c > 0xDFFF); }

// The formula without any table: as many payload bits as the lead byte says, none of them in vain.
bool is_character(const std::vector<unsigned char>& bytes) {
  const std::size_t size = bytes.size();
  const unsigned char lead = bytes[0];
  const std::size_t announced = lead < 0x80 ? 1 : (lead & 0xE0) == 0xC0 ? 2 : (lead & 0xF0) == 0xE0 ? 3 : (lead & 0xF8) == 0xF0 ? 4 : 0;
  if (announced != size) return false;
  char32_t c = size == 1 ? lead : lead & (0xFFu >> (size + 1));
  for (std::size_t i = 1; i < size; ++i) {
    if (bytes[i] >> 6 != 2) return false;
    c = c << 6 | (bytes[i] & 0x3Fu);
  }
  static constexpr char32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
  return c >= kLeast[size - 1] && is_scalar_value(c);
}

TEST(Utf8, EveryCharacterComesBack) {
  std::string all;
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (!is_scalar_value(c)) continue;
    std::string text;
    utf8::append(text, c);
    ASSERT_EQ(text.size(), utf8::encoded_size(c));
    const utf8::Scan found = utf8::scan(text, 0);
    ASSERT_TRUE(found.valid && found.size == text.size()) << static_cast<uint32_t>(c);
    std::size_t at = 0;
    ASSERT_EQ(utf8::decode(text, at), c);
    ASSERT_EQ(at, text.size());
    ASSERT_EQ(utf8::decode_before("a" + text, 1 + text.size()), c);
    for (std::size_t part = 1; part < text.size(); ++part) {
      const utf8::Scan cut = utf8::scan(text.substr(0, part), 0);
      ASSERT_TRUE(cut.incomplete && !cut.valid && cut.size == part) << static_cast<uint32_t>(c);
    }
    if (c % 97 == 0) all += text;
  }
  EXPECT_TRUE(utf8::is_valid(all));
  std::string copy;
  EXPECT_EQ(utf8::append_lossy(copy, all, false), all.size());
  EXPECT_EQ(copy, all);
}

TEST(Utf8, WhatIsNoCharacterIsReplaced) {
  for (const char32_t c : {char32_t{0xD800}, char32_t{0xDFFF}, char32_t{0x110000}, char32_t{0xFFFFFFFF}}) {
    std::string out;
    utf8::append(out, c);
    EXPECT_EQ(out, "\uFFFD");
  }
}

// Every lead byte with the second bytes around every border, and each length.
TEST(Utf8, ValidIsWhatTheFormulaSays) {
  const std::vector<unsigned char> some = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xE0, 0xED, 0xF0, 0xF4, 0xFF};
  for (unsigned lead = 0; lead < 256; ++lead) {
    std::vector<std::vector<unsigned char>> texts = {{static_cast<unsigned char>(lead)}};
    for (std::size_t first = 0, size = 1; size < 4; ++size) {
      const std::size_t end = texts.size();
      for (; first < end; ++first) {
        for (const unsigned char next : some) {
          texts.push_back(texts[first]);
          texts.back().push_back(next);
        }
      }
    }
    for (const auto& bytes : texts) {
      const std::string text(bytes.begin(), bytes.end());
      std::size_t size = 0;  // of the character that begins the text
      for (std::size_t n = 1; n <= bytes.size(); ++n) {
        if (is_character({bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n)})) size = n;
      }
      const utf8::Scan found = utf8::scan(text, 0);
      ASSERT_EQ(found.valid ? found.size : 0, size) << testing::PrintToString(bytes);
      ASSERT_GE(found.size, 1U);
      ASSERT_LE(found.size, text.size());
    }
  }
}

TEST(Utf8, FindsTheFirstInvalidByte) {
  EXPECT_EQ(utf8::find_invalid(""), std::nullopt);
  EXPECT_EQ(utf8::find_invalid("aé世😀"), std::nullopt);
  EXPECT_EQ(utf8::find_invalid("aé\xFFz"), 3U);
  EXPECT_EQ(utf8::find_invalid("ab\xE4\xB8"), 2U) << "cut";
  EXPECT_EQ(utf8::find_invalid("\xC0\xAF"), 0U) << "overlong";
  EXPECT_EQ(utf8::find_invalid("a\xED\xA0\x80"), 1U) << "surrogate";
  EXPECT_EQ(utf8::find_invalid("\xF4\x90\x80\x80"), 0U) << "beyond U+10FFFF";
}

TEST(Utf8, LossyDecodingReplacesMaximalParts) {
  std::string out;
  utf8::append_lossy(out,
                     "a\xF0\x9F\x98"
                     "b\xFF\xE4\xB8",
                     true);
  EXPECT_EQ(out,
            "a\uFFFD"
            "b\uFFFD\uFFFD");
  out.clear();
  EXPECT_EQ(utf8::append_lossy(out, "a\xF0\x9F\x98", false), 1U) << "more may come";
  EXPECT_EQ(out, "a");
}

}  // namespace
}  // namespace millrace
