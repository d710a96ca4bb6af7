#include "millrace/load/server_url.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace millrace {

std::string ServerUrl::authority() const {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port) : fmt::format("[{}]:{}", host, port);
}

std::string ServerUrl::text() const { return fmt::format("http://{}{}", authority(), base_path); }

Result<ServerUrl> parse_server_url(std::string_view text) {
  const auto refuse = [&](std::string_view why) {
    return Status::invalid_argument(fmt::format("the URL \"{}\" {}; expected http://HOST:PORT", text.substr(0, 200), why));
  };
  if (text.starts_with("https://")) return refuse("is https, which is not measured: name the server behind the proxy");
  if (!text.starts_with("http://")) return refuse("does not begin with http://");
  // What goes into a request line and a Host field must not end them.
  if (std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) <= ' ' || c == 127; }))
    return refuse("has a space or control character in it");
  std::string_view rest = text.substr(7);
  if (rest.find_first_of("?#@") != std::string_view::npos) return refuse("has a query, a fragment or a user in it");
  ServerUrl url;
  const std::size_t slash = rest.find('/');
  if (slash != std::string_view::npos) {
    url.base_path = rest.substr(slash);
    rest = rest.substr(0, slash);
  }
  while (url.base_path.ends_with('/')) url.base_path.pop_back();
  if (url.base_path.ends_with("/v1")) url.base_path.resize(url.base_path.size() - 3);
  std::string_view port;
  if (rest.starts_with('[')) {
    const std::size_t end = rest.find(']');
    if (end == std::string_view::npos) return refuse("has a [ without ]");
    url.host = rest.substr(1, end - 1);
    port = rest.substr(end + 1);
  } else {
    const std::size_t colon = rest.find(':');
    url.host = rest.substr(0, colon);
    port = colon == std::string_view::npos ? std::string_view() : rest.substr(colon);
  }
  if (url.host.empty()) return refuse("has no host");
  if (port.empty()) return url;
  int number = 0;
  const auto parsed = std::from_chars(port.data() + 1, port.data() + port.size(), number);
  if (port[0] != ':' || parsed.ec != std::errc() || parsed.ptr != port.data() + port.size() || number < 1 || number > 65535)
    return refuse("has no port from 1 to 65535");
  url.port = static_cast<uint16_t>(number);
  return url;
}

}  // namespace millrace
