#include "millrace/formats/quoted_name.h"

#include <fmt/format.h>

namespace millrace {

std::string quoted_name(std::string_view name) {
  constexpr std::size_t kShown = 120;
  std::string text = "\"";
  for (const char c : name.substr(0, kShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f) {
      text += fmt::format("\\x{:02x}", byte);
    } else {
      text += c;
    }
  }
  if (name.size() > kShown) text += "...";
  return text + '"';
}

}  // namespace millrace
