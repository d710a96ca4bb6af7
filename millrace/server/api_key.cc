#include "millrace/server/api_key.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/sha.h>

#include <algorithm>
#include <charconv>

namespace millrace {
namespace {

std::array<uint8_t, 32> sha256(std::string_view text) {
  std::array<uint8_t, 32> hash{};
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), hash.data());
  return hash;
}

bool has_scheme(std::string_view header, std::string_view scheme) {
  return header.size() > scheme.size() && header[scheme.size()] == ' ' &&
         std::equal(scheme.begin(), scheme.end(), header.begin(), [](char a, char b) { return a == (b >= 'A' && b <= 'Z' ? b + 32 : b); });
}

}  // namespace

Result<std::vector<ClientKey>> parse_client_keys(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r";
  const auto trim = [&](std::string_view part) {
    part.remove_prefix(std::min(part.find_first_not_of(kBlanks), part.size()));
    return part.substr(0, part.find_last_not_of(kBlanks) + 1);
  };
  std::vector<ClientKey> keys;
  for (int64_t number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty()) continue;
    ClientKey key;
    constexpr std::string_view kWeight = "weight=";
    const std::size_t last_word = line.find_last_of(kBlanks);
    if (last_word != std::string_view::npos && line.substr(last_word + 1).starts_with(kWeight)) {
      const std::string_view weight = line.substr(last_word + 1 + kWeight.size());
      const auto parsed = std::from_chars(weight.data(), weight.data() + weight.size(), key.weight);
      if (parsed.ec != std::errc() || parsed.ptr != weight.data() + weight.size() || !(key.weight >= 1e-3 && key.weight <= 1e3))
        return Status::invalid_argument(fmt::format("line {}: the weight is \"{}\", expected a number from 0.001 to 1000", number, weight));
      line = trim(line.substr(0, last_word));
    }
    key.key = std::string(line);
    if (std::any_of(keys.begin(), keys.end(), [&](const ClientKey& other) { return other.key == key.key; }))
      return Status::invalid_argument(fmt::format("line {}: the key stands on an earlier line, too", number));
    keys.push_back(std::move(key));
  }
  return keys;
}

std::string cache_salt(const ClientKey& key) {
  const std::array<uint8_t, 32> hash = sha256("cached prefixes of " + key.key);
  return {hash.begin(), hash.end()};
}

ApiKeys::ApiKeys(std::span<const ClientKey> keys) {
  for (const ClientKey& key : keys) hashes_.push_back(sha256(key.key));
}

std::optional<int32_t> ApiKeys::find(std::string_view key) const {
  const std::array<uint8_t, 32> presented = sha256(key);
  std::optional<int32_t> found;
  for (std::size_t i = 0; i < hashes_.size(); ++i) {  // all of them, whichever it is
    if (CRYPTO_memcmp(hashes_[i].data(), presented.data(), presented.size()) == 0) found = static_cast<int32_t>(i);
  }
  return found;
}

std::optional<int32_t> ApiKeys::client_of(std::string_view authorization_header) const {
  if (has_scheme(authorization_header, "bearer")) {
    std::string_view key = authorization_header.substr(7);
    key.remove_prefix(std::min(key.find_first_not_of(' '), key.size()));
    return find(key);
  }
  if (!has_scheme(authorization_header, "basic")) return std::nullopt;
  std::string_view encoded = authorization_header.substr(6);
  encoded.remove_prefix(std::min(encoded.find_first_not_of(' '), encoded.size()));
  if (encoded.empty() || encoded.size() % 4 != 0 || encoded.size() > 4096) return std::nullopt;
  std::vector<unsigned char> decoded(encoded.size());
  const int size =
      EVP_DecodeBlock(decoded.data(), reinterpret_cast<const unsigned char*>(encoded.data()), static_cast<int>(encoded.size()));
  if (size < 0) return std::nullopt;
  std::string_view credentials(reinterpret_cast<const char*>(decoded.data()), static_cast<std::size_t>(size));
  for (int i = 0; i < 2 && encoded.ends_with('='); ++i) {  // EVP_DecodeBlock counts the padding as zero bytes
    encoded.remove_suffix(1);
    credentials.remove_suffix(1);
  }
  const std::size_t colon = credentials.find(':');
  if (colon == std::string_view::npos) return std::nullopt;
  return find(credentials.substr(colon + 1));
}

}  // namespace millrace
