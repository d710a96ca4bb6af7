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
#include "millrace/server/http_limits.h"

namespace millrace {

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

  // Accepts nothing more, lets answers that are complete reach their clients (for `grace` at most), and makes run() return. I/O thread
  // only.
  void stop(std::chrono::milliseconds grace);

  const HttpServerStats& stats() const;  // I/O thread only

 private:
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
