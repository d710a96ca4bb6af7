#include "millrace/server/http_request_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <utility>

#include "millrace/base/check.h"

namespace millrace {
namespace {

namespace http = boost::beast::http;
using boost::system::error_code;

std::string to_string(boost::beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

struct HttpRequestParser::Beast {
  http::request_parser<http::string_body> parser;
};

HttpRequestParser::HttpRequestParser(const HttpLimits& limits) : limits_(limits), beast_(std::make_unique<Beast>()) {
  beast_->parser.header_limit(static_cast<uint32_t>(limits.header_bytes));
  beast_->parser.body_limit(limits.body_bytes);
}
HttpRequestParser::~HttpRequestParser() = default;

bool HttpRequestParser::is_done() const { return has_head_ && !error_ && beast_->parser.is_done(); }

std::size_t HttpRequestParser::num_body_bytes() const { return beast_->parser.get().body().size(); }

HttpRequest HttpRequestParser::take_request() {
  MR_CHECK(is_done(), "the request has not been read");
  request_.body = std::move(beast_->parser.get().body());
  return std::move(request_);
}

std::size_t HttpRequestParser::put(std::string_view input) {
  MR_CHECK(!error_, "a request that is none was not given up");
  if (!has_head_) return put_head(input);
  return is_done() || input.empty() ? 0 : put_body(input);
}

std::size_t HttpRequestParser::fail(int status, std::string what) {
  error_ = HttpProtocolError{status, std::move(what)};
  return 0;
}

std::size_t HttpRequestParser::put_head(std::string_view input) {
  const std::size_t end = input.find("\r\n\r\n");
  if (end == std::string_view::npos) {
    if (input.size() > limits_.header_bytes) fail(431, fmt::format("the request header is longer than {} bytes", limits_.header_bytes));
    return 0;
  }
  const std::string_view text = input.substr(0, end + 4);
  if (text.size() > limits_.header_bytes) {
    return fail(431, fmt::format("the request header has {} bytes, at most {} are accepted", text.size(), limits_.header_bytes));
  }
  if (text.find("\r\n ") != std::string_view::npos || text.find("\r\n\t") != std::string_view::npos)
    return fail(400, "a header line is folded");
  error_code error;
  const std::size_t num_parsed = beast_->parser.put(boost::asio::buffer(text.data(), text.size()), error);
  if (error == http::error::need_more) error = {};
  if (error == http::error::body_limit) return fail(413, fmt::format("the request body is larger than {} bytes", limits_.body_bytes));
  if (error || !beast_->parser.is_header_done()) {
    // Beast calls whatever follows the target a version.
    const std::string_view line = text.substr(0, text.find('\r'));
    const bool other_version =
        error == http::error::bad_version && std::count(line.begin(), line.end(), ' ') == 2 && line.find(" HTTP/") != line.npos;
    return other_version ? fail(505, "the HTTP version is not 1.0 or 1.1")
                         : fail(400, fmt::format("malformed request header: {}", error.message()));
  }
  read_fields();
  beast_->parser.eager(true);  // from here on all the chunks that are there in one call
  return num_parsed;
}

void HttpRequestParser::read_fields() {
  const auto& parser = beast_->parser;
  const auto& fields = parser.get();
  http_1_0_ = fields.version() == 10;
  keep_alive_ = parser.keep_alive();
  int64_t num_fields = 0, num_hosts = 0;
  for (const auto& field : fields) {
    ++num_fields;
    num_hosts += field.name() == http::field::host;
  }
  if (num_fields > limits_.num_headers) {
    fail(431, fmt::format("the request has {} header fields, at most {} are accepted", num_fields, limits_.num_headers));
    return;
  }
  if (num_hosts > 1 || (!http_1_0_ && num_hosts == 0)) {
    fail(400, fmt::format("the request has {} Host fields, HTTP/1.1 wants one", num_hosts));
    return;
  }
  const auto transfer_encoding = fields[http::field::transfer_encoding];
  if (!transfer_encoding.empty() && (http_1_0_ || !boost::beast::iequals(transfer_encoding, "chunked") ||
                                     fields.count(http::field::content_length) > 0 || fields.count(http::field::transfer_encoding) > 1)) {
    fail(400, "Transfer-Encoding must be \"chunked\", once, in HTTP/1.1, and without Content-Length");
    return;
  }
  request_.method = to_string(fields.method_string());
  head_only_ = request_.method == "HEAD";
  if (head_only_) request_.method = "GET";
  if (num_hosts > 0) request_.host = to_string(fields[http::field::host]);
  read_target();
  request_.content_type = to_string(fields[http::field::content_type]);
  request_.content_encoding = to_string(fields[http::field::content_encoding]);
  request_.authorization = to_string(fields[http::field::authorization]);
  request_.if_none_match = to_string(fields[http::field::if_none_match]);
  has_body_ = parser.chunked() || parser.content_length().value_or(0) > 0;
  expects_continue_ = has_body_ && boost::beast::iequals(fields[http::field::expect], "100-continue");
  has_head_ = true;
}

void HttpRequestParser::read_target() {
  std::string target = to_string(beast_->parser.get().target());
  if (const std::size_t scheme = target.find("://");
      !target.starts_with('/') && scheme != std::string::npos) {  // absolute form, as for a proxy
    const std::size_t path = target.find('/', scheme + 3);
    request_.host =
        target.substr(scheme + 3, path == std::string::npos ? path : path - scheme - 3);  // it takes precedence (RFC 9112, 3.2.2)
    target = path == std::string::npos ? "/" : target.substr(path);
  }
  const std::size_t question = target.find('?');
  request_.path = target.substr(0, question);
  if (question != std::string::npos) request_.query = target.substr(question + 1);
}

std::size_t HttpRequestParser::put_body(std::string_view input) {
  error_code error;
  const std::size_t num_parsed = beast_->parser.put(boost::asio::buffer(input.data(), input.size()), error);
  if (error == http::error::body_limit) return fail(413, fmt::format("the request body is larger than {} bytes", limits_.body_bytes));
  if (error && error != http::error::need_more) return fail(400, fmt::format("malformed request body: {}", error.message()));
  if (!beast_->parser.is_done() && input.size() - num_parsed >= kUnparsedBytesMax) {  // an endless chunk extension or trailer
    return fail(400, "a chunk header or trailer of the request body is too long");
  }
  return num_parsed;
}

}  // namespace millrace
