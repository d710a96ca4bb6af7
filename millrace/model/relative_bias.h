#pragma once

#include <cstdint>
#include <span>

#include "millrace/model/network.h"

namespace millrace {

// The bucket of a key at `distance` from the query (negative: before it), as T5 and MPNet count them: near distances have one each, further
// ones share them by their logarithm up to max_distance. Both ways: the first half of the buckets is of keys before the query, the other of
// those after it; else only keys before it have their own, and those after it share bucket 0.
int64_t relative_bucket(int64_t distance, bool both_ways, int64_t num_buckets, int64_t max_distance);

// Spreads a learned table out over distances.   stored   [num_buckets, num_heads]
RelativeBias spread_relative_bias(std::span<const float> stored, int64_t num_heads, bool both_ways, int64_t num_buckets,
                                  int64_t max_distance);

}  // namespace millrace
