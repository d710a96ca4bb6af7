#include "millrace/formats/python_json.h"

namespace millrace {

std::string without_python_numbers(std::string_view text) {
  std::string plain;
  plain.reserve(text.size());
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      plain += c;
      if (c == '\\' && i + 1 < text.size()) plain += text[++i];
      if (c == '"') in_string = false;
    } else if (text.substr(i, 3) == "NaN") {
      plain += "null";
      i += 2;
    } else if (text.substr(i, 8) == "Infinity") {
      plain += "1e308";
      i += 7;
    } else {
      plain += c;
      in_string = c == '"';
    }
  }
  return plain;
}

}  // namespace millrace
