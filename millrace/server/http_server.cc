#include "millrace/server/http_server.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <ctime>
#include <map>
#include <unordered_set>

namespace millrace {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kReadBytes = 64 << 10;        // one read, and what may wait unparsed
constexpr std::size_t kPipelinedBytes = 32 << 10;   // what a client may send ahead while its request is being answered
constexpr std::chrono::milliseconds kLingerTimeout{2'000};

std::string_view reason_phrase(int status) {
  const boost::beast::string_view reason = http::obsolete_reason(static_cast<http::status>(status));
  return {reason.data(), reason.size()};
}

std::string http_date() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[64];
  const std::size_t size = std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &utc);
  return {text, size};
}

// What connections are counted by: one IPv6 machine has a whole /64 network to call from.
asio::ip::address counted_address(const asio::ip::address& peer) {
  if (peer.is_v4()) return peer;
  if (peer.to_v6().is_v4_mapped()) return asio::ip::make_address_v4(asio::ip::v4_mapped, peer.to_v6());
  if (peer.is_loopback()) return peer;
  asio::ip::address_v6::bytes_type bytes = peer.to_v6().to_bytes();
  std::fill(bytes.begin() + 8, bytes.end(), static_cast<unsigned char>(0));
  return asio::ip::address_v6(bytes);
}

