#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "millrace/model/step_plan.h"

namespace millrace {

// Names what a full KV block holds: the tokens of the block and of everything before it. SHA-256, because a collision would hand one
// request another's context.
struct BlockDigest {
  std::array<uint8_t, 32> bytes{};
  friend bool operator==(const BlockDigest&, const BlockDigest&) = default;
};

struct BlockDigestHash {
  // Any eight bytes of a digest are as good as a hash of it.
  std::size_t operator()(const BlockDigest& digest) const {
    std::size_t value;
    std::memcpy(&value, digest.bytes.data(), sizeof value);
    return value;
  }
};

// The chain root -> block 0 -> block 1 -> ... The secret in its root keeps anyone who sees timings from working out digests.
class PrefixHasher {
 public:
  explicit PrefixHasher(std::string_view secret) : secret_(secret) {}

  // Chains with different salts or rope variants share nothing: keys rotated differently are different keys.
  BlockDigest root(std::string_view salt, bool rope_long) const;
  // Of the block that follows `parent` and holds `tokens`, of which the first `num_prompt_tokens` were computed as a prompt's and the
  // others as generated ones.
  static BlockDigest next(const BlockDigest& parent, std::span<const int32_t, kKvBlockTokens> tokens,
                          int32_t num_prompt_tokens = kKvBlockTokens);

 private:
  std::string secret_;
};

}  // namespace millrace
