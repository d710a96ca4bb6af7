#pragma once

#include "millrace/tokenizer/jinja/value.h"

namespace millrace::jinja {

// format % arguments, as Python's str does it.
TextPtr percent_format(Runtime& runtime, const Text& format, const Value& arguments);
// format.format(*positional, **named).
TextPtr brace_format(Runtime& runtime, const Text& format, const CallArguments& arguments);

struct JsonStyle {
  std::optional<std::string> indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool ensure_ascii = false;
  bool sort_keys = false;
};
// json.dumps(value). Fails on what JSON cannot say. All of it counts as the client's when any string inside is.
TextPtr to_json(Runtime& runtime, const Value& value, const JsonStyle& style);

}  // namespace millrace::jinja
