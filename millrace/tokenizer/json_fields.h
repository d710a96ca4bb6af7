#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "millrace/base/json.h"
#include "millrace/base/status.h"

namespace millrace {

// Typed access to one JSON object of a tokenizer file. Errors say which field has which wrong type.
class JsonFields {
 public:
  static Result<JsonFields> of(const json::value& value, std::string_view what);

  const json::value* find(std::string_view name) const;  // null where absent or JSON null
  Result<const json::value*> require(std::string_view name) const;
  Result<std::string> string(std::string_view name) const;
  Result<std::string> string_or(std::string_view name, std::string_view fallback) const;
  Result<std::optional<std::string>> optional_string(std::string_view name) const;
  Result<bool> boolean_or(std::string_view name, bool fallback) const;
  Result<int64_t> integer(std::string_view name, int64_t min, int64_t max) const;
  Result<int64_t> integer_or(std::string_view name, int64_t fallback, int64_t min, int64_t max) const;
  Result<char32_t> character(std::string_view name) const;  // a string of exactly one character
  const std::string& what() const { return what_; }

 private:
  JsonFields(const json::object& object, std::string_view what) : object_(&object), what_(what) {}
  const json::object* object_;
  std::string what_;
};

}  // namespace millrace
