#include "millrace/base/checksum.h"

#include <bit>
#include <cstring>

namespace millrace {

uint64_t checksum(std::span<const std::byte> bytes) {
  constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;
  constexpr std::size_t kLaneBytes = 64;
  uint64_t lanes[8];
  // The size is in the sum: zeros behind the last bytes do not make two lists of bytes alike.
  for (uint64_t i = 0; i < 8; ++i) lanes[i] = i * kOdd + static_cast<uint64_t>(bytes.size());
  for (std::size_t at = 0; at < bytes.size(); at += kLaneBytes) {
    uint64_t words[8] = {};
    std::memcpy(words, bytes.data() + at, bytes.size() - at < kLaneBytes ? bytes.size() - at : kLaneBytes);
    for (int i = 0; i < 8; ++i) lanes[i] = std::rotl((lanes[i] ^ words[i]) * kOdd, 29);
  }
  uint64_t sum = 0;
  for (const uint64_t lane : lanes) sum = std::rotl((sum ^ lane) * kOdd, 29);
  return sum;
}

}  // namespace millrace
