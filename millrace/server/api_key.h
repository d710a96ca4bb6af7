#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/status.h"

namespace millrace {

// A key that clients present, and the share of the machine that it stands for while others ask, too.
struct ClientKey {
  std::string key;
  double weight = 1;  // above 0
};

// One key a line, each optionally followed by "weight=NUMBER". Errors name the line, never the key.
Result<std::vector<ClientKey>> parse_client_keys(std::string_view text);

// Tells the cached prefixes of the key's client from those of others (EngineOptions::client_salts): it follows from the key, whatever its
// line, and does not give it away.
std::string cache_salt(const ClientKey& key);

// Checks the key that a client presents. Only SHA-256 of the keys are kept, and compared in constant time: neither a core file nor a
// stopwatch shows a key.
class ApiKeys {
 public:
  explicit ApiKeys(std::span<const ClientKey> keys);

  // Which of the keys the header presents: "Bearer <key>", or "Basic" with the key as password (any user name): a browser asks for it and
  // then opens the page.
  std::optional<int32_t> client_of(std::string_view authorization_header) const;

 private:
  std::optional<int32_t> find(std::string_view key) const;

  std::vector<std::array<uint8_t, 32>> hashes_;
};

}  // namespace millrace
