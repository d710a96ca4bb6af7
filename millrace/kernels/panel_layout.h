#pragma once

#include <cstddef>
#include <cstdint>

#include "millrace/kernels/packed_matrix.h"

// What the bytes of a panel mean. A panel holds 16 output rows for all k; k is cut in blocks, and a block holds the codes of all 16
// rows and then their scales, so that a thread streams one sequential range. Bytes are little endian and the same on every ISA.
//
// Quantized classes: blocks of 32 k. A *quad* is 4 consecutive k of one row; a *line* is 64 bytes = 16 rows x one quad, so that one
// 32-bit lane is one row and a dot product needs neither shuffles nor horizontal sums. Byte [row * 4 + j] of a line belongs to k = 4 quad + j.
//   4-bit plane   4 lines; line q: low nibble quad q, high nibble quad q + 4
//   5th-bit plane 1 line; bit q of a byte: quad q                                 (Q5_0, Q5_1, Q5_K)
//   6-bit plane   2 lines; line p, bits 2i and 2i + 1: bits 4 and 5 of quad 4p + i  (Q6_K)
//   8-bit plane   8 lines of signed bytes; line q: quad q                         (Q8_0)
// Then the scales of the block, [16] each:
//   Q4_0 Q5_0 Q8_0   f16 d                    value = d (code - zero), zero = 8, 16, 0
//   Q4_1 Q5_1        f16 d, f16 m             value = d code + m
//   Q4_K Q5_K        u8 scale, u8 minimum     value = d scale code - dmin minimum
//   Q6_K             s8 scale of k 0-15, s8 scale of k 16-31     value = d scale (code - 32)
// The K classes have a header in front of every 8 blocks: f16 d[16], and for Q4_K and Q5_K f16 dmin[16].
//
// Grouped classes: blocks of codes only, and in front of every 2^group_shift of them (GroupFormat) a header: the scales [16], as f16, bf16 or
// f32, and for the Zero classes u8 zero[16].
//   INT2_ZP          the 2-bit plane: 2 lines, line p, bits 2i and 2i + 1: quad 4p + i      value = scale (code - zero)
//   INT3_ZP          the same, and a line of third bits; bit q of a byte: quad q            the same
//   INT4, INT4_ZP    the 4-bit plane                                                        value = scale (code - 8), or - zero
//   INT8             the 8-bit plane of signed bytes                                        value = scale code
//   INT8_ZP          the 8-bit plane of unsigned bytes                                      value = scale (code - zero)
//   CODE4            the 4-bit plane                                                        value = scale codebook[code]
//   F8_E4M3          8 lines; line q: quad q                                                value = scale float(code)
//
// Plain classes: f32 [k][16]; f16 and bf16 [k / 2][16][2], an odd k padded with zero weights.
namespace millrace {

inline constexpr int64_t kBlockK = 32;       // of the quantized classes, and of int8 activations
inline constexpr int64_t kSuperBlocks = 8;   // blocks per header in the K classes

struct PanelLayout {
  int64_t block_k;       // k of one block
  int64_t block_bytes;
  int64_t header_bytes;  // in front of every kSuperBlocks blocks; 0: no headers
  int zero_point;
  bool has_minimum;      // a term per block beside the codes': m, -dmin minimum, or -scale zero
};

constexpr PanelLayout panel_layout(WeightClass weight_class) {
  switch (weight_class) {
    case WeightClass::kF32: return {1, 64, 0, 0, false};
    case WeightClass::kF16: return {2, 64, 0, 0, false};
    case WeightClass::kBf16: return {2, 64, 0, 0, false};
    case WeightClass::kQ4_0: return {kBlockK, 256 + 32, 0, 8, false};
    case WeightClass::kQ4_1: return {kBlockK, 256 + 64, 0, 0, true};
    case WeightClass::kQ5_0: return {kBlockK, 256 + 64 + 32, 0, 16, false};
    case WeightClass::kQ5_1: return {kBlockK, 256 + 64 + 64, 0, 0, true};
    case WeightClass::kQ8_0: return {kBlockK, 512 + 32, 0, 0, false};
    case WeightClass::kQ4_K: return {kBlockK, 256 + 32, 64, 0, true};
    case WeightClass::kQ5_K: return {kBlockK, 256 + 64 + 32, 64, 0, true};
    case WeightClass::kQ6_K: return {kBlockK, 256 + 128 + 32, 32, 32, false};
    case WeightClass::kInt2Zero: return {kBlockK, 128, 0, 0, true};
    case WeightClass::kInt3Zero: return {kBlockK, 128 + 64, 0, 0, true};
    case WeightClass::kInt4: return {kBlockK, 256, 0, 8, false};
    case WeightClass::kInt4Zero: return {kBlockK, 256, 0, 0, true};
    case WeightClass::kInt8: return {kBlockK, 512, 0, 0, false};
    case WeightClass::kInt8Zero: return {kBlockK, 512, 0, 0, true};
    case WeightClass::kCode4: return {kBlockK, 256, 0, 0, false};
    case WeightClass::kF8E4M3: return {kBlockK, 512, 0, 0, false};
  }
  return {};
}

// Whether the fast path multiplies integers with int8 activations.
constexpr bool is_quantized(WeightClass weight_class) {
  return weight_class != WeightClass::kF32 && weight_class != WeightClass::kF16 && weight_class != WeightClass::kBf16 && weight_class != WeightClass::kF8E4M3;
}

constexpr bool is_grouped(WeightClass weight_class) { return weight_class >= WeightClass::kInt2Zero; }

// Byte offset of block `block` in its panel; of block num_blocks: the panel's size (num_blocks is a multiple of kSuperBlocks where there are headers).
constexpr int64_t block_offset(const PanelLayout& layout, int64_t block) {
  return block * layout.block_bytes + (layout.header_bytes > 0 ? (block / kSuperBlocks + 1) * layout.header_bytes : 0);
}

// Where the blocks and headers of a panel lie, for any class: a header in front of every 2^header_shift blocks.
struct PanelStride {
  int64_t block_bytes, header_bytes;
  int header_shift;

