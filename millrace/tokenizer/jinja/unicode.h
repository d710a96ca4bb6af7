#pragma once

#include <cstddef>
#include <string>
#include <string_view>

// Characters as Python's str sees them. Text is UTF-8; a byte that is not part of a valid character counts as U+FFFD of one byte.
namespace millrace::jinja {

struct CodePoint {
  char32_t value;
  std::size_t num_bytes;
};

// The character that starts at `at`, which is inside `text`.
CodePoint decode_at(std::string_view text, std::size_t at);
// The character that ends before `end` > 0.
CodePoint decode_before(std::string_view text, std::size_t end);
std::size_t count_code_points(std::string_view text);

bool is_space(char32_t c);
bool is_alpha(char32_t c);
bool is_decimal(char32_t c);
bool is_digit(char32_t c);
bool is_numeric(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_title(char32_t c);
bool is_printable(char32_t c);
// A character after which str.splitlines breaks.
bool is_line_break(char32_t c);
inline bool is_cased(char32_t c) { return is_upper(c) || is_lower(c) || is_title(c); }
inline bool is_alnum(char32_t c) { return is_alpha(c) || is_decimal(c) || is_digit(c) || is_numeric(c); }

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string to_title(std::string_view text);  // str.title: after each character without case a capital
std::string to_capitalized(std::string_view text);
std::string to_swapped_case(std::string_view text);

}  // namespace millrace::jinja
