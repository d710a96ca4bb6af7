#pragma once

#include <boost/json.hpp>
#include <cstddef>
#include <string_view>

#include "millrace/base/status.h"

namespace millrace {

// JSON values are Boost.JSON's: objects keep the order of their keys, which templates and schemas need.
namespace json = boost::json;

struct JsonLimits {
  std::size_t max_depth = 64;
  std::size_t max_bytes = std::size_t{1} << 30;
};

// Parses one strict JSON text (UTF-8, no comments, nothing after it). Errors say line and column.
// Duplicate keys: the last one counts, as in Python's json and OpenAI's servers.
Result<json::value> parse_json(std::string_view text, const JsonLimits& limits = {});

}  // namespace millrace
