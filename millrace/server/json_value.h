#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "millrace/base/json.h"

namespace millrace {

// The value where it is an integer that int64_t holds; 5.0 counts as 5.
std::optional<int64_t> json_integer(const json::value& value);

// The value where it is a finite number.
std::optional<double> json_number(const json::value& value);

// A value as an error message shows it: its JSON text where short, else its kind and size. Valid UTF-8 without control characters.
std::string describe_json(const json::value& value);

}  // namespace millrace
