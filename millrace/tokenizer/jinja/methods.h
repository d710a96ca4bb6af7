#pragma once

#include <string_view>

#include "millrace/tokenizer/jinja/value.h"

namespace millrace::jinja {

struct NamedMethod {
  std::string_view name;
  MethodFunction function;
};

// Python's methods, as the sandbox allows them; null when there is none of that name.
const NamedMethod* find_string_method(std::string_view name);
const NamedMethod* find_collection_method(const Value& self, std::string_view name);  // of a list, tuple or dict
// Methods that would change the list or dict: the sandbox refuses to hand them out.
bool is_mutating_method(const Value& self, std::string_view name);

// sep.join(items) and s.replace(old, new, count); count < 0: all.
TextPtr join_text(Runtime& runtime, const Text& separator, const std::vector<Value>& items);
TextPtr replace_text(Runtime& runtime, const Text& text, const Text& old_text, const Text& new_text, int64_t count);
TextPtr strip_text(Runtime& runtime, const TextPtr& text, const Text* characters, bool left, bool right);
std::vector<Value> split_lines(Runtime& runtime, const TextPtr& text, bool keep_ends);

}  // namespace millrace::jinja
