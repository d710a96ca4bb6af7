#pragma once

#include <span>
#include <string_view>

namespace millrace {

struct BuiltinFamily {
  std::string_view file_name;  // "llama.json"
  std::string_view text;
};

// The files of families/, as the build embedded them (cmake/embed_families.cmake).
std::span<const BuiltinFamily> builtin_family_texts();

}  // namespace millrace
