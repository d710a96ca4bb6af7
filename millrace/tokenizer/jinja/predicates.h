#pragma once

#include <string_view>

#include "millrace/tokenizer/jinja/value.h"

namespace millrace::jinja {

// What "x is name(arguments)" asks.
using TestFunction = bool (*)(Runtime& runtime, const Value& input, const CallArguments& arguments);

// Null when there is no such test.
TestFunction find_test(std::string_view name);

}  // namespace millrace::jinja
