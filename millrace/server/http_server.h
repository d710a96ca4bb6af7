// HTTP/1.1 over TCP with one thread: accepts, reads, checks framing and limits, writes. Boost.Asio and Beast stay inside
// http_server.cc: they cost half a minute of compilation for every file that sees them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "millrace/base/status.h"
#include "millrace/server/http.h"

namespace millrace {

struct HttpLimits {
  std::size_t header_bytes = 16 << 10;
  int64_t num_headers = 100;
  std::size_t body_bytes = 8 << 20;
  std::size_t all_bodies_bytes = 256 << 20;      // of bodies being received, all connections together
  std::size_t pending_write_bytes = 1 << 20;     // a stream whose client reads slower than tokens come is given up beyond this
  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds body_timeout{30'000};
  std::chrono::milliseconds idle_timeout{60'000};   // between requests of one connection
  std::chrono::milliseconds write_timeout{60'000};  // for one write to make progress
  int64_t num_connections = 4096;
  int64_t num_connections_per_address = 1024;  // of one other machine: an IPv4 address, or the /64 network of an IPv6 one
};

struct HttpServerStats {
  int64_t num_connections = 0;         // open now
  uint64_t num_connections_total = 0;  // accepted since the start
  uint64_t num_connections_refused = 0;
};

class HttpServer {
 public:
  struct Impl;  // http_server.cc

  // Binds and listens; run() serves. Errors: unavailable, naming the address and the system's reason.
  // `handler` must outlive the server.
  static Result<std::unique_ptr<HttpServer>> listen(const std::string& host, uint16_t port, HttpHandler& handler, const HttpLimits& limits);
  ~HttpServer();

  uint16_t port() const;  // the one bound, also where 0 was asked for

  // Serves on the calling thread until stop(). With `handle_signals`, SIGTERM and SIGINT go to HttpHandler::on_signal.
  void run(bool handle_signals);

  // Runs `task` on the I/O thread; any thread may call it.
  void post(std::function<void()> task);
  // The same after `delay`; dropped when the server stops first. I/O thread only.
  void post_after(std::chrono::milliseconds delay, std::function<void()> task);

  // Accepts nothing more, lets answers that are complete reach their clients (for `grace` at most), and makes run() return. I/O thread only.
  void stop(std::chrono::milliseconds grace);

  const HttpServerStats& stats() const;  // I/O thread only

 private:
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
