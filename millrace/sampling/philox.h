#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

// Philox4x32-10: a block cipher in miniature, used as a random number that is a function of a counter.
// Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011, doi:10.1145/2063384.2063405.
namespace millrace {

inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;  // golden ratio
    key[1] += 0xBB67AE85;  // sqrt(3) - 1
  }
  return counter;
}

// Uniform in [0, 1), 53 bits. Any two of (seed, sequence, position) give independent numbers; each position has two of them, 0 and 1.
inline double uniform_at(uint64_t seed, uint64_t sequence, uint64_t position, std::size_t which = 0) {
  const std::array<uint32_t, 4> words = philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                                                    static_cast<uint32_t>(sequence), static_cast<uint32_t>(sequence >> 32)},
                                                   {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = (uint64_t{words[2 * which]} << 32 | words[2 * which + 1]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace millrace
