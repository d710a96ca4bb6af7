#include "millrace/model/relative_bias.h"

#include <algorithm>
#include <cmath>

namespace millrace {

int64_t relative_bucket(int64_t distance, bool both_ways, int64_t num_buckets, int64_t max_distance) {
  int64_t first = 0;
  if (both_ways) {
    num_buckets /= 2;
    if (distance > 0) first = num_buckets;
    distance = std::abs(distance);
  } else {
    distance = std::max<int64_t>(0, -distance);
  }
  const int64_t num_exact = num_buckets / 2;
  if (distance < num_exact) return first + distance;
  // In f32, in the reference's order: a distance at a bucket's border must fall on the same side.
  const float exact = static_cast<float>(num_exact);
  const auto decades = static_cast<float>(std::log(static_cast<double>(max_distance) / static_cast<double>(num_exact)));
  const float above = std::log(static_cast<float>(distance) / exact) / decades * static_cast<float>(num_buckets - num_exact);
  return first + std::min(num_buckets - 1, num_exact + static_cast<int64_t>(above));
}

RelativeBias spread_relative_bias(std::span<const float> stored, int64_t num_heads, bool both_ways, int64_t num_buckets,
                                  int64_t max_distance) {
  RelativeBias bias;
  bias.reach = max_distance;  // from there on all distances are in the last bucket
  for (int64_t head = 0; head < num_heads; ++head) {
    for (int64_t distance = -max_distance; distance <= max_distance; ++distance) {
      const int64_t bucket = relative_bucket(distance, both_ways, num_buckets, max_distance);
      bias.table.push_back(stored[static_cast<std::size_t>(bucket * num_heads + head)]);
    }
  }
  return bias;
}

}  // namespace millrace
