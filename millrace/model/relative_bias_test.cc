#include "millrace/model/relative_bias.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

// As transformers' T5Attention._relative_position_bucket gives them.
TEST(RelativeBias, BucketsBothWays) {
  const std::pair<int64_t, int64_t> want[] = {{0, 0},    {-1, 1},   {-7, 7},   {-8, 8},   {-11, 8},   {-12, 9},    {-16, 10}, {-23, 11},
                                              {-32, 12}, {-64, 14}, {-90, 14}, {-91, 15}, {-128, 15}, {-5000, 15}, {1, 17},   {7, 23},
                                              {8, 24},   {16, 26},  {45, 28},  {46, 29},  {64, 30},   {200, 31}};
  for (const auto& [distance, bucket] : want) EXPECT_EQ(relative_bucket(distance, true, 32, 128), bucket) << distance;
}

TEST(RelativeBias, BucketsOfKeysBefore) {
  const std::pair<int64_t, int64_t> want[] = {{3, 0},    {0, 0},    {-1, 1},    {-15, 15},  {-16, 16},
                                              {-32, 21}, {-64, 26}, {-127, 31}, {-128, 31}, {-999, 31}};
  for (const auto& [distance, bucket] : want) EXPECT_EQ(relative_bucket(distance, false, 32, 128), bucket) << distance;
}

// Beyond the reach no bucket differs from that at the reach, so a table up to there says all.
TEST(RelativeBias, NothingChangesBeyondTheReach) {
  for (const bool both_ways : {false, true}) {
    for (const auto& [buckets, max_distance] : {std::pair<int64_t, int64_t>{32, 128}, {16, 40}, {4, 3}, {64, 1000}}) {
      for (const int64_t sign : {-1, 1}) {
        const int64_t last = relative_bucket(sign * max_distance, both_ways, buckets, max_distance);
        for (int64_t more = 1; more < 3000; more += 7)
          ASSERT_EQ(relative_bucket(sign * (max_distance + more), both_ways, buckets, max_distance), last);
      }
    }
  }
}

TEST(RelativeBias, SpreadsATableOut) {
  std::vector<float> stored;  // [16 buckets, 3 heads]: bucket + head / 10
  for (int bucket = 0; bucket < 16; ++bucket) {
    for (int head = 0; head < 3; ++head) stored.push_back(static_cast<float>(bucket) + 0.1f * static_cast<float>(head));
  }
  const RelativeBias bias = spread_relative_bias(stored, 3, true, 16, 40);
  ASSERT_EQ(bias.reach, 40);
  ASSERT_EQ(bias.table.size(), 3u * 81u);
  for (int64_t head = 0; head < 3; ++head) {
    for (int64_t distance = -40; distance <= 40; ++distance) {
      EXPECT_EQ(bias.table[static_cast<std::size_t>(head * 81 + distance + 40)],
                stored[static_cast<std::size_t>(relative_bucket(distance, true, 16, 40) * 3 + head)]);
    }
  }
}

}  // namespace
}  // namespace millrace
