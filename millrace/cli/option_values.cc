#include "millrace/cli/option_values.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <string>

namespace millrace::cli {
namespace {

template <class Number>
std::optional<Number> whole_text_as(const std::string& text) {
  Number number{};
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) return std::nullopt;
  return number;
}

}  // namespace

CLI::Validator whole_number(int64_t minimum) {
  return CLI::Validator(
      [minimum](std::string& text) {
        const auto number = whole_text_as<int64_t>(text);
        return number && *number >= minimum ? std::string() : fmt::format("found {}, expected a whole number, at least {}", text, minimum);
      },
      fmt::format(">= {}", minimum));
}

CLI::Validator number_within(double minimum, double maximum) {
  return CLI::Validator(
      [minimum, maximum](std::string& text) {
        const auto number = whole_text_as<double>(text);
        const bool within = number && *number >= minimum && *number <= maximum;  // false of NaN
        return within ? std::string() : fmt::format("found {}, expected a number from {} to {}", text, minimum, maximum);
      },
      fmt::format("in [{} - {}]", minimum, maximum));
}

CLI::Validator size_in_bytes(int64_t minimum) {
  return CLI::Validator(
      [minimum, to_bytes = CLI::AsSizeValue(false)](std::string& text) {
        const std::string found = text;
        // Unsigned arithmetic would take a negative size for an enormous one.
        bool good = text.find('-') == std::string::npos;
        try {
          good = good && to_bytes(text).empty();
        } catch (const CLI::ValidationError&) {
          good = false;
        }
        const auto bytes = whole_text_as<int64_t>(text);
        if (good && bytes && *bytes >= minimum) return std::string();
        return fmt::format("found {}, expected bytes, at least {}, such as 512MB or 8GB", found, minimum);
      },
      "SIZE [b, kb(=1024b), ...]");
}

}  // namespace millrace::cli
