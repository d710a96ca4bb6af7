// One HTTP/1.1 (or 1.0) request, read from bytes as they come. No socket and no clock in here: which request it makes of a text,
// if any, does not depend on the pieces in which the text arrives (http_request_parser_test.cc and the fuzz target hold it to that).
//
// Stricter than the standard where two programs could read one text as different requests, which is how requests are smuggled past a
// proxy: folded lines, Transfer-Encoding beside Content-Length, several Host fields and the like are errors. Boost.Beast stays inside
// http_request_parser.cc.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "millrace/server/http.h"
#include "millrace/server/http_limits.h"

namespace millrace {

struct HttpProtocolError {
  int status = 400;  // of the answer, after which the connection is of no more use
  std::string what;
};

class HttpRequestParser {
 public:
  // Most of what is left unparsed of a body: chunk headers, extensions and trailers are short.
  static constexpr std::size_t kUnparsedBytesMax = 64 << 10;

  explicit HttpRequestParser(const HttpLimits& limits);
  ~HttpRequestParser();
  HttpRequestParser(const HttpRequestParser&) = delete;
  HttpRequestParser& operator=(const HttpRequestParser&) = delete;

  // Takes what it can from the front of `input`, all that has arrived and was not taken yet, and gives the number of bytes taken. Stops
  // behind the head, once, so that a caller can look at it before the body is read; and behind the request. Not after an error.
  std::size_t put(std::string_view input);

  const std::optional<HttpProtocolError>& error() const { return error_; }
  bool has_head() const { return has_head_; }
  bool is_done() const;  // the whole request was read

  // With has_head():
  const HttpRequest& head() const { return request_; }  // its body is empty
  bool keep_alive() const { return keep_alive_; }
  bool is_head_only() const { return head_only_; }  // HEAD: head().method says GET
  bool is_http_1_0() const { return http_1_0_; }
  bool has_body() const { return has_body_; }
  bool expects_continue() const { return expects_continue_; }

  std::size_t num_body_bytes() const;  // received so far
  HttpRequest take_request();          // with is_done(), once

 private:
  std::size_t put_head(std::string_view input);
  std::size_t put_body(std::string_view input);
  void read_fields();
  void read_target();
  std::size_t fail(int status, std::string what);

  struct Beast;
  const HttpLimits limits_;
  std::unique_ptr<Beast> beast_;
  HttpRequest request_;
  std::optional<HttpProtocolError> error_;
  bool has_head_ = false, keep_alive_ = false, head_only_ = false, http_1_0_ = false, has_body_ = false, expects_continue_ = false;
};

}  // namespace millrace
