#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "millrace/base/status.h"

namespace millrace {

// Where a server is: "http://127.0.0.1:8000", with or without a path before the endpoints' own.
struct ServerUrl {
  std::string host;  // without the brackets of an IPv6 address
  uint16_t port = 80;
  std::string base_path;  // "" or "/something", without a slash at the end; "/v1" at the end is taken away, endpoints bring it

  std::string authority() const;  // for the Host field
  std::string text() const;       // http://host:port/base
};

// Errors: kInvalidArgument, with what was found. https is refused: what is measured should be the server, not the encryption.
Result<ServerUrl> parse_server_url(std::string_view text);

}  // namespace millrace
