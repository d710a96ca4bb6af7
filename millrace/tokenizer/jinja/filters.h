#pragma once

#include <string_view>

#include "millrace/tokenizer/jinja/value.h"

namespace millrace::jinja {

using FilterFunction = Value (*)(Runtime& runtime, const Value& input, const CallArguments& arguments);

// Null when there is no such filter. Each filters_*.cc has a table.
FilterFunction find_filter(std::string_view name);

struct NamedFilter {
  std::string_view name;
  FilterFunction function;
};
FilterFunction find_text_filter(std::string_view name);
FilterFunction find_sequence_filter(std::string_view name);
FilterFunction find_layout_filter(std::string_view name);
FilterFunction find_markup_filter(std::string_view name);

}  // namespace millrace::jinja
