#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace millrace {

// How the files of a split GGUF are named: "<prefix>-00001-of-00003.gguf", counted from 1, five digits each.
struct GgufSplitName {
  std::string prefix;  // with its folder
  int64_t number;
  int64_t count;
};

std::optional<GgufSplitName> parse_gguf_split_name(std::string_view path);  // absent when not named so, or not 1 <= number <= count
std::string gguf_split_path(std::string_view prefix, int64_t number, int64_t count);

}  // namespace millrace
