#pragma once

#include <string>
#include <string_view>

namespace millrace {

// Python's json module writes NaN, Infinity and -Infinity, which JSON has not, and some published config.json files hold them.
// Returns the text with those words, outside strings, replaced by null, 1e308 and -1e308.
std::string without_python_numbers(std::string_view text);

}  // namespace millrace
