#pragma once

#include <cstdint>

namespace millrace {

// The least multiple that is not below the value. Neither is negative, and the multiple is not 0.
constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace millrace
