#include "millrace/tokenizer/jinja/runtime.h"

#include <fmt/format.h>

#include <algorithm>

#include "millrace/tokenizer/jinja/globals.h"
#include "millrace/tokenizer/jinja/methods.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

// Of C++ stack one render may use; threads have 8 MiB by default.
constexpr std::ptrdiff_t kMaxStackBytes = 2 << 20;

Value bind_method(const Value& self, const NamedMethod& method) {
  return std::shared_ptr<const BoundMethod>(std::make_shared<BoundMethod>(BoundMethod{self, method.name, method.function}));
}

Undefined no_attribute(const Value& object, std::string_view name) {
  return make_undefined(fmt::format("'{} object' has no attribute '{}'", type_name(object), name));
}

}  // namespace

Runtime::Runtime(const Program& program, const RuntimeOptions& options)
    : program_(program), options_(options), budget_(options.fuel), root_(&scopes_.emplace_back()) {
  for (std::size_t id = 0; id < program.names.size(); ++id) {
    const GlobalFunction function = find_global(program.names[id]);
    if (function == nullptr) continue;
    root_->set(static_cast<int>(id), Value(static_cast<Object*>(make_object<GlobalObject>(program.names[id], function))));
  }
}

Runtime::~Runtime() = default;

void Runtime::define(std::string_view name, Value value) {
  const auto found = std::find(program_.names.begin(), program_.names.end(), name);
  if (found != program_.names.end()) root_->set(static_cast<int>(found - program_.names.begin()), std::move(value));
}

void Runtime::check_stack() const {
  const char* here = static_cast<const char*>(__builtin_frame_address(0));
  if (stack_base_ != nullptr && stack_base_ - here > kMaxStackBytes) throw LimitError{"calls and expressions nest too deeply"};
}

Value Runtime::get_attribute(const Value& object, std::string_view name) {
  require_defined(object);
  if (name.starts_with("_"))
    return make_undefined(fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(object)));
  switch (object.kind()) {
    case Kind::kString:
      if (const NamedMethod* method = find_string_method(name)) return bind_method(object, *method);
      break;
    case Kind::kDict:
    case Kind::kList:
      if (is_mutating_method(object, name)) {
        return make_undefined(fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(object)));
      }
      if (const NamedMethod* method = find_collection_method(object, name)) return bind_method(object, *method);
      if (object.is_list() && object.list().kind == ListKind::kGroup) {
        if (name == "grouper") return object.list().items[0];
        if (name == "list") return object.list().items[1];
      }
      if (object.is_dict()) {
        if (const Value* value = object.dict().find(name)) return *value;
      }
      break;
    case Kind::kObject:
      if (std::optional<Value> value = object.object()->attribute(*this, name)) return *value;
      break;
    default: break;
  }
  return no_attribute(object, name);
}

Value Runtime::get_item(const Value& object, const Value& key) {
  require_defined(object);
  if (object.is_dict()) {
    if (key.is_list() && key.list().kind == ListKind::kList) return make_undefined("a list is no key");
    if (key.is_dict()) return make_undefined("a dict is no key");
    if (const Value* value = object.dict().find(key)) return *value;
  } else if (key.is_integral()) {
    int64_t index = key.as_int();
    if (object.is_list() && object.list().can_be_indexed()) {
      const auto& items = object.list().items;
      if (index < 0) index += static_cast<int64_t>(items.size());
      if (index >= 0 && index < static_cast<int64_t>(items.size())) return items[static_cast<std::size_t>(index)];
    } else if (object.is_string()) {
      const TextPtr& text = object.text_ptr();
      if (!text->ascii) budget_.charge_bytes(text->bytes.size());
      const auto num_characters = static_cast<int64_t>(text->num_code_points());
      if (index < 0) index += num_characters;
      if (index >= 0 && index < num_characters) {
        const std::size_t begin = text->byte_offset(static_cast<std::size_t>(index));
        return slice_text(budget_, text, begin, begin + decode_at(text->bytes, begin).num_bytes);
      }
    }
  }
  if (key.is_string()) {
    if (object.is_dict()) {
      // Keys went first; what is left are methods.
      const std::string& name = key.text().bytes;
      if (is_mutating_method(object, name) || find_collection_method(object, name) != nullptr) return get_attribute(object, name);
      return make_undefined(fmt::format("'dict object' has no attribute '{}'", name));
    }
    return get_attribute(object, key.text().bytes);
  }
  return make_undefined(fmt::format("{} object has no element {}", type_name(object), to_text(*this, key)->bytes));
}

Value Runtime::call(const Value& callee, const CallArguments& arguments) {
  require_defined(callee);
  budget_.charge_steps(1);
  if (callee.kind() == Kind::kMethod) return callee.method().function(*this, callee.method().self, arguments);
  if (callee.kind() == Kind::kObject) return callee.object()->call(*this, arguments);
  fail(fmt::format("'{}' object is not callable", type_name(callee)));
}

bool Runtime::is_true(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return false;
    case Kind::kBool: return value.as_bool();
    case Kind::kInt: return value.as_int() != 0;
    case Kind::kFloat: return value.as_double() != 0;
    case Kind::kString: return !value.text().bytes.empty();
    case Kind::kList: return value.list().is_generator() || !value.list().items.empty();
    case Kind::kDict: return !value.dict().entries.empty();
    case Kind::kMethod: return true;
    case Kind::kObject: return value.object()->is_true(*this);
  }
  return true;
}

std::vector<Value> Runtime::characters(const TextPtr& text) {
  std::vector<Value> items;
  for (std::size_t at = 0; at < text->bytes.size();) {
    budget_.charge_steps(1);
    const std::size_t num_bytes = decode_at(text->bytes, at).num_bytes;
    items.push_back(slice_text(budget_, text, at, at + num_bytes));
    at += num_bytes;
  }
  return items;
}

std::vector<Value> Runtime::iterate(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined: return {};
    case Kind::kString: return characters(value.text_ptr());
    case Kind::kDict: {
      std::vector<Value> keys;
      budget_.charge_bytes(value.dict().entries.size() * sizeof(Value));
      for (const auto& entry : value.dict().entries) keys.push_back(entry.first);
      return keys;
    }
    case Kind::kList: {
      const List& list = value.list();
      budget_.charge_bytes(list.items.size() * sizeof(Value));
      std::vector<Value> items(list.items.begin() + static_cast<std::ptrdiff_t>(list.num_consumed), list.items.end());
      if (list.is_generator()) list.num_consumed = list.items.size();
      return items;
    }
    default: fail(fmt::format("'{}' object is not iterable", type_name(value)));
  }
}

std::optional<int64_t> Runtime::length(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined: return 0;
    case Kind::kString:
      if (!value.text().ascii) budget_.charge_bytes(value.text().bytes.size());
      return static_cast<int64_t>(value.text().num_code_points());
    case Kind::kList:
      if (value.list().is_generator()) return std::nullopt;
      return static_cast<int64_t>(value.list().items.size());
    case Kind::kDict: return static_cast<int64_t>(value.dict().entries.size());
    case Kind::kObject: return value.object()->length(*this);
    default: return std::nullopt;
  }
}

}  // namespace millrace::jinja
