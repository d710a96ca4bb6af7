#include "millrace/engine/kv_sizing.h"

#include <gtest/gtest.h>

#include "millrace/engine/scheduler.h"

namespace millrace {
namespace {

int64_t bytes_of(const std::vector<KvGroupSpec>& groups, const KvSizing& sizing) {
  int64_t bytes = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) bytes += sizing.num_blocks[g] * groups[g].block_bytes;
  return bytes;
}

TEST(KvSizing, FillsTheBudgetAndNeverMore) {
  const std::vector<KvGroupSpec> groups = {{4, 2, 64, std::nullopt, 1000}, {20, 2, 64, 128, 5000}};
  for (const int64_t kv_bytes : {200'000, 1'000'000, 7'654'321}) {
    const auto sizing = size_kv(groups, kv_bytes, 100'000, 4, 64);
    ASSERT_TRUE(sizing.is_ok()) << sizing.status().message();
    EXPECT_LE(bytes_of(groups, *sizing), kv_bytes);
    EXPECT_GT(bytes_of(groups, *sizing), kv_bytes - 6000);  // less than one more block of each
    EXPECT_LE(sizing->num_blocks[1], 4 * Scheduler::window_blocks(128, 64));
    EXPECT_EQ(sizing->max_sequence_tokens, std::min<int64_t>(100'000, sizing->num_blocks[0] * kKvBlockTokens));
  }
}

TEST(KvSizing, NoGroupGetsMoreThanItCouldUse) {
  const auto sizing =
      size_kv(std::vector<KvGroupSpec>{{4, 2, 64, std::nullopt, 1000}, {4, 2, 64, 32, 1000}}, int64_t{1} << 40, 1000, 3, 16);
  ASSERT_TRUE(sizing.is_ok());
  EXPECT_EQ(sizing->num_blocks, (std::vector<int64_t>{3 * 32, 3 * Scheduler::window_blocks(32, 16)}));
  EXPECT_EQ(sizing->max_sequence_tokens, 1000);
}

TEST(KvSizing, SaysHowMuchIsNeeded) {
  const auto sizing = size_kv(std::vector<KvGroupSpec>{{4, 2, 64, std::nullopt, 1000}, {4, 2, 64, 64, 10}}, 1039, 1000, 3, 16);
  ASSERT_FALSE(sizing.is_ok());
  EXPECT_EQ(sizing.status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(sizing.status().message(), "the KV cache needs at least 1040 bytes, 1039 are given");
}

TEST(KvSizing, ANetworkWithoutAttentionNeedsNothing) {
  const auto sizing = size_kv({}, 0, 1000, 3, 16);
  ASSERT_TRUE(sizing.is_ok());
  EXPECT_EQ(sizing->max_sequence_tokens, 1000);
}

}  // namespace
}  // namespace millrace
