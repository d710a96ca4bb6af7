#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace millrace {

// GPT-2's alphabet: every byte written as one visible character, so that a vocabulary is plain text ("Ġ" is the space).
void append_byte_level(std::string& out, std::string_view bytes);
std::optional<unsigned char> byte_of_level_character(char32_t c);

}  // namespace millrace
