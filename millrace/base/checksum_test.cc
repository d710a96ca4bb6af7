#include "millrace/base/checksum.h"

#include <gtest/gtest.h>

#include <vector>

namespace millrace {
namespace {

TEST(Checksum, ChangesWithEveryBitAndWithTheSize) {
  for (const std::size_t size : {0u, 1u, 63u, 64u, 65u, 200u}) {
    std::vector<std::byte> bytes(size);
    for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7);
    const uint64_t sum = checksum(bytes);
    for (std::size_t bit = 0; bit < size * 8; ++bit) {
      bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
      EXPECT_NE(checksum(bytes), sum);
      bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    }
    EXPECT_EQ(checksum(bytes), sum);
    bytes.push_back(std::byte{0});
    EXPECT_NE(checksum(bytes), sum);
  }
}

}  // namespace
}  // namespace millrace
