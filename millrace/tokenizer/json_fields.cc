#include "millrace/tokenizer/json_fields.h"

#include <fmt/format.h>

#include "millrace/base/utf8.h"

namespace millrace {
namespace {

std::string_view kind_name(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null: return "null";
    case json::kind::bool_: return "a boolean";
    case json::kind::int64:
    case json::kind::uint64: return "an integer";
    case json::kind::double_: return "a number";
    case json::kind::string: return "a string";
    case json::kind::array: return "an array";
    case json::kind::object: return "an object";
  }
  return "unknown";
}

Status wrong(std::string_view what, std::string_view name, const json::value& found, std::string_view expected) {
  return Status::invalid_argument(fmt::format("{}: \"{}\" is {}, expected {}", what, name, kind_name(found), expected));
}

}  // namespace

Result<JsonFields> JsonFields::of(const json::value& value, std::string_view what) {
  if (!value.is_object()) return Status::invalid_argument(fmt::format("{} is {}, expected an object", what, kind_name(value)));
  return JsonFields(value.get_object(), what);
}

const json::value* JsonFields::find(std::string_view name) const {
  const json::value* value = object_->if_contains(json::string_view(name.data(), name.size()));
  return value == nullptr || value->is_null() ? nullptr : value;
}

Result<const json::value*> JsonFields::require(std::string_view name) const {
  const json::value* value = find(name);
  if (value == nullptr) return Status::invalid_argument(fmt::format("{}: \"{}\" is missing", what_, name));
  return value;
}

Result<std::string> JsonFields::string(std::string_view name) const {
  MR_ASSIGN_OR_RETURN(const json::value* value, require(name));
  if (!value->is_string()) return wrong(what_, name, *value, "a string");
  return std::string(value->get_string().data(), value->get_string().size());
}

Result<std::string> JsonFields::string_or(std::string_view name, std::string_view fallback) const {
  if (find(name) == nullptr) return std::string(fallback);
  return string(name);
}

Result<std::optional<std::string>> JsonFields::optional_string(std::string_view name) const {
  if (find(name) == nullptr) return std::optional<std::string>{};
  MR_ASSIGN_OR_RETURN(std::string value, string(name));
  return std::optional<std::string>(std::move(value));
}

Result<bool> JsonFields::boolean_or(std::string_view name, bool fallback) const {
  const json::value* value = find(name);
  if (value == nullptr) return fallback;
  if (!value->is_bool()) return wrong(what_, name, *value, "a boolean");
  return value->get_bool();
}

Result<int64_t> JsonFields::integer(std::string_view name, int64_t min, int64_t max) const {
  MR_ASSIGN_OR_RETURN(const json::value* value, require(name));
  if (!value->is_int64() && !value->is_uint64()) return wrong(what_, name, *value, "an integer");
  const bool fits = value->is_int64() ? value->get_int64() >= min && value->get_int64() <= max : false;
  if (!fits) return Status::invalid_argument(fmt::format("{}: \"{}\" is out of range, expected {} to {}", what_, name, min, max));
  return value->get_int64();
}

Result<int64_t> JsonFields::integer_or(std::string_view name, int64_t fallback, int64_t min, int64_t max) const {
  if (find(name) == nullptr) return fallback;
  return integer(name, min, max);
}

Result<char32_t> JsonFields::character(std::string_view name) const {
  MR_ASSIGN_OR_RETURN(const std::string text, string(name));
  std::size_t end = 0;
  const char32_t c = text.empty() ? 0 : utf8::decode(text, end);
  if (text.empty() || end != text.size()) {
    return Status::invalid_argument(fmt::format("{}: \"{}\" is \"{}\", expected one character", what_, name, text.substr(0, 50)));
  }
  return c;
}

}  // namespace millrace
