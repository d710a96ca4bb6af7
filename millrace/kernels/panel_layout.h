#pragma once

#include <cstddef>
#include <cstdint>

#include "millrace/kernels/packed_matrix.h"

// What the bytes of a panel mean. A panel holds 16 output rows for all k; k is cut in blocks, and a block holds the codes of all 16
// rows and then their scales, so that a thread streams one sequential range. Bytes are little endian and the same on every ISA.
//
// Quantized classes: blocks of 32 k. A *quad* is 4 consecutive k of one row; a *line* is 64 bytes = 16 rows x one quad, so that one
// 32-bit lane is one row and a dot product needs neither shuffles nor horizontal sums. Byte [row * 4 + j] of a line belongs to k = 4 quad +
// j.
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
// GGUF's small blocks. 2-bit plane: 2 lines; line p, bits 2i and 2i + 1: quad 4p + i; third bits: 1 line; bit q of a byte: quad q.
//   Q2_K      2-bit plane, u8 (scale | minimum << 4) of k 0-15, the same of k 16-31     value = d scale code - dmin minimum
//   Q3_K      2-bit plane, third bits, s8 scale of k 0-15, s8 scale of k 16-31          value = d scale (code - 4)
//   TQ2_0     2-bit plane                                                                value = d (code - 1)
//   IQ4_NL    4-bit plane, f16 d                                                         value = d table[code]
//   IQ4_XS    4-bit plane, s8 scale                                                      value = d scale table[code]
//   MXFP4     4-bit plane, u8 e (E8M0)                                                   value = 2^(e - 128) table[code]
//   NVFP4     4-bit plane, u8 e (E4M3, no sign) of k 0-15, the same of k 16-31           value = e / 2 unit table[code]
// (NVFP4's unit is the matrix's, GroupFormat::unit; of GGUF it is 1.)
// Q2_K, Q3_K, TQ2_0 and IQ4_XS have a header in front of every 8 blocks: f16 d[16], of Q2_K also f16 dmin[16].
//
// The code-book classes (tensor/grid_blocks.h): value = d (2 scale + 1) unit code. A header in front of every 8 blocks: f16 d[16]. A line
// is a u32 of each row; its bytes, lowest first, are those of consecutive 8 numbers (of IQ3's indexes 4 numbers).
//   IQ1_S     line of low indexes, u16 as stored: high bits, scale, sign of the shift
//   IQ1_M     line of low indexes, u16: four nibbles of high bits and sign of the shift, u8 scales
//   IQ2_XXS   line of indexes, line of signs and scale as stored
//   IQ2_XS    2 lines; half of a line: index and signs as stored; u8 scales
//   IQ2_S     line of low indexes, line of signs, u8 high bits, u8 scales
//   IQ3_XXS   2 lines of indexes, line of signs and scale as stored
//   IQ3_S     2 lines of low indexes, line of signs, u8 ninth bits, u8 scale
// u8 scales: of k 0-15 in the low nibble, of k 16-31 in the high one.
//
// Grouped classes: blocks of codes only, and in front of every 2^group_shift of them (GroupFormat) a header: the scales [16], as f16, bf16
// or f32, and for the Zero classes u8 zero[16], or, where zero points are no whole numbers (float_zeros), zero[16] as the scales.
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

// These are also called in files compiled for one instruction set, and such a copy may not become the whole program's (always_inline as in
// vec.h).
#define MR_PANEL_INLINE [[gnu::always_inline]] constexpr

inline constexpr int64_t kBlockK = 32;      // of the quantized classes, and of int8 activations
inline constexpr int64_t kSuperBlocks = 8;  // blocks per header in the K classes

struct PanelLayout {
  int64_t block_k;  // k of one block
  int64_t block_bytes;
  int64_t header_bytes;  // in front of every kSuperBlocks blocks; 0: no headers
  int zero_point;
  bool has_minimum;    // a term per block beside the codes': m, -dmin minimum, or -scale zero
  int num_scales = 1;  // of a block: 1, or 2 of 16 k each (and as many minima)
};

MR_PANEL_INLINE PanelLayout panel_layout(WeightClass weight_class) {
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
    case WeightClass::kQ6_K: return {kBlockK, 256 + 128 + 32, 32, 32, false, 2};
    case WeightClass::kInt2Zero: return {kBlockK, 128, 0, 0, true};
    case WeightClass::kInt3Zero: return {kBlockK, 128 + 64, 0, 0, true};
    case WeightClass::kInt4: return {kBlockK, 256, 0, 8, false};
    case WeightClass::kInt4Zero: return {kBlockK, 256, 0, 0, true};
    case WeightClass::kInt8: return {kBlockK, 512, 0, 0, false};
    case WeightClass::kInt8Zero: return {kBlockK, 512, 0, 0, true};
    case WeightClass::kCode4: return {kBlockK, 256, 0, 0, false};
    case WeightClass::kF8E4M3: return {kBlockK, 512, 0, 0, false};
    case WeightClass::kQ2_K: return {kBlockK, 128 + 32, 64, 0, true, 2};
    case WeightClass::kQ3_K: return {kBlockK, 128 + 64 + 32, 32, 4, false, 2};
    case WeightClass::kTQ2_0: return {kBlockK, 128, 32, 1, false};
    case WeightClass::kIQ4_NL: return {kBlockK, 256 + 32, 0, 0, false};
    case WeightClass::kIQ4_XS: return {kBlockK, 256 + 16, 32, 0, false};
    case WeightClass::kMXFP4: return {kBlockK, 256 + 16, 0, 0, false};
    case WeightClass::kNVFP4: return {kBlockK, 256 + 32, 0, 0, false, 2};
    case WeightClass::kIQ1_S: return {kBlockK, 64 + 32, 32, 0, false};
    case WeightClass::kIQ1_M: return {kBlockK, 64 + 32 + 16, 32, 0, false, 2};
    case WeightClass::kIQ2_XXS: return {kBlockK, 128, 32, 0, false};
    case WeightClass::kIQ2_XS: return {kBlockK, 128 + 16, 32, 0, false, 2};
    case WeightClass::kIQ2_S: return {kBlockK, 128 + 32, 32, 0, false, 2};
    case WeightClass::kIQ3_XXS: return {kBlockK, 192, 32, 0, false};
    case WeightClass::kIQ3_S: return {kBlockK, 192 + 32, 32, 0, false};
  }
  return {};
}

