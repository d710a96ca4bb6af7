#include "millrace/model/transforms.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace millrace {
namespace {

using testing::ElementsAre;

TEST(Transforms, ConcatenatedQkv) {
  const QkvRows rows = concatenated_rows({.num_heads = 4, .num_kv_heads = 2, .head_dim = 1});
  EXPECT_THAT(rows.q, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(rows.k, ElementsAre(4, 5));
  EXPECT_THAT(rows.v, ElementsAre(6, 7));
}

TEST(Transforms, QkvPerKvGroup) {
  const QkvRows rows = per_kv_group_rows({.num_heads = 4, .num_kv_heads = 2, .head_dim = 2});
  EXPECT_THAT(rows.q, ElementsAre(0, 1, 2, 3, 8, 9, 10, 11));
  EXPECT_THAT(rows.k, ElementsAre(4, 5, 12, 13));
  EXPECT_THAT(rows.v, ElementsAre(6, 7, 14, 15));
}

TEST(Transforms, PairingIsReorderedWithinEachHead) {
  const std::vector<int32_t> rows = consecutive_rows(0, 12);  // two heads of 6, of which 4 rotate
  const std::vector<int32_t> half = reorder_pairing(rows, 6, 4, Rope::Pairing::kInterleaved, Rope::Pairing::kHalf);
  EXPECT_THAT(half, ElementsAre(0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11));
  EXPECT_EQ(reorder_pairing(half, 6, 4, Rope::Pairing::kHalf, Rope::Pairing::kInterleaved), rows);
  EXPECT_EQ(reorder_pairing(rows, 6, 4, Rope::Pairing::kHalf, Rope::Pairing::kHalf), rows);
}

TEST(Transforms, ReorderingIsAPermutation) {
  std::vector<int32_t> rows = reorder_pairing(consecutive_rows(10, 64), 32, 32, Rope::Pairing::kInterleaved, Rope::Pairing::kHalf);
  EXPECT_EQ(rows[1], 12);
  EXPECT_EQ(rows[16], 11);
  std::sort(rows.begin(), rows.end());
  EXPECT_EQ(rows, consecutive_rows(10, 64));
}

TEST(Transforms, AlibiSlopes) {
  EXPECT_THAT(alibi_slopes(8), ElementsAre(0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f, 0.015625f, 0.0078125f, 0.00390625f));
  const std::vector<float> twelve = alibi_slopes(12);  // eight of the eight, then every other one of the sixteen
  ASSERT_EQ(twelve.size(), 12u);
  EXPECT_FLOAT_EQ(twelve[7], 0.00390625f);
  EXPECT_FLOAT_EQ(twelve[8], 0.70710678f);
  EXPECT_FLOAT_EQ(twelve[11], 0.08838835f);
  EXPECT_THAT(alibi_slopes(4, 4), ElementsAre(0.5f, 0.25f, 0.125f, 0.0625f));
}

}  // namespace
}  // namespace millrace
