// What a request may say: one table of fields with their type, range and meaning, for every endpoint that takes JSON. Whatever is
// not in the table is an error that names it: a misspelt field must not be ignored in silence.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "millrace/server/api_error.h"
#include "millrace/server/api_request.h"

namespace millrace {

// Reads a field that needs more than a type and a range.
using FieldReader = std::optional<ApiError> (*)(std::string_view name, const json::value& value, ApiRequest& request);

struct FieldIgnored {};  // accepted: it does not change the answer
struct FieldUnsupported {
  std::string_view neutral;  // JSON text of the one value that changes nothing; empty: none
};

struct RequestField {
  using Target = std::variant<FieldIgnored, FieldUnsupported, FieldReader, bool ApiRequest::*, std::optional<bool> ApiRequest::*,
                              int64_t ApiRequest::*, std::optional<int64_t> ApiRequest::*, std::optional<double> ApiRequest::*,
                              std::string ApiRequest::*>;

  std::string_view name;
  unsigned endpoints;  // Endpoint bits
  Target target;
  double minimum = 0, maximum = 0;  // of numbers, inclusive; of strings: bytes. Equal: no bound
  bool above_minimum = false;       // the minimum itself is refused
};

std::span<const RequestField> request_fields();

// Parses and checks the body of a request to `endpoint`. Null stands for absent, as OpenAI's clients send it.
std::optional<ApiError> parse_request(Endpoint endpoint, std::string_view body, ApiRequest& request);

}  // namespace millrace
