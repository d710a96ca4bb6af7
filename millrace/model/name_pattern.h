#pragma once

#include <string_view>

namespace millrace {

// Whether all of `text` matches `pattern`, in which each "*" stands for any characters. Linear in their product, no recursion.
bool matches_pattern(std::string_view pattern, std::string_view text);

}  // namespace millrace
