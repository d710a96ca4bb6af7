#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace millrace {

// What one client may take of the server.
struct HttpLimits {
  std::size_t header_bytes = 16 << 10;
  int64_t num_headers = 100;
  std::size_t body_bytes = 8 << 20;
  std::size_t all_bodies_bytes = 256 << 20;   // of bodies being received, all connections together
  std::size_t pending_write_bytes = 1 << 20;  // a stream whose client reads slower than tokens come is given up beyond this
  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds body_timeout{30'000};
  std::chrono::milliseconds idle_timeout{60'000};   // between requests of one connection
  std::chrono::milliseconds write_timeout{60'000};  // for one write to make progress
  int64_t num_connections = 4096;
  int64_t num_connections_per_address = 1024;  // of one other machine: an IPv4 address, or the /64 network of an IPv6 one
};

}  // namespace millrace
