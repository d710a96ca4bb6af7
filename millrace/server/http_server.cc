#include "millrace/server/http_server.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/status.hpp>
#include <ctime>

#include "millrace/server/http_connection.h"
#include "millrace/server/http_request_parser.h"

namespace millrace {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kReadBytes = HttpRequestParser::kUnparsedBytesMax;  // one read, and what may wait unparsed
constexpr std::size_t kPipelinedBytes = 32 << 10;       // what a client may send ahead while its request is being answered
constexpr std::chrono::milliseconds kPausedCheck{250};  // how often a client that sends too far ahead is asked whether it is there
constexpr std::chrono::milliseconds kLingerTimeout{2'000};
constexpr std::chrono::milliseconds kLastReads{50};  // between the last connection taken and the end of idle ones

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

}  // namespace

struct HttpServer::Impl {
  Impl(HttpHandler& h, const HttpLimits& l)
      : handler(h), limits(l), scratch(kReadBytes, '\0'), connections(limits), acceptor(io), signals(io) {}

  HttpHandler& handler;
  HttpLimits limits;
  std::string scratch;  // every socket is read into this one buffer, so that an idle connection costs no buffer
  HttpConnectionTable connections;
  std::size_t bodies_bytes = 0;  // of bodies being received
  asio::io_context io{1};        // after what its coroutines use: destroying it ends them
  tcp::acceptor acceptor;
  asio::signal_set signals;
  uint16_t port = 0;
  int num_signals = 0;
  bool stopping = false;

