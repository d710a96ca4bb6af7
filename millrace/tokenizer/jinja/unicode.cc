#include "millrace/tokenizer/jinja/unicode.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "millrace/base/utf8.h"

namespace millrace::jinja {
namespace {

struct CodePointRange {
  char32_t first, last;
};
struct CaseRange {
  char32_t first, last;
  uint32_t stride;
  int32_t delta;
};
struct CaseSpecial {
  char32_t code_point;
  const char* text;
};

#include "millrace/tokenizer/jinja/unicode_tables.inc"

template <std::size_t N>
bool contains(const CodePointRange (&ranges)[N], char32_t c) {
  const auto* range = std::upper_bound(std::begin(ranges), std::end(ranges), c, [](char32_t v, const auto& r) { return v < r.first; });
  return range != std::begin(ranges) && c <= std::prev(range)->last;
}

template <std::size_t N, std::size_t M>
void append_mapped(std::string& out, char32_t c, const CaseRange (&ranges)[N], const CaseSpecial (&specials)[M]) {
  const auto* special =
      std::lower_bound(std::begin(specials), std::end(specials), c, [](const auto& s, char32_t v) { return s.code_point < v; });
  if (special != std::end(specials) && special->code_point == c) {
    out += special->text;
    return;
  }
  // Ranges of stride 2 may interleave, so the nearest two starts are candidates.
  const auto* range = std::upper_bound(std::begin(ranges), std::end(ranges), c, [](char32_t v, const auto& r) { return v < r.first; });
  for (int i = 0; i < 2 && range != std::begin(ranges); ++i) {
    --range;
    if (c <= range->last && (c - range->first) % range->stride == 0) {
      utf8::append(out, static_cast<char32_t>(static_cast<int64_t>(c) + range->delta));
      return;
    }
  }
  utf8::append(out, c);
}

void append_upper(std::string& out, char32_t c) { append_mapped(out, c, kToUpper, kToUpperSpecial); }
void append_title(std::string& out, char32_t c) { append_mapped(out, c, kToTitle, kToTitleSpecial); }

// Greek capital sigma becomes the final form at the end of a word; every other character has one lower case.
void append_lower(std::string& out, char32_t c, std::string_view text, std::size_t at, std::size_t num_bytes) {
  if (c != 0x3a3) return append_mapped(out, c, kToLower, kToLowerSpecial);
  const bool before = at > 0 && is_cased(decode_before(text, at).value);
  const bool after = at + num_bytes < text.size() && is_cased(decode_at(text, at + num_bytes).value);
  utf8::append(out, before && !after ? 0x3c2 : 0x3c3);
}

}  // namespace

CodePoint decode_at(std::string_view text, std::size_t at) {
  if (utf8::is_ascii(text[at])) return {static_cast<char32_t>(text[at]), 1};
  if (!utf8::scan(text, at).valid) return {0xfffd, 1};
  std::size_t end = at;
  const char32_t value = utf8::decode(text, end);
  return {value, end - at};
}

CodePoint decode_before(std::string_view text, std::size_t end) {
  std::size_t begin = end - 1;
  while (begin > 0 && end - begin < 4 && utf8::is_continuation(text[begin])) --begin;
  const CodePoint c = decode_at(text, begin);
  return begin + c.num_bytes == end ? c : CodePoint{0xfffd, 1};
}

std::size_t count_code_points(std::string_view text) {
  std::size_t count = 0;
  for (std::size_t at = 0; at < text.size(); at += decode_at(text, at).num_bytes) ++count;
  return count;
}

bool is_space(char32_t c) { return c < 0x80 ? c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x1f) : contains(kSpace, c); }
bool is_alpha(char32_t c) { return contains(kAlpha, c); }
bool is_decimal(char32_t c) { return contains(kDecimal, c); }
bool is_digit(char32_t c) { return contains(kDigit, c); }
bool is_numeric(char32_t c) { return contains(kNumeric, c); }
bool is_upper(char32_t c) { return contains(kUpper, c); }
bool is_lower(char32_t c) { return contains(kLower, c); }
bool is_title(char32_t c) { return contains(kTitle, c); }
bool is_printable(char32_t c) { return !contains(kNotPrintable, c); }
bool is_line_break(char32_t c) { return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029; }

std::string to_upper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_at(text, at);
    append_upper(out, c.value);
    at += c.num_bytes;
  }
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_at(text, at);
    append_lower(out, c.value, text, at, c.num_bytes);
    at += c.num_bytes;
  }
  return out;
}

std::string to_title(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool inside_word = false;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_at(text, at);
    if (inside_word)
      append_lower(out, c.value, text, at, c.num_bytes);
    else
      append_title(out, c.value);
    inside_word = is_cased(c.value);
    at += c.num_bytes;
  }
  return out;
}

std::string to_capitalized(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_at(text, at);
    if (at == 0)
      append_title(out, c.value);
    else
      append_lower(out, c.value, text, at, c.num_bytes);
    at += c.num_bytes;
  }
  return out;
}

std::string to_swapped_case(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_at(text, at);
    if (is_upper(c.value))
      append_lower(out, c.value, text, at, c.num_bytes);
    else
      append_upper(out, c.value);
    at += c.num_bytes;
  }
  return out;
}

}  // namespace millrace::jinja
