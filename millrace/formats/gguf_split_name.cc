#include "millrace/formats/gguf_split_name.h"

#include <fmt/format.h>

#include <charconv>

namespace millrace {

std::optional<GgufSplitName> parse_gguf_split_name(std::string_view path) {
  constexpr std::string_view kTail = "-00000-of-00000.gguf";
  if (path.size() < kTail.size()) return std::nullopt;
  const std::string_view tail = path.substr(path.size() - kTail.size());
  const auto five_digits = [tail](std::size_t offset) -> std::optional<int64_t> {
    const std::string_view digits = tail.substr(offset, 5);
    if (digits.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
    int64_t value = 0;
    std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return value;
  };
  if (tail[0] != '-' || tail.substr(6, 4) != "-of-" || tail.substr(15) != ".gguf") return std::nullopt;
  const auto number = five_digits(1), count = five_digits(10);
  if (!number || !count || *number < 1 || *number > *count) return std::nullopt;
  return GgufSplitName{std::string(path.substr(0, path.size() - kTail.size())), *number, *count};
}

std::string gguf_split_path(std::string_view prefix, int64_t number, int64_t count) {
  return fmt::format("{}-{:05}-of-{:05}.gguf", prefix, number, count);
}

}  // namespace millrace