  void wait_for_signal();
  void stop_when_quiet(Clock::time_point deadline);
  awaitable<void> accept_loop();
  void welcome(tcp::socket socket);
  void stop_accepting();
  awaitable<void> read_loop(std::shared_ptr<HttpConnection> connection);
  awaitable<void> serve(std::shared_ptr<HttpConnection> connection);
  enum class Outcome { kRead, kRefused, kFailed, kOver };  // kOver: the connection is
  awaitable<bool> wait_for_request(HttpConnection& connection);
  awaitable<Outcome> read_request(HttpConnection& connection, HttpRequestParser& parser, std::optional<HttpResponse>& refusal,
                                  HttpProtocolError& error);
  awaitable<bool> answer(std::shared_ptr<HttpConnection> connection, HttpRequest request, bool keep_alive, bool head_only, bool http_1_0);
  awaitable<void> write_response(HttpConnection& connection, HttpResponse response, bool close, bool head_only);
  awaitable<bool> write_all(HttpConnection& connection, std::string_view bytes);
  awaitable<void> linger(HttpConnection& connection);
};

// ---- reading ----

awaitable<void> HttpServer::Impl::read_loop(std::shared_ptr<HttpConnection> connection) {
  HttpConnection& c = *connection;
  error_code error;
  while (c.socket.is_open()) {
    const std::size_t bound = c.exchange.expired() ? kReadBytes : kPipelinedBytes;
    if (!c.discard_input && c.input().size() >= bound) {
      // The end of the input is behind bytes that are not read now: the connection's state tells of it.
      c.resume.expires_after(kPausedCheck);
      co_await c.resume.async_wait(asio::redirect_error(asio::use_awaitable, error));
      if (!error && !c.exchange.expired() && c.peer_has_closed()) break;
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

// Waits for the first byte of a request. False: none comes.
awaitable<bool> HttpServer::Impl::wait_for_request(HttpConnection& c) {
  // A client may send empty lines between requests (RFC 9112, 2.2); more than a few is no client.
  const Clock::time_point idle_deadline = Clock::now() + limits.idle_timeout;
  for (int num_blank_lines = 0;;) {
    if (c.input().starts_with("\r\n") && num_blank_lines < 4) {
      c.consume(2);
      ++num_blank_lines;
    } else if (c.input().empty() || c.input() == "\r") {
      if (c.end_of_input || stopping) co_return false;
      if (!co_await c.wait_until(idle_deadline)) co_return false;
    } else {
      co_return true;
    }
  }
}

// Reads one request. With kRefused its body has not been read, and with kFailed `error` says why there is none.
awaitable<HttpServer::Impl::Outcome> HttpServer::Impl::read_request(HttpConnection& c, HttpRequestParser& parser,
                                                                    std::optional<HttpResponse>& refusal, HttpProtocolError& error) {
  const Clock::time_point header_deadline = Clock::now() + limits.header_timeout;
  while (!parser.has_head()) {
    c.consume(parser.put(c.input()));
    if (parser.error()) {
      error = *parser.error();
      co_return Outcome::kFailed;
    }
    if (parser.has_head()) break;
    if (c.end_of_input) co_return Outcome::kOver;
    if (!co_await c.wait_until(header_deadline)) {
      error = {408, fmt::format("the request header was not complete within {} ms", limits.header_timeout.count())};
      co_return Outcome::kFailed;
    }
  }

  refusal = handler.refuse(parser.head());
  if (refusal) co_return Outcome::kRefused;
  if (parser.expects_continue() && c.input().empty()) {
    if (!co_await write_all(c, "HTTP/1.1 100 Continue\r\n\r\n")) co_return Outcome::kOver;
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
  while (!parser.is_done()) {
    c.consume(parser.put(c.input()));
    if (parser.error()) {
      error = *parser.error();
      co_return Outcome::kFailed;
    }
    received.set(parser.num_body_bytes());
    if (bodies_bytes > limits.all_bodies_bytes) {
      error = {503, "the server is receiving too many large requests; try again later"};
      co_return Outcome::kFailed;
    }
    if (parser.is_done()) break;
    if (c.end_of_input) co_return Outcome::kOver;
    if (!co_await c.wait_until(body_deadline)) {
      error = {408, fmt::format("the request body was not complete within {} ms", limits.body_timeout.count())};
      co_return Outcome::kFailed;
    }
  }
  co_return Outcome::kRead;
}

// ---- writing ----

awaitable<bool> HttpServer::Impl::write_all(HttpConnection& c, std::string_view bytes) {
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
  std::string head =
      fmt::format("HTTP/1.1 {} {}\r\nServer: millrace\r\nDate: {}\r\n", response.status, reason_phrase(response.status), http_date());
  if (!response.content_type.empty()) head += fmt::format("Content-Type: {}\r\n", response.content_type);
  if (content_length) head += fmt::format("Content-Length: {}\r\n", *content_length);
  if (chunked) head += "Transfer-Encoding: chunked\r\n";
  for (const auto& [name, value] : response.headers) head += fmt::format("{}: {}\r\n", name, value);
  head += close ? "Connection: close\r\n\r\n" : "Connection: keep-alive\r\n\r\n";
  return head;
}

}  // namespace

awaitable<void> HttpServer::Impl::write_response(HttpConnection& c, HttpResponse response, bool close, bool head_only) {
  const bool no_content = response.status == 204 || response.status == 304;
  std::string bytes = response_head(response, close, false, no_content ? std::nullopt : std::optional(response.body.size()));
  if (!head_only && !no_content) bytes += response.body;
  response.body = {};
  if (!co_await write_all(c, bytes)) c.close();
}

// Closing a socket with unread input resets the connection, and the client may lose the answer: say that we are done, and
// read what still comes for a moment.
awaitable<void> HttpServer::Impl::linger(HttpConnection& c) {
  error_code ignored;
  c.socket.shutdown(tcp::socket::shutdown_send, ignored);
  c.discard_input = true;
  c.consume(c.input().size());
  const Clock::time_point deadline = Clock::now() + kLingerTimeout;
  while (!c.end_of_input && !stopping && co_await c.wait_until(deadline)) {
  }
}

// Hands the request to the handler and writes what it answers. True: the connection may take another request.
awaitable<bool> HttpServer::Impl::answer(std::shared_ptr<HttpConnection> connection, HttpRequest request, bool keep_alive, bool head_only,
                                         bool http_1_0) {
  HttpConnection& c = *connection;
  auto exchange = std::make_shared<ConnectionExchange>(&c, std::move(request), limits.pending_write_bytes);
  c.exchange = exchange;
  struct Detach {
    ConnectionExchange& exchange;
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
    exchange->begin_write();
    const bool written = co_await write_all(c, bytes);
    exchange->end_write();
    if (!written) {
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

awaitable<void> HttpServer::Impl::serve(std::shared_ptr<HttpConnection> connection) {
  HttpConnection& c = *connection;
  bool open = true;
  while (open && co_await wait_for_request(c)) {
    auto parser = std::make_optional<HttpRequestParser>(limits);
    std::optional<HttpResponse> refusal;
    HttpProtocolError error;
    const Outcome outcome = co_await read_request(c, *parser, refusal, error);
    if (outcome == Outcome::kOver) break;
    if (outcome == Outcome::kFailed) {
      co_await write_response(c, handler.protocol_error(error.status, error.what), true, false);
      co_await linger(c);
      break;
    }
    const bool keep_alive = parser->keep_alive(), head_only = parser->is_head_only(), http_1_0 = parser->is_http_1_0();
    if (outcome == Outcome::kRefused) {
      const bool close = !keep_alive || parser->has_body() || refusal->close;
      co_await write_response(c, std::move(*refusal), close, head_only);
      if (close) co_await linger(c);
      open = !close && c.socket.is_open();
      continue;
    }
    HttpRequest request = parser->take_request();
    parser.reset();  // what was parsed need not live as long as the answer
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
    try {
      welcome(std::move(socket));
    } catch (const std::exception&) {
      // Out of memory: this connection is closed, and the next one gets its try.
    }
  }
}

void HttpServer::Impl::welcome(tcp::socket socket) {
  error_code error, ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  socket.non_blocking(true, ignored);
  const tcp::endpoint remote = socket.remote_endpoint(error);
  if (error) return;  // it has gone already
  const asio::ip::address peer = HttpConnectionTable::counted_address(remote.address());
  if (const std::string refusal = connections.refusal(peer); !refusal.empty()) {
    const HttpResponse response = handler.protocol_error(503, refusal);
    socket.write_some(asio::buffer(response_head(response, true, false, response.body.size()) + response.body), ignored);
    socket.shutdown(tcp::socket::shutdown_send, ignored);
    return;
  }
  auto connection = std::make_shared<HttpConnection>(connections, io, std::move(socket), peer);
  // An exception out of a coroutine ends its connection only.
  const auto finish = [connection](const std::exception_ptr& exception) {
    if (exception) connection->close();
  };
  asio::co_spawn(io, read_loop(connection), finish);
  asio::co_spawn(io, serve(connection), finish);
}

// Closing the acceptor resets the connections that wait in it: those are taken first.
void HttpServer::Impl::stop_accepting() {
  error_code error;
  acceptor.non_blocking(true, error);
  while (!error) {
    tcp::socket socket(io);
    acceptor.accept(socket, error);
    try {
      if (!error) welcome(std::move(socket));
    } catch (const std::exception&) {  // as in accept_loop
    }
  }
  acceptor.close(error);
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

Result<std::unique_ptr<HttpServer>> HttpServer::listen(const std::string& host, uint16_t port, HttpHandler& handler,
                                                       const HttpLimits& limits) {
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
const HttpServerStats& HttpServer::stats() const { return impl_->connections.stats(); }

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
  impl_->stop_accepting();
  // What clients had sent by now is read, and answered, before idle connections end.
  post_after(std::min(grace, kLastReads), [this, deadline = Clock::now() + grace] {
    impl_->stopping = true;
    impl_->connections.notify_all();
    impl_->stop_when_quiet(deadline);
  });
}

}  // namespace millrace
