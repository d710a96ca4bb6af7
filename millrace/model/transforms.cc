#include "millrace/model/transforms.h"

#include <bit>
#include <cmath>
#include <numeric>

namespace millrace {

std::vector<int32_t> consecutive_rows(int64_t first, int64_t count) {
  std::vector<int32_t> rows(static_cast<std::size_t>(count));
  std::iota(rows.begin(), rows.end(), static_cast<int32_t>(first));
  return rows;
}

QkvRows concatenated_rows(const AttentionGeometry& geometry) {
  const int64_t q = geometry.num_heads * geometry.head_dim, kv = geometry.num_kv_heads * geometry.head_dim;
  return {consecutive_rows(0, q), consecutive_rows(q, kv), consecutive_rows(q + kv, kv)};
}

QkvRows per_kv_group_rows(const AttentionGeometry& geometry) {
  const int64_t queries = geometry.num_heads / geometry.num_kv_heads * geometry.head_dim;  // rows of the query heads of one group
  QkvRows rows;
  int32_t next = 0;
  const auto take = [&](std::vector<int32_t>& to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to.push_back(next++);
  };
  for (int64_t group = 0; group < geometry.num_kv_heads; ++group) {
    take(rows.q, queries);
    take(rows.k, geometry.head_dim);
    take(rows.v, geometry.head_dim);
  }
  return rows;
}

std::vector<int32_t> rows_of_blocks(int64_t num_blocks, int64_t size, int64_t begin, int64_t end) {
  std::vector<int32_t> rows;
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int64_t i = begin; i < end; ++i) rows.push_back(static_cast<int32_t>(block * size + i));
  }
  return rows;
}

std::vector<int32_t> last_rows_first(int64_t num_heads, int64_t head_dim, int64_t count) {
  std::vector<int32_t> rows;
  for (int64_t row = 0; row < num_heads * head_dim; ++row) {
    const int64_t head = row / head_dim, i = row % head_dim;
    rows.push_back(static_cast<int32_t>(head * head_dim + (i < count ? head_dim - count + i : i - count)));
  }
  return rows;
}

std::vector<int32_t> reorder_pairing(const std::vector<int32_t>& rows, int64_t head_dim, int64_t rotary_dim, Rope::Pairing stored,
                                     Rope::Pairing wanted) {
  if (stored == wanted) return rows;
  std::vector<int32_t> reordered = rows;
  const int64_t half = rotary_dim / 2;
  for (int64_t head = 0; head < static_cast<int64_t>(rows.size()); head += head_dim) {
    for (int64_t pair = 0; pair < half; ++pair) {
      for (int64_t member = 0; member < 2; ++member) {
        const int64_t interleaved = 2 * pair + member, halved = member * half + pair;
        const bool to_half = wanted == Rope::Pairing::kHalf;
        reordered[static_cast<std::size_t>(head + (to_half ? halved : interleaved))] =
            rows[static_cast<std::size_t>(head + (to_half ? interleaved : halved))];
      }
    }
  }
  return reordered;
}

std::vector<float> alibi_slopes(int64_t num_heads, double max_bias) {
  const int64_t whole = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(num_heads)));
  const auto base = [max_bias](int64_t heads) { return static_cast<float>(std::exp2(-max_bias / static_cast<double>(heads))); };
  std::vector<float> slopes;
  for (int64_t i = 1; i <= whole; ++i) slopes.push_back(std::pow(base(whole), static_cast<float>(i)));
  for (int64_t i = 0; i < num_heads - whole; ++i) slopes.push_back(std::pow(base(2 * whole), static_cast<float>(2 * i + 1)));
  return slopes;
}

}  // namespace millrace
