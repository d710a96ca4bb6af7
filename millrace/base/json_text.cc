#include "millrace/base/json_text.h"

#include <fmt/format.h>

#include <cmath>
#include <iterator>

namespace millrace {
namespace {

void append(std::string& text, double number) {
  if (!std::isfinite(number)) {
    text += "null";
    return;
  }
  const std::size_t begin = text.size();
  fmt::format_to(std::back_inserter(text), "{}", number);
  if (text.find_first_of(".e", begin) == std::string::npos) text += ".0";
}

void append(std::string& text, const json::value& value) {
  if (value.is_double()) {
    append(text, value.get_double());
  } else if (value.is_array()) {
    text += '[';
    for (std::size_t i = 0; i < value.get_array().size(); ++i) {
      if (i > 0) text += ',';
      append(text, value.get_array()[i]);
    }
    text += ']';
  } else if (value.is_object()) {
    text += '{';
    bool first = true;
    for (const auto& entry : value.get_object()) {
      if (!first) text += ',';
      first = false;
      text += json::serialize(json::value(entry.key()));
      text += ':';
      append(text, entry.value());
    }
    text += '}';
  } else {
    text += json::serialize(value);
  }
}

}  // namespace

std::string json_text(const json::value& value) {
  std::string text;
  append(text, value);
  return text;
}

}  // namespace millrace
