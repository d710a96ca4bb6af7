// A connection of the HTTP server and the exchange that runs on it, as its two coroutines share them. Includes Boost.Asio: for
// http_server.cc and http_connection.cc only.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>

#include "millrace/server/http.h"
#include "millrace/server/http_limits.h"
#include "millrace/server/http_server.h"

namespace millrace {

struct HttpConnection;

// The open connections, all and by address.
class HttpConnectionTable {
 public:
  explicit HttpConnectionTable(const HttpLimits& limits) : limits_(limits) {}

  // What connections are counted by: one IPv6 machine has a whole /64 network to call from.
  static boost::asio::ip::address counted_address(const boost::asio::ip::address& peer);

  // Why no further connection from `peer`, a counted_address, is taken; empty when one is.
  std::string refusal(const boost::asio::ip::address& peer);

  void insert(HttpConnection& connection);
  void erase(HttpConnection& connection);
  bool empty() const { return connections_.empty(); }
  void notify_all();  // wakes whatever waits on a connection

  const HttpServerStats& stats() const { return stats_; }

 private:
  const HttpLimits& limits_;
  std::unordered_set<HttpConnection*> connections_;
  std::map<boost::asio::ip::address, int64_t> num_of_;  // by counted_address
  HttpServerStats stats_;
};

// The one exchange that a connection has at a time: what the handler says, until the serving coroutine writes it.
class ConnectionExchange final : public HttpExchange {
 public:
  ConnectionExchange(HttpConnection* connection, HttpRequest request, std::size_t pending_bytes_max)
      : connection_(connection), request_(std::move(request)), pending_bytes_max_(pending_bytes_max) {}

  const HttpRequest& request() const override { return request_; }
  std::string take_body() override { return std::exchange(request_.body, {}); }
  void respond(HttpResponse response) override;
  void start_stream(HttpResponse head) override;
  void write(std::string_view bytes) override;
  void finish() override;
  void on_gone(std::function<void()> callback) override;

  // The client left. Tells the handler, once.
  void gone();
  void detach();

  bool is_finished() const { return finished_; }
  bool is_whole() const { return whole_; }
  std::optional<HttpResponse>& head() { return head_; }
  std::string take_pending() { return std::exchange(pending_, {}); }
  bool has_pending() const { return !pending_.empty(); }
  // Between the two the socket is being written: what is pending then waits for the client.
  void begin_write() {
    is_writing_ = true;
    write_begun_ = std::chrono::steady_clock::now();
  }
  void end_write() { is_writing_ = false; }

 private:
  void wake();
  bool is_too_slow() const;

  HttpConnection* connection_;  // null once the connection has ended
  HttpRequest request_;
  const std::size_t pending_bytes_max_;
  std::optional<HttpResponse> head_;
  std::string pending_;
  std::function<void()> callback_;
  bool whole_ = false, finished_ = false, gone_ = false, is_writing_ = false;
  std::chrono::steady_clock::time_point write_begun_;
};

// The reader coroutine fills `input` and notices the end of the stream; the serving coroutine parses, waits and writes.
// `changed` is their condition variable: its expiry is the deadline of what the serving coroutine waits for.
struct HttpConnection : std::enable_shared_from_this<HttpConnection> {
  HttpConnection(HttpConnectionTable& table_, boost::asio::io_context& io, boost::asio::ip::tcp::socket socket_,
                 const boost::asio::ip::address& peer_)
      : table(table_), peer(peer_), socket(std::move(socket_)), changed(io), resume(io), write_deadline(io) {
    table.insert(*this);
  }
  ~HttpConnection() { table.erase(*this); }
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  HttpConnectionTable& table;
  const boost::asio::ip::address peer;  // as HttpConnectionTable::counted_address gives it
  boost::asio::ip::tcp::socket socket;
  boost::asio::steady_timer changed, resume, write_deadline;
  bool end_of_input = false;
  bool discard_input = false;  // lingering: what still comes is read and dropped
  std::weak_ptr<ConnectionExchange> exchange;

  void notify() { changed.cancel(); }
  void close();
  // Whether the client has closed its side, which reading shows only behind everything it sent before.
  bool peer_has_closed();

  // What was received and is not yet parsed. Taking from its front moves nothing: what a byte costs must not depend on how many wait.
  std::string_view input() const { return std::string_view(received_).substr(num_consumed_); }
  void receive(std::string_view bytes);
  void consume(std::size_t num_bytes);

  // Sleeps until notify() or the deadline. False: the deadline has passed.
  boost::asio::awaitable<bool> wait_until(std::chrono::steady_clock::time_point deadline);

 private:
  std::string received_;
  std::size_t num_consumed_ = 0;
};

}  // namespace millrace
