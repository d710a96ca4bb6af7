#pragma once

#include "millrace/kernels/packed_matrix.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/grouped_weights.h"

// Panels of the grouped classes: how rows of a GroupedWeights become them, and what they mean. Layout: panel_layout.h.
namespace millrace {

// One row taken from a GroupedWeights; reused from row to row.
struct GroupedRow {
  std::vector<uint8_t> codes, zero_points;
  std::vector<float> scales, float_zeros;

  explicit GroupedRow(const GroupedWeights& weights);
  Status read(const GroupedWeights& weights, int64_t row);  // fails only of RoundedWeights
};

// The class that holds `rows` of `weights`: without zero points where all of them are the middle.
WeightClass grouped_class(const GroupedWeights& weights, std::span<const int32_t> rows, GroupedRow& buffer);
ScaleType scale_type_of(DType dtype);
// The most blocks of 32 whose k always share a scale, as a power of two.
int group_shift_of(int64_t group_size, int64_t k);

// Writes `from` as row `row` (0..15) of a panel.
void pack_grouped_row(WeightClass weight_class, const GroupFormat& group, const GroupedRow& from, int64_t group_size, int64_t k,
                      int64_t row, std::byte* panel);

BlockRow load_grouped_block_row(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t block, int64_t row);
// One block's 32 numbers, and a whole row's: out[i * stride].
void unpack_grouped_block(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t block, int64_t row,
                          float* out, int64_t stride);
void unpack_grouped_row(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t k, int64_t row, float* out,
                        int64_t stride);

}  // namespace millrace
