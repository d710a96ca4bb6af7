#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "millrace/base/status.h"
#include "millrace/server/http.h"

namespace millrace {

// An error as OpenAI's API shows it: {"error": {"message", "type", "param", "code"}}.
struct ApiError {
  int status = 400;
  std::string message;  // names the field, what was found and what was expected
  std::string type = "invalid_request_error";
  std::optional<std::string> param;  // the request's field
  std::optional<std::string> code;   // what a program may switch on
};

ApiError invalid_field(std::string_view field, std::string message);  // 400

// The one place where a Status becomes HTTP. Messages of internal errors stay inside: they may hold what a client must not see.
ApiError to_api_error(const Status& status);

// An error that has no more to say than its HTTP status: 401, 404, 405, 413, 415, 431, 503 ...
ApiError http_error(int status, std::string message);

std::string error_json(const ApiError& error);

// With Retry-After for 429 and 503.
HttpResponse error_response(const ApiError& error);

}  // namespace millrace
