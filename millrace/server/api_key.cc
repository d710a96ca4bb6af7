#include "millrace/server/api_key.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/sha.h>

#include <algorithm>
#include <vector>

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

ApiKey::ApiKey(std::string_view key) : hash_(sha256(key)) {}

bool ApiKey::matches(std::string_view key) const {
  const std::array<uint8_t, 32> other = sha256(key);
  return CRYPTO_memcmp(hash_.data(), other.data(), hash_.size()) == 0;
}

bool ApiKey::authorizes(std::string_view authorization_header) const {
  if (has_scheme(authorization_header, "bearer")) {
    std::string_view key = authorization_header.substr(7);
    key.remove_prefix(std::min(key.find_first_not_of(' '), key.size()));
    return matches(key);
  }
  if (!has_scheme(authorization_header, "basic")) return false;
  std::string_view encoded = authorization_header.substr(6);
  encoded.remove_prefix(std::min(encoded.find_first_not_of(' '), encoded.size()));
  if (encoded.empty() || encoded.size() % 4 != 0 || encoded.size() > 4096) return false;
  std::vector<unsigned char> decoded(encoded.size());
  const int size =
      EVP_DecodeBlock(decoded.data(), reinterpret_cast<const unsigned char*>(encoded.data()), static_cast<int>(encoded.size()));
  if (size < 0) return false;
  std::string_view credentials(reinterpret_cast<const char*>(decoded.data()), static_cast<std::size_t>(size));
  for (int i = 0; i < 2 && encoded.ends_with('='); ++i) {  // EVP_DecodeBlock counts the padding as zero bytes
    encoded.remove_suffix(1);
    credentials.remove_suffix(1);
  }
  const std::size_t colon = credentials.find(':');
  return colon != std::string_view::npos && matches(credentials.substr(colon + 1));
}

}  // namespace millrace