std::string to_string(boost::beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

struct Connection;

struct HttpServer::Impl {
  Impl(HttpHandler& h, const HttpLimits& l) : handler(h), limits(l), scratch(kReadBytes, '\0'), acceptor(io), signals(io) {}

  HttpHandler& handler;
  HttpLimits limits;
  std::string scratch;  // every socket is read into this one buffer, so that an idle connection costs no buffer
  std::unordered_set<Connection*> connections;
  std::map<asio::ip::address, int64_t> num_connections_of;  // by counted_address
  std::size_t bodies_bytes = 0;  // of bodies being received
  HttpServerStats stats;
  asio::io_context io{1};  // after what its coroutines use: destroying it ends them
  tcp::acceptor acceptor;
  asio::signal_set signals;
  uint16_t port = 0;
  int num_signals = 0;
  bool stopping = false;

  void start_accepting();
  void wait_for_signal();
  void stop_when_quiet(Clock::time_point deadline);
  awaitable<void> accept_loop();
  awaitable<void> read_loop(std::shared_ptr<Connection> connection);
  awaitable<void> serve(std::shared_ptr<Connection> connection);
  awaitable<int> read_request(Connection& connection, HttpRequest& request, bool& keep_alive, bool& head_only, bool& http_1_0, std::string& what,
                              std::optional<HttpResponse>& refusal);
  awaitable<bool> answer(std::shared_ptr<Connection> connection, HttpRequest request, bool keep_alive, bool head_only, bool http_1_0);
  awaitable<void> write_response(Connection& connection, HttpResponse response, bool close, bool head_only);
  awaitable<bool> write_all(Connection& connection, std::string_view bytes);
  awaitable<void> linger(Connection& connection);
};

class Exchange;

// The reader coroutine fills `input` and notices the end of the stream; the serving coroutine parses, waits and writes.
// `changed` is their condition variable: its expiry is the deadline of what the serving coroutine waits for.
struct Connection : std::enable_shared_from_this<Connection> {
  Connection(HttpServer::Impl& s, tcp::socket socket_, const asio::ip::address& peer_)
      : server(s), peer(peer_), socket(std::move(socket_)), changed(s.io), resume(s.io), write_deadline(s.io) {
    server.connections.insert(this);
    ++server.num_connections_of[peer];
    server.stats.num_connections = static_cast<int64_t>(server.connections.size());
    ++server.stats.num_connections_total;
  }
  ~Connection() {
    server.connections.erase(this);
    if (const auto count = server.num_connections_of.find(peer); --count->second == 0) server.num_connections_of.erase(count);
    server.stats.num_connections = static_cast<int64_t>(server.connections.size());
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  HttpServer::Impl& server;
  const asio::ip::address peer;  // as counted_address gives it
  tcp::socket socket;
  asio::steady_timer changed, resume, write_deadline;
  bool end_of_input = false;
  bool discard_input = false;   // lingering: what still comes is read and dropped
  std::weak_ptr<Exchange> exchange;

  void notify() { changed.cancel(); }

  // What was received and is not yet parsed. Taking from its front moves nothing: what a byte costs must not depend on how many wait.
  std::string_view input() const { return std::string_view(received_).substr(num_consumed_); }
  void receive(std::string_view bytes) {
    if (num_consumed_ >= received_.size() - num_consumed_) {
      received_.erase(0, num_consumed_);
      num_consumed_ = 0;
    }
    received_.append(bytes);
  }
  void consume(std::size_t num_bytes) {
    num_consumed_ += num_bytes;
    if (num_consumed_ == received_.size()) {
      received_ = {};  // an idle connection holds no buffer
      num_consumed_ = 0;
    }
    resume.cancel();
  }
  void close() {
    error_code ignored;
    socket.close(ignored);
    resume.cancel();
    changed.cancel();
  }
  // Sleeps until notify() or the deadline. False: the deadline has passed.
  awaitable<bool> wait_until(Clock::time_point deadline) {
    if (Clock::now() >= deadline) co_return false;
    changed.expires_at(deadline);
    error_code error;
    co_await changed.async_wait(asio::redirect_error(asio::use_awaitable, error));
    co_return error == asio::error::operation_aborted || Clock::now() < deadline;
  }

 private:
  std::string received_;
  std::size_t num_consumed_ = 0;
};

class Exchange final : public HttpExchange {
 public:
  Exchange(Connection* connection, HttpRequest request) : connection_(connection), request_(std::move(request)) {}

  const HttpRequest& request() const override { return request_; }
  std::string take_body() override { return std::exchange(request_.body, {}); }

  void respond(HttpResponse response) override {
    if (finished_) return;
    head_ = std::move(response);
    whole_ = finished_ = true;
    wake();
  }
  void start_stream(HttpResponse head) override {
    if (finished_ || head_) return;
    pending_ = std::move(head.body);
    head.body.clear();
    head_ = std::move(head);
    wake();
  }
  void write(std::string_view bytes) override {
    if (finished_ || bytes.empty()) return;
    pending_.append(bytes);
    if (connection_ != nullptr && pending_.size() > connection_->server.limits.pending_write_bytes) {
      gone();
      connection_->close();
      return;
    }
    wake();
  }
  void finish() override {
    if (finished_) return;
    finished_ = true;
    wake();
  }
  void on_gone(std::function<void()> callback) override {
    if (finished_) return;
    callback_ = std::move(callback);
    if (gone_) gone();
  }

  // The client left. Tells the handler, once.
  void gone() {
    gone_ = true;
    if (finished_) return;
    pending_.clear();
    if (auto callback = std::exchange(callback_, nullptr)) callback();
  }
  void detach() {
    if (!finished_) gone();
    finished_ = true;
    connection_ = nullptr;
  }

  bool is_finished() const { return finished_; }
  bool is_whole() const { return whole_; }
  std::optional<HttpResponse>& head() { return head_; }
  std::string take_pending() { return std::exchange(pending_, {}); }
  bool has_pending() const { return !pending_.empty(); }

 private:
  void wake() {
    if (connection_ != nullptr) connection_->notify();
  }

  Connection* connection_;  // null once the connection has ended
  HttpRequest request_;
  std::optional<HttpResponse> head_;
  std::string pending_;
  std::function<void()> callback_;
  bool whole_ = false, finished_ = false, gone_ = false;
};

// ---- reading ----

awaitable<void> HttpServer::Impl::read_loop(std::shared_ptr<Connection> connection) {
  Connection& c = *connection;
  error_code error;
  while (c.socket.is_open()) {
    const std::size_t bound = c.exchange.expired() ? kReadBytes : kPipelinedBytes;
    if (!c.discard_input && c.input().size() >= bound) {
      c.resume.expires_at(Clock::time_point::max());
      co_await c.resume.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    co_await c.socket.async_wait(tcp::socket::wait_read, asio::redirect_error(asio::use_awaitable, error));
    if (error) break;
    const std::size_t num_bytes = c.socket.read_some(asio::buffer(scratch), error);
    if (error == asio::error::would_block || error == asio::error::interrupted) continue;
    if (error) break;
    if (!c.discard_input) c.receive({scratch.data(), num_bytes});
    c.notify();
  }
  c.end_of_input = true;
  if (auto exchange = c.exchange.lock()) exchange->gone();
  c.notify();
}

// Reads one request. Returns 0 when there is one, -1 when the connection is over, or the status of a protocol error with
// `what` said. With `refusal` set the body has not been read.
awaitable<int> HttpServer::Impl::read_request(Connection& c, HttpRequest& request, bool& keep_alive, bool& head_only, bool& http_1_0,
                                              std::string& what, std::optional<HttpResponse>& refusal) {
  // A client may send empty lines between requests (RFC 9112, 2.2); more than a few is no client.
  const Clock::time_point idle_deadline = Clock::now() + limits.idle_timeout;
  for (int num_blank_lines = 0;;) {
    if (c.input().starts_with("\r\n") && num_blank_lines < 4) {
      c.consume(2);
      ++num_blank_lines;
    } else if (c.input().empty() || c.input() == "\r") {
      if (c.end_of_input || stopping) co_return -1;
      if (!co_await c.wait_until(idle_deadline)) co_return -1;
    } else {
      break;
    }
  }

  http::request_parser<http::string_body> parser;
  parser.header_limit(static_cast<uint32_t>(limits.header_bytes));
  parser.body_limit(limits.body_bytes);
  const Clock::time_point header_deadline = Clock::now() + limits.header_timeout;
  std::size_t header_end;
  while ((header_end = c.input().find("\r\n\r\n")) == std::string::npos) {
    if (c.input().size() > limits.header_bytes) {
      what = fmt::format("the request header is longer than {} bytes", limits.header_bytes);
      co_return 431;
    }
    if (c.end_of_input) co_return -1;
    if (!co_await c.wait_until(header_deadline)) {
      what = fmt::format("the request header was not complete within {} ms", limits.header_timeout.count());
      co_return 408;
    }
  }
  header_end += 4;
  const std::string_view head_text = c.input().substr(0, header_end);
  if (head_text.size() > limits.header_bytes) {
    what = fmt::format("the request header has {} bytes, at most {} are accepted", head_text.size(), limits.header_bytes);
    co_return 431;
  }
  // Folded lines and bare line feeds are read differently by different programs, which is how requests are smuggled past a proxy.
  if (head_text.find("\r\n ") != std::string_view::npos || head_text.find("\r\n\t") != std::string_view::npos) {
    what = "a header line is folded";
    co_return 400;
  }
  error_code error;
  const std::size_t num_parsed = parser.put(asio::buffer(head_text.data(), head_text.size()), error);
  if (error == http::error::need_more) error = {};
  if (error == http::error::body_limit) {
    what = fmt::format("the request body is larger than {} bytes", limits.body_bytes);
    co_return 413;
  }
  if (error || !parser.is_header_done()) {
    // Beast calls whatever follows the target a version.
    const std::string_view line = head_text.substr(0, head_text.find('\r'));
    const bool other_version = error == http::error::bad_version && std::count(line.begin(), line.end(), ' ') == 2 && line.find(" HTTP/") != line.npos;
    what = other_version ? "the HTTP version is not 1.0 or 1.1" : fmt::format("malformed request header: {}", error.message());
    co_return other_version ? 505 : 400;
  }
  c.consume(num_parsed);

  const auto& fields = parser.get();
  http_1_0 = fields.version() == 10;
  keep_alive = parser.keep_alive();
  request.method = to_string(fields.method_string());
  head_only = request.method == "HEAD";
  int64_t num_headers = 0, num_hosts = 0;
  for (const auto& field : fields) {
    ++num_headers;
    num_hosts += field.name() == http::field::host;
  }
  if (num_headers > limits.num_headers) {
    what = fmt::format("the request has {} header fields, at most {} are accepted", num_headers, limits.num_headers);
    co_return 431;
  }
  if (num_hosts > 1 || (!http_1_0 && num_hosts == 0)) {
    what = fmt::format("the request has {} Host fields, HTTP/1.1 wants one", num_hosts);
    co_return 400;
  }
  const std::string transfer_encoding = to_string(fields[http::field::transfer_encoding]);
  if (!transfer_encoding.empty() && (http_1_0 || !boost::beast::iequals(transfer_encoding, "chunked") || fields.count(http::field::content_length) > 0 ||
                                     fields.count(http::field::transfer_encoding) > 1)) {
    what = "Transfer-Encoding must be \"chunked\", once, in HTTP/1.1, and without Content-Length";
    co_return 400;
  }
  std::string target = to_string(fields.target());
  if (num_hosts > 0) request.host = to_string(fields[http::field::host]);
  if (const std::size_t scheme = target.find("://"); !target.starts_with('/') && scheme != std::string::npos) {  // absolute form, as for a proxy
    const std::size_t path = target.find('/', scheme + 3);
    request.host = target.substr(scheme + 3, path == std::string::npos ? path : path - scheme - 3);  // it takes precedence (RFC 9112, 3.2.2)
    target = path == std::string::npos ? "/" : target.substr(path);
  }
  const std::size_t question = target.find('?');
  request.path = target.substr(0, question);
  if (question != std::string::npos) request.query = target.substr(question + 1);
  request.content_type = to_string(fields[http::field::content_type]);
  request.content_encoding = to_string(fields[http::field::content_encoding]);
  request.authorization = to_string(fields[http::field::authorization]);
  request.if_none_match = to_string(fields[http::field::if_none_match]);
  if (head_only) request.method = "GET";

  refusal = handler.refuse(request);
  const bool has_body = parser.chunked() || parser.content_length().value_or(0) > 0;
  if (refusal) {
    if (has_body) keep_alive = false;
    co_return 0;
  }
  if (boost::beast::iequals(fields[http::field::expect], "100-continue") && has_body && c.input().empty()) {
    if (!co_await write_all(c, "HTTP/1.1 100 Continue\r\n\r\n")) co_return -1;
  }

  const Clock::time_point body_deadline = Clock::now() + limits.body_timeout;
  struct Received {
    std::size_t& total;
    std::size_t bytes = 0;
    ~Received() { total -= bytes; }
    void set(std::size_t now) {
      total += now - bytes;
      bytes = now;
    }
  } received{bodies_bytes};
  parser.eager(true);  // all the chunks that are there in one call; other connections have their turn in wait_until
  while (!parser.is_done()) {
    if (!c.input().empty()) {
      c.consume(parser.put(asio::buffer(c.input()), error));
      received.set(parser.get().body().size());
      if (bodies_bytes > limits.all_bodies_bytes) {
        what = "the server is receiving too many large requests; try again later";
        co_return 503;
      }
      if (error == http::error::body_limit) {
        what = fmt::format("the request body is larger than {} bytes", limits.body_bytes);
        co_return 413;
      }
      if (error && error != http::error::need_more) {
        what = fmt::format("malformed request body: {}", error.message());
        co_return 400;
      }
      if (parser.is_done()) break;
      if (c.input().size() >= kReadBytes) {  // an endless chunk extension or trailer
        what = "a chunk header or trailer of the request body is too long";
        co_return 400;
      }
    }
    if (c.end_of_input) co_return -1;
    if (!co_await c.wait_until(body_deadline)) {
      what = fmt::format("the request body was not complete within {} ms", limits.body_timeout.count());
      co_return 408;
    }
  }
  request.body = std::move(parser.get().body());
  co_return 0;
}

// ---- writing ----

awaitable<bool> HttpServer::Impl::write_all(Connection& c, std::string_view bytes) {
  while (!bytes.empty()) {
    c.write_deadline.expires_after(limits.write_timeout);
    c.write_deadline.async_wait([connection = c.weak_from_this()](const error_code& error) {
      if (error) return;  // cancelled: the write made progress
      if (const auto stalled = connection.lock()) stalled->close();
    });
    error_code error;
    const std::size_t num_written =
        co_await c.socket.async_write_some(asio::buffer(bytes.data(), bytes.size()), asio::redirect_error(asio::use_awaitable, error));
    c.write_deadline.cancel();
    if (error) co_return false;
    bytes.remove_prefix(num_written);
  }
  co_return true;
}

namespace {

std::string response_head(const HttpResponse& response, bool close, bool chunked, std::optional<std::size_t> content_length) {
  std::string head = fmt::format("HTTP/1.1 {} {}\r\nServer: millrace\r\nDate: {}\r\n", response.status, reason_phrase(response.status), http_date());
  if (!response.content_type.empty()) head += fmt::format("Content-Type: {}\r\n", response.content_type);
  if (content_length) head += fmt::format("Content-Length: {}\r\n", *content_length);
  if (chunked) head += "Transfer-Encoding: chunked\r\n";
  for (const auto& [name, value] : response.headers) head += fmt::format("{}: {}\r\n", name, value);
  head += close ? "Connection: close\r\n\r\n" : "Connection: keep-alive\r\n\r\n";
  return head;
}

}  // namespace

awaitable<void> HttpServer::Impl::write_response(Connection& c, HttpResponse response, bool close, bool head_only) {
  const bool no_content = response.status == 204 || response.status == 304;
  std::string bytes = response_head(response, close, false, no_content ? std::nullopt : std::optional(response.body.size()));
  if (!head_only && !no_content) bytes += response.body;
  response.body = {};
  if (!co_await write_all(c, bytes)) c.close();
}

// Closing a socket with unread input resets the connection, and the client may lose the answer: say that we are done, and
// read what still comes for a moment.
awaitable<void> HttpServer::Impl::linger(Connection& c) {
  error_code ignored;
  c.socket.shutdown(tcp::socket::shutdown_send, ignored);
  c.discard_input = true;
  c.consume(c.input().size());
  const Clock::time_point deadline = Clock::now() + kLingerTimeout;
  while (!c.end_of_input && !stopping && co_await c.wait_until(deadline)) {
  }
}

// Hands the request to the handler and writes what it answers. True: the connection may take another request.
awaitable<bool> HttpServer::Impl::answer(std::shared_ptr<Connection> connection, HttpRequest request, bool keep_alive, bool head_only, bool http_1_0) {
  Connection& c = *connection;
  auto exchange = std::make_shared<Exchange>(&c, std::move(request));
  c.exchange = exchange;
  struct Detach {
    Exchange& exchange;
    ~Detach() { exchange.detach(); }
  } detach{*exchange};
  try {
    handler.handle(exchange);
  } catch (const std::exception& e) {  // out of memory, in the main: this request fails, and no other
    exchange->respond(handler.protocol_error(500, "the server could not handle this request"));
  }
  if (c.end_of_input) exchange->gone();

  bool streaming = false, close = !keep_alive, chunked = false;
  while (true) {
    if (exchange->head() && exchange->is_whole()) {
      HttpResponse response = std::move(*exchange->head());
      close = close || response.close;
      co_await write_response(c, std::move(response), close, head_only);
      break;
    }
    if (!exchange->head() || (streaming && !exchange->has_pending() && !exchange->is_finished())) {
      if (c.end_of_input || !c.socket.is_open() || (exchange->is_finished() && !exchange->head())) co_return false;
      co_await c.wait_until(Clock::time_point::max());
      continue;
    }
    std::string bytes;
    if (!streaming) {
      streaming = true;
      chunked = !http_1_0;
      close = close || http_1_0 || exchange->head()->close;
      bytes = response_head(*exchange->head(), close, chunked, std::nullopt);
    }
    const bool last = exchange->is_finished();
    const std::string piece = exchange->take_pending();
    if (!head_only) {
      if (!piece.empty()) bytes += chunked ? fmt::format("{:x}\r\n{}\r\n", piece.size(), piece) : piece;
      if (last && chunked) bytes += "0\r\n\r\n";
    }
    if (!co_await write_all(c, bytes)) {
      exchange->gone();
      co_return false;
    }
    if (last) break;
  }
  c.exchange.reset();
  c.resume.cancel();
  if (close && c.socket.is_open()) co_await linger(c);
  co_return !close && c.socket.is_open();
}

awaitable<void> HttpServer::Impl::serve(std::shared_ptr<Connection> connection) {
  Connection& c = *connection;
  bool open = true;
  while (open) {
    HttpRequest request;
    std::optional<HttpResponse> refusal;
    bool keep_alive = false, head_only = false, http_1_0 = false;
    std::string what;
    const int status = co_await read_request(c, request, keep_alive, head_only, http_1_0, what, refusal);
    if (status < 0) break;
    if (status > 0) {
      co_await write_response(c, handler.protocol_error(status, what), true, false);
      co_await linger(c);
      break;
    }
    if (refusal) {
      const bool close = !keep_alive || refusal->close;
      co_await write_response(c, std::move(*refusal), close, head_only);
      if (close) co_await linger(c);
      open = !close && c.socket.is_open();
      continue;
    }
    open = co_await answer(connection, std::move(request), keep_alive, head_only, http_1_0);
  }
  c.close();
}

// ---- accepting, stopping ----

awaitable<void> HttpServer::Impl::accept_loop() {
  asio::steady_timer pause(io);
  while (acceptor.is_open()) {
    error_code error;
    tcp::socket socket = co_await acceptor.async_accept(asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      if (!acceptor.is_open() || error == asio::error::operation_aborted) co_return;
      pause.expires_after(std::chrono::milliseconds(50));  // out of file descriptors, for one: some will come back
      co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);
    socket.non_blocking(true, ignored);
    const tcp::endpoint remote = socket.remote_endpoint(error);
    if (error) continue;  // it has gone already
    const asio::ip::address peer = counted_address(remote.address());
    const auto same = num_connections_of.find(peer);
    std::string refusal;
    if (static_cast<int64_t>(connections.size()) >= limits.num_connections) {
      refusal = fmt::format("{} connections are open, the most this server takes", connections.size());
    } else if (!peer.is_loopback() && same != num_connections_of.end() && same->second >= limits.num_connections_per_address) {
      refusal = fmt::format("{} connections are open from your address, the most this server takes", same->second);
    }
    if (!refusal.empty()) {
      ++stats.num_connections_refused;
      const HttpResponse response = handler.protocol_error(503, refusal);
      socket.write_some(asio::buffer(response_head(response, true, false, response.body.size()) + response.body), ignored);
      socket.shutdown(tcp::socket::shutdown_send, ignored);
      continue;
    }
    auto connection = std::make_shared<Connection>(*this, std::move(socket), peer);
    // An exception out of a coroutine ends its connection only.
    const auto finish = [connection](const std::exception_ptr& exception) {
      if (exception) connection->close();
    };
    asio::co_spawn(io, read_loop(connection), finish);
    asio::co_spawn(io, serve(connection), finish);
  }
}

void HttpServer::Impl::wait_for_signal() {
  signals.async_wait([this](const error_code& error, int) {
    if (error) return;
    handler.on_signal(++num_signals);
    wait_for_signal();
  });
}

void HttpServer::Impl::stop_when_quiet(Clock::time_point deadline) {
  if (connections.empty() || Clock::now() >= deadline) {
    io.stop();
    return;
  }
  auto timer = std::make_shared<asio::steady_timer>(io, std::chrono::milliseconds(5));
  timer->async_wait([this, deadline, timer](const error_code&) { stop_when_quiet(deadline); });
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

Result<std::unique_ptr<HttpServer>> HttpServer::listen(const std::string& host, uint16_t port, HttpHandler& handler, const HttpLimits& limits) {
  auto impl = std::make_unique<Impl>(handler, limits);
  error_code error;
  asio::ip::address address = asio::ip::make_address(host == "localhost" ? "127.0.0.1" : host, error);
  if (error) return Status::invalid_argument(fmt::format("host \"{}\" is not an IP address", host));
  const tcp::endpoint endpoint(address, port);
  const auto failed = [&](std::string_view what) {
    return Status::unavailable(fmt::format("cannot {} {}:{}: {}", what, host, port, error.message()));
  };
  if (impl->acceptor.open(endpoint.protocol(), error)) return failed("open a socket for");
  if (impl->acceptor.set_option(asio::socket_base::reuse_address(true), error)) return failed("set options of");
  if (impl->acceptor.bind(endpoint, error)) return failed("bind");
  if (impl->acceptor.listen(asio::socket_base::max_listen_connections, error)) return failed("listen on");
  impl->port = impl->acceptor.local_endpoint(error).port();

  // Every connection is a file descriptor; the usual soft limit of 1024 is below num_connections.
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    const rlim_t wanted = static_cast<rlim_t>(limits.num_connections) + 256;
    if (files.rlim_cur < wanted) {
      files.rlim_cur = files.rlim_max == RLIM_INFINITY ? wanted : std::min(wanted, files.rlim_max);
      setrlimit(RLIMIT_NOFILE, &files);
    }
  }
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

uint16_t HttpServer::port() const { return impl_->port; }
const HttpServerStats& HttpServer::stats() const { return impl_->stats; }

void HttpServer::run(bool handle_signals) {
  if (handle_signals) {
    error_code ignored;
    impl_->signals.add(SIGTERM, ignored);
    impl_->signals.add(SIGINT, ignored);
    impl_->wait_for_signal();
  }
  asio::co_spawn(impl_->io, impl_->accept_loop(), asio::detached);
  while (true) {
    try {
      impl_->io.run();
      break;
    } catch (const std::exception&) {
      // A posted task ran out of memory; what it served fails by its own timeout, and the loop goes on.
    }
  }
}

void HttpServer::post(std::function<void()> task) { asio::post(impl_->io, std::move(task)); }

void HttpServer::post_after(std::chrono::milliseconds delay, std::function<void()> task) {
  auto timer = std::make_shared<asio::steady_timer>(impl_->io, delay);
  timer->async_wait([timer, task = std::move(task)](const error_code& error) {
    if (!error) task();
  });
}

void HttpServer::stop(std::chrono::milliseconds grace) {
  if (impl_->stopping) {
    if (grace == grace.zero()) impl_->io.stop();
    return;
  }
  impl_->stopping = true;
  error_code ignored;
  impl_->acceptor.close(ignored);
  for (Connection* connection : impl_->connections) connection->notify();
  impl_->stop_when_quiet(Clock::now() + grace);
}

}  // namespace millrace
