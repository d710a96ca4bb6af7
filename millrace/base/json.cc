#include "millrace/base/json.h"

#include <fmt/format.h>

#include <algorithm>

namespace millrace {

Result<json::value> parse_json(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return Status::resource_exhausted(fmt::format("JSON text has {} bytes, at most {} are accepted", text.size(), limits.max_bytes));
  }
  json::parse_options options;
  options.max_depth = limits.max_depth;
  json::stream_parser parser({}, options);
  json::error_code error;
  const std::size_t used = parser.write_some(text.data(), text.size(), error);
  if (!error) parser.finish(error);
  if (!error && used < text.size() && text.find_first_not_of(" \t\r\n", used) != std::string_view::npos) error = json::error::extra_data;
  if (error) {
    const std::string_view before = text.substr(0, std::min(used, text.size()));
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const std::size_t line_start = before.rfind('\n');
    const std::size_t column = before.size() - (line_start == std::string_view::npos ? 0 : line_start + 1) + 1;
    return Status::invalid_argument(fmt::format("invalid JSON at line {}, column {}: {}", line, column, error.message()));
  }
  return parser.release();
}

}  // namespace millrace
