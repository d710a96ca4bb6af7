#include "millrace/server/api_error.h"

#include <utility>

#include "millrace/server/json_writer.h"

namespace millrace {

ApiError invalid_field(std::string_view field, std::string message) {
  ApiError error;
  error.message = std::move(message);
  error.param = std::string(field);
  return error;
}

ApiError http_error(int status, std::string message) {
  ApiError error;
  error.status = status;
  error.message = std::move(message);
  if (status >= 500 && status != 505) error.type = "server_error";
  switch (status) {
    case 401: error.code = "invalid_api_key"; break;
    case 404: error.code = "not_found"; break;
    case 405: error.code = "method_not_allowed"; break;
    case 408: error.code = "request_timeout"; break;
    case 413: error.code = "request_too_large"; break;
    case 415: error.code = "unsupported_media_type"; break;
    case 429:
      error.type = "rate_limit_error";
      error.code = "queue_full";
      break;
    case 431: error.code = "header_too_large"; break;
    case 503: error.code = "unavailable"; break;
    default: break;
  }
  return error;
}

ApiError to_api_error(const Status& status) {
  switch (status.code()) {
    case StatusCode::kInvalidArgument:
    case StatusCode::kUnsupported: return http_error(400, status.message());
    case StatusCode::kNotFound: return http_error(404, status.message());
    case StatusCode::kResourceExhausted: return http_error(429, status.message());
    case StatusCode::kUnavailable: return http_error(503, status.message());
    default: return http_error(500, "the server failed on this request");
  }
}

std::string error_json(const ApiError& error) {
  JsonWriter json;
  json.begin_object().key("error").begin_object().field("message", error.message).field("type", error.type).key("param");
  error.param ? json.value(*error.param) : json.null();
  json.key("code");
  error.code ? json.value(*error.code) : json.null();
  return json.end_object().end_object().take();
}

HttpResponse error_response(const ApiError& error) {
  HttpResponse response;
  response.status = error.status;
  response.body = error_json(error);
  if (error.status == 429 || error.status == 503) response.headers.emplace_back("Retry-After", "1");
  return response;
}

}  // namespace millrace
