#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace millrace {

// Checks the key that a client presents. Only its SHA-256 is kept, and compared in constant time: neither a core file nor a stopwatch
// shows the key.
class ApiKey {
 public:
  explicit ApiKey(std::string_view key);

  bool matches(std::string_view key) const;

  // "Bearer <key>", or "Basic" with the key as password (any user name): a browser asks for it and then opens the page.
  bool authorizes(std::string_view authorization_header) const;

 private:
  std::array<uint8_t, 32> hash_;
};

}  // namespace millrace
