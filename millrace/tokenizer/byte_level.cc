#include "millrace/tokenizer/byte_level.h"

#include <array>
#include <cstdint>

#include "millrace/base/utf8.h"

namespace millrace {
namespace {

struct Alphabet {
  std::array<char16_t, 256> characters{};
  std::array<int16_t, 324> bytes{};  // by character; the highest one is 256 + 67

  constexpr Alphabet() {
    for (auto& byte : bytes) byte = -1;
    char16_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool visible = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const char16_t c = visible ? static_cast<char16_t>(b) : next++;
      characters[static_cast<std::size_t>(b)] = c;
      bytes[c] = static_cast<int16_t>(b);
    }
  }
};

constexpr Alphabet kAlphabet;

}  // namespace

void append_byte_level(std::string& out, std::string_view bytes) {
  for (const char byte : bytes) utf8::append(out, kAlphabet.characters[static_cast<unsigned char>(byte)]);
}

std::optional<unsigned char> byte_of_level_character(char32_t c) {
  if (c >= kAlphabet.bytes.size() || kAlphabet.bytes[c] < 0) return std::nullopt;
  return static_cast<unsigned char>(kAlphabet.bytes[c]);
}

}  // namespace millrace
