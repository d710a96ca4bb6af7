#include "millrace/server/json_value.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "millrace/base/utf8.h"
#include "millrace/server/json_writer.h"

namespace millrace {

std::optional<int64_t> json_integer(const json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (value.is_uint64()) return std::nullopt;  // Boost.JSON uses it only beyond int64_t
  if (value.is_double()) {
    const double number = value.get_double();
    if (std::isfinite(number) && std::trunc(number) == number && std::abs(number) <= 9.0e15) return static_cast<int64_t>(number);
  }
  return std::nullopt;
}

std::optional<double> json_number(const json::value& value) {
  double number = 0;
  if (value.is_int64()) {
    number = static_cast<double>(value.get_int64());
  } else if (value.is_uint64()) {
    number = static_cast<double>(value.get_uint64());
  } else if (value.is_double()) {
    number = value.get_double();
  } else {
    return std::nullopt;
  }
  if (!std::isfinite(number)) return std::nullopt;
  return number;
}

std::string describe_json(const json::value& value) {
  constexpr std::size_t kShown = 64;
  switch (value.kind()) {
    case json::kind::array: return fmt::format("a list of {} items", value.get_array().size());
    case json::kind::object: return fmt::format("an object of {} fields", value.get_object().size());
    case json::kind::string: {
      const json::string& text = value.get_string();
      std::string quoted;
      if (text.size() <= kShown) {
        append_json_string(quoted, text);
        return quoted;
      }
      std::size_t end = kShown;
      while (end > 0 && utf8::is_continuation(text[end])) --end;  // not within a character
      append_json_string(quoted, std::string_view(text.data(), end));
      return fmt::format("the {}-byte string {}...", text.size(), quoted);
    }
    default: return json::serialize(value);
  }
}

}  // namespace millrace