  constexpr int64_t block_offset(int64_t block) const { return block * block_bytes + ((block >> header_shift) + 1) * header_bytes; }
  constexpr int64_t header_offset(int64_t block) const { return (block >> header_shift) * (header_bytes + (block_bytes << header_shift)); }
};

inline constexpr int kHeaderShiftMax = 30;  // more blocks than any row has: one header a panel

constexpr PanelStride panel_stride(WeightClass weight_class, const GroupFormat& group) {
  const PanelLayout layout = panel_layout(weight_class);
  if (!is_grouped(weight_class)) return {layout.block_bytes, layout.header_bytes, layout.header_bytes > 0 ? 3 : kHeaderShiftMax};
  return {layout.block_bytes, 16 * (group.scale_type == ScaleType::kF32 ? 4 : 2) + (layout.has_minimum ? 16 : 0), group.group_shift};
}
static_assert(kSuperBlocks == 1 << 3);

constexpr int64_t panel_bytes(WeightClass weight_class, const GroupFormat& group, int64_t k) {
  const PanelLayout layout = panel_layout(weight_class);
  const PanelStride stride = panel_stride(weight_class, group);
  const int64_t num_blocks = (k + layout.block_k - 1) / layout.block_k;
  return num_blocks * stride.block_bytes + ((num_blocks - 1) >> stride.header_shift) * stride.header_bytes + stride.header_bytes;
}

// One block of one row, taken apart as the fast path multiplies it: value(i) = scale[i / 16] * (codes[i] - zero_point) [+ minimum where the
// class has one]. Not of plain classes, nor of F8_E4M3.
struct BlockRow {
  int codes[kBlockK];
  float scale[2];  // both the same but in Q6_K
  float minimum;
};
BlockRow load_block_row(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t block, int64_t row);

// Writes row `row` (0..15) of a panel as floats: out[i * stride], i < k. The exact values that the stored type stands for.
void unpack_panel_row(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t k, int64_t row, float* out, int64_t stride);

}  // namespace millrace
