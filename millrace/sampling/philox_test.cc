#include "millrace/sampling/philox.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

// The known answers that the authors publish with their library (Random123, kat_vectors).
TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformDependsOnEveryCounterAndStaysBelowOne) {
  const double base = uniform_at(1, 2, 3);
  EXPECT_EQ(base, uniform_at(1, 2, 3));
  for (const uint64_t high : {uint64_t{1}, uint64_t{1} << 32, uint64_t{1} << 63}) {
    EXPECT_NE(base, uniform_at(1 + high, 2, 3));
    EXPECT_NE(base, uniform_at(1, 2 + high, 3));
    EXPECT_NE(base, uniform_at(1, 2, 3 + high));
  }
  double sum = 0;
  for (uint64_t i = 0; i < 1000000; ++i) {
    const double u = uniform_at(7, 0, i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
  }
  EXPECT_NEAR(sum / 1000000, 0.5, 0.0012);  // four standard errors
}

}  // namespace
}  // namespace millrace
