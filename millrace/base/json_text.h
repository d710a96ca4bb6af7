#pragma once

#include <string>

#include "millrace/base/json.h"

namespace millrace {

// The value as one line of JSON. Numbers are written as people write them, 36.31 and not 3.631E1 (an exponent only below 1e-4 and from
// 1e16), in the fewest digits that read back to the same double; a double stays one, 2.0. What is not finite is null.
std::string json_text(const json::value& value);

}  // namespace millrace
