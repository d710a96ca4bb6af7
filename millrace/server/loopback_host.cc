#include "millrace/server/loopback_host.h"

#include <arpa/inet.h>

#include <algorithm>
#include <string>

namespace millrace {

bool is_loopback(std::string_view address) {
  in_addr parsed{};
  if (inet_pton(AF_INET, std::string(address).c_str(), &parsed) == 1) return (ntohl(parsed.s_addr) >> 24) == 127;
  return address == "localhost" || address == "::1";
}

bool is_loopback_host(std::string_view host) {
  const std::size_t name_end = host.starts_with('[') ? host.find(']') + 1 : std::min(host.find(':'), host.size());
  const std::string_view port = host.substr(name_end);
  if (!port.empty() && (port[0] != ':' || port.find_first_not_of("0123456789", 1) != port.npos)) return false;
  std::string name(host.substr(0, name_end));
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c); });
  if (name == "[::1]") return true;
  constexpr std::string_view kSuffix = ".localhost";
  return is_loopback(name) || (name.size() > kSuffix.size() && name.ends_with(kSuffix));
}

}  // namespace millrace