// Whether the fast path multiplies integers with int8 activations.
MR_PANEL_INLINE bool is_quantized(WeightClass weight_class) {
  return weight_class != WeightClass::kF32 && weight_class != WeightClass::kF16 && weight_class != WeightClass::kBf16 &&
         weight_class != WeightClass::kF8E4M3;
}

MR_PANEL_INLINE bool is_grouped(WeightClass weight_class) {
  return weight_class >= WeightClass::kInt2Zero && weight_class <= WeightClass::kF8E4M3;
}
MR_PANEL_INLINE bool is_grid(WeightClass weight_class) { return weight_class >= WeightClass::kIQ1_S; }

// The sixteen numbers of the 4-bit classes with a fixed table: those of IQ4_NL and IQ4_XS, and twice those of FP4 (E2M1), so that they are
// whole.
alignas(16) inline constexpr int8_t kIq4Table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
alignas(16) inline constexpr int8_t kFp4Table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
MR_PANEL_INLINE const int8_t* fixed_table(WeightClass weight_class) {
  if (weight_class == WeightClass::kIQ4_NL || weight_class == WeightClass::kIQ4_XS) return kIq4Table;
  return weight_class == WeightClass::kMXFP4 || weight_class == WeightClass::kNVFP4 ? kFp4Table : nullptr;
}

// Byte offset of block `block` in its panel; of block num_blocks: the panel's size (num_blocks is a multiple of kSuperBlocks where there
// are headers).
MR_PANEL_INLINE int64_t block_offset(const PanelLayout& layout, int64_t block) {
  return block * layout.block_bytes + (layout.header_bytes > 0 ? (block / kSuperBlocks + 1) * layout.header_bytes : 0);
}

// Where the blocks and headers of a panel lie, for any class: a header in front of every 2^header_shift blocks.
struct PanelStride {
  int64_t block_bytes, header_bytes;
  int header_shift;

  MR_PANEL_INLINE int64_t block_offset(int64_t block) const { return block * block_bytes + ((block >> header_shift) + 1) * header_bytes; }
  MR_PANEL_INLINE int64_t header_offset(int64_t block) const {
    return (block >> header_shift) * (header_bytes + (block_bytes << header_shift));
  }
};

inline constexpr int kHeaderShiftMax = 30;  // more blocks than any row has: one header a panel

MR_PANEL_INLINE PanelStride panel_stride(WeightClass weight_class, const GroupFormat& group) {
  const PanelLayout layout = panel_layout(weight_class);
  if (!is_grouped(weight_class)) return {layout.block_bytes, layout.header_bytes, layout.header_bytes > 0 ? 3 : kHeaderShiftMax};
  const int64_t scales = 16 * (group.scale_type == ScaleType::kF32 ? 4 : 2);
  return {layout.block_bytes, scales + (!layout.has_minimum ? 0 : group.float_zeros ? scales : 16), group.group_shift};
}
static_assert(kSuperBlocks == 1 << 3);

MR_PANEL_INLINE int64_t panel_bytes(WeightClass weight_class, const GroupFormat& group, int64_t k) {
  const PanelLayout layout = panel_layout(weight_class);
  const PanelStride stride = panel_stride(weight_class, group);
  const int64_t num_blocks = (k + layout.block_k - 1) / layout.block_k;
  return num_blocks * stride.block_bytes + ((num_blocks - 1) >> stride.header_shift) * stride.header_bytes + stride.header_bytes;
}

// One block of one row, taken apart as the fast path multiplies it: value(i) = scale[i / 16] * (codes[i] - zero_point) [+ minimum[i / 16]
// where the class has one]. Not of plain classes, nor of F8_E4M3.
struct BlockRow {
  int codes[kBlockK];
  float scale[2];  // both the same where the class has one a block
  float minimum[2];
};
BlockRow load_block_row(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t block, int64_t row);

// Writes row `row` (0..15) of a panel as floats: out[i * stride], i < k. The exact values that the stored type stands for.
void unpack_panel_row(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t k, int64_t row, float* out,
                      int64_t stride);

}  // namespace millrace
