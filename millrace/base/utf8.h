#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

// UTF-8 as the Unicode standard's table 3-7 has it: no overlong forms, no surrogates, nothing beyond U+10FFFF.
namespace millrace::utf8 {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD, for what is no character

struct Scan {
  std::size_t size;  // bytes of the character; where none is, of the longest beginning of one, at least 1
  bool valid;
  bool incomplete;  // the text ends inside a character that may still become valid
};
// What is at byte `at`, which is inside `text`.
Scan scan(std::string_view text, std::size_t at);

inline bool is_ascii(char byte) { return static_cast<unsigned char>(byte) < 0x80; }
inline bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// The offset of the first byte that begins no character.
std::optional<std::size_t> find_invalid(std::string_view text);
inline bool is_valid(std::string_view text) { return !find_invalid(text); }

// Valid text and a position at the start of a character, which moves behind it.
char32_t decode(std::string_view text, std::size_t& position);
// The character of valid text that ends at `position` > 0.
char32_t decode_before(std::string_view text, std::size_t position);

inline std::size_t encoded_size(char32_t c) { return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4; }
// What is no character (a surrogate, a number beyond the last) is appended as U+FFFD.
void append(std::string& out, char32_t c);

// Appends the characters of `bytes`, U+FFFD for each maximal invalid part (as Rust's from_utf8_lossy and Python's "replace").
// Unless `final`, an incomplete character at the end is left out. Returns the number of bytes used.
std::size_t append_lossy(std::string& out, std::string_view bytes, bool final);

}  // namespace millrace::utf8
