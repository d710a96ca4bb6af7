#include "millrace/server/http_connection.h"

#include <fmt/format.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

namespace millrace {

namespace asio = boost::asio;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

// ---- the table

asio::ip::address HttpConnectionTable::counted_address(const asio::ip::address& peer) {
  if (peer.is_v4()) return peer;
  if (peer.to_v6().is_v4_mapped()) return asio::ip::make_address_v4(asio::ip::v4_mapped, peer.to_v6());
  if (peer.is_loopback()) return peer;
  asio::ip::address_v6::bytes_type bytes = peer.to_v6().to_bytes();
  std::fill(bytes.begin() + 8, bytes.end(), static_cast<unsigned char>(0));
  return asio::ip::address_v6(bytes);
}

std::string HttpConnectionTable::refusal(const asio::ip::address& peer) {
  std::string why;
  const auto same = num_of_.find(peer);
  if (static_cast<int64_t>(connections_.size()) >= limits_.num_connections) {
    why = fmt::format("{} connections are open, the most this server takes", connections_.size());
  } else if (!peer.is_loopback() && same != num_of_.end() && same->second >= limits_.num_connections_per_address) {
    why = fmt::format("{} connections are open from your address, the most this server takes", same->second);
  }
  if (!why.empty()) ++stats_.num_connections_refused;
  return why;
}

void HttpConnectionTable::insert(HttpConnection& connection) {
  connections_.insert(&connection);
  ++num_of_[connection.peer];
  stats_.num_connections = static_cast<int64_t>(connections_.size());
  ++stats_.num_connections_total;
}

void HttpConnectionTable::erase(HttpConnection& connection) {
  connections_.erase(&connection);
  if (const auto count = num_of_.find(connection.peer); --count->second == 0) num_of_.erase(count);
  stats_.num_connections = static_cast<int64_t>(connections_.size());
}

void HttpConnectionTable::notify_all() {
  for (HttpConnection* connection : connections_) connection->notify();
}

// ---- the exchange

void ConnectionExchange::respond(HttpResponse response) {
  if (finished_) return;
  head_ = std::move(response);
  whole_ = finished_ = true;
  wake();
}

void ConnectionExchange::start_stream(HttpResponse head) {
  if (finished_ || head_) return;
  pending_ = std::move(head.body);
  head.body.clear();
  head_ = std::move(head);
  wake();
}

void ConnectionExchange::write(std::string_view bytes) {
  if (finished_ || bytes.empty()) return;
  pending_.append(bytes);
  if (connection_ != nullptr && is_too_slow()) {
    gone();
    connection_->close();
    return;
  }
  wake();
}

// However much a step or two bring, it is the client's slowness only where the socket has not taken for a while what came before.
bool ConnectionExchange::is_too_slow() const {
  constexpr std::chrono::seconds kPatience{3};
  constexpr std::size_t kPendingOfAny = 32;  // times the bound: no client may leave more, however fast it came
  if (!is_writing_ || pending_.size() <= pending_bytes_max_) return false;
  return std::chrono::steady_clock::now() - write_begun_ > kPatience || pending_.size() / kPendingOfAny > pending_bytes_max_;
}

void ConnectionExchange::finish() {
  if (finished_) return;
  finished_ = true;
  wake();
}

void ConnectionExchange::on_gone(std::function<void()> callback) {
  if (finished_) return;
  callback_ = std::move(callback);
  if (gone_) gone();
}

void ConnectionExchange::gone() {
  gone_ = true;
  if (finished_) return;
  pending_.clear();
  if (auto callback = std::exchange(callback_, nullptr)) callback();
}

void ConnectionExchange::detach() {
  if (!finished_) gone();
  finished_ = true;
  connection_ = nullptr;
}

void ConnectionExchange::wake() {
  if (connection_ != nullptr) connection_->notify();
}

// ---- the connection

void HttpConnection::receive(std::string_view bytes) {
  if (num_consumed_ >= received_.size() - num_consumed_) {
    received_.erase(0, num_consumed_);
    num_consumed_ = 0;
  }
  received_.append(bytes);
}

void HttpConnection::consume(std::size_t num_bytes) {
  num_consumed_ += num_bytes;
  if (num_consumed_ == received_.size()) {
    received_ = {};  // an idle connection holds no buffer
    num_consumed_ = 0;
  }
  resume.cancel();
}

void HttpConnection::close() {
  error_code ignored;
  static_cast<void>(socket.close(ignored));  // it gives the same error once more
  resume.cancel();
  changed.cancel();
}

bool HttpConnection::peer_has_closed() {
  tcp_info info{};
  socklen_t size = sizeof info;
  return getsockopt(socket.native_handle(), IPPROTO_TCP, TCP_INFO, &info, &size) != 0 || info.tcpi_state != TCP_ESTABLISHED;
}

asio::awaitable<bool> HttpConnection::wait_until(Clock::time_point deadline) {
  if (Clock::now() >= deadline) co_return false;
  changed.expires_at(deadline);
  error_code error;
  co_await changed.async_wait(asio::redirect_error(asio::use_awaitable, error));
  co_return error == asio::error::operation_aborted || Clock::now() < deadline;
}

}  // namespace millrace
