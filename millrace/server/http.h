// HTTP as the handlers see it: a request that has been read whole, and an exchange that takes the answer, at once or piece by
// piece. No socket and no Boost in here, so that handlers are tested without either (a test implements HttpExchange).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace millrace {

struct HttpRequest {
  std::string method;  // as sent: "GET"; methods are case-sensitive
  std::string path;    // without query, not percent-decoded
  std::string query;
  std::optional<std::string> host;  // the Host field, or the authority of a target in absolute form; absent in HTTP/1.0 only
  std::string content_type;         // empty where absent, like the next three
  std::string content_encoding;
  std::string authorization;
  std::string if_none_match;
  std::string body;  // at most HttpLimits::body_bytes
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;  // beyond Content-Type, Content-Length, Date, Connection
  bool close = false;                                        // ask the client not to use this connection again
};

// One request and its answer. Every member is called on the I/O thread only.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;

  virtual const HttpRequest& request() const = 0;
  virtual std::string take_body() = 0;  // out of the request: a body must not live as long as its answer's stream

  // The whole answer; nothing may follow. Does nothing when the client has gone.
  virtual void respond(HttpResponse response) = 0;

  // An answer in pieces: start_stream once (its body is the first piece), write as often as needed, finish once. Pieces written before
  // the socket takes them are sent together.
  virtual void start_stream(HttpResponse head) = 0;
  virtual void write(std::string_view bytes) = 0;
  virtual void finish() = 0;

  // Called at most once, and never after the answer is complete: the client left, or it reads so slowly that its write bound is exceeded.
  virtual void on_gone(std::function<void()> callback) = 0;
};

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;

  // Looks at the head before any of the body is read: a refusal saves reading it.
  virtual std::optional<HttpResponse> refuse(const HttpRequest& head) = 0;

  virtual void handle(std::shared_ptr<HttpExchange> exchange) = 0;

  // The answer to a request that is not well-formed HTTP, too large or too slow.
  virtual HttpResponse protocol_error(int status, std::string_view what) = 0;

  // SIGTERM or SIGINT arrived; `count` is 1 for the first.
  virtual void on_signal(int count) = 0;
};

}  // namespace millrace
