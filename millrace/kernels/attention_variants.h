#pragma once

#include <cstdint>

#include "millrace/kernels/attention.h"

namespace millrace {

// What one variant of attention offers; attention.cc chooses among them. All but AMX's are one body (cpu/attention_simd.inc).
struct AttentionVariant {
  void (*attention)(const KvView& kv, const AttentionArgs& args, int64_t row_begin, int64_t row_end, int64_t kv_head, float* scratch);
  void (*partial)(const KvView& kv, const AttentionArgs& args, int64_t row, int64_t kv_head, int64_t segment, float* partial,
                  float* scratch);
  void (*merge)(const KvView& kv, const AttentionArgs& args, int64_t row, int64_t kv_head, const float* partials, int64_t num_segments);
};

namespace baseline {
extern const AttentionVariant kAttention;  // what every x86-64-v2 runs: the scalar level
}
namespace avx2 {
extern const AttentionVariant kAttention;
}
namespace avx512 {
extern const AttentionVariant kAttention;
// kv_write() for bf16 and heads of a multiple of 32: `keys` and `values` are the token's in the block.
void kv_write_bf16(const float* k, const float* v, int64_t head_dim, std::byte* keys, std::byte* values);
}  // namespace avx512
namespace amx {
extern const AttentionVariant kAttention;
}

// Most queries (row, head) that a variant computes together, so that a loaded key serves all of them.
inline constexpr int64_t kTileQueries = 16;
// Floats from one query of a tile to the next, and from its scores to the next's. A constant, so that one register addresses all queries; a
// cache line more than a segment, since at a power of two all of them would share few cache sets. Bounds head_dim to 512.
inline constexpr int64_t kQueryStride = kSegmentTokens + 16;

// Where things lie in one kv head of a block, in bytes.
struct KvHeadLayout {
  int64_t values_per_dword = 1;  // g; of int4's V 4, beside as many of another dimension
  int64_t k_dwords = 0;          // ceil(head_dim / g), of int4 / 8: rows of 32 dwords
  int64_t v_dim_padded = 0;      // head_dim to 16, of int4 to 32
  int64_t v_row_dwords = 0;      // in each of 32 / g rows: v_dim_padded, of int4 half of that
  int64_t v_offset = 0, k_scales_offset = 0, v_scales_offset = 0, size = 0;

  [[gnu::always_inline]] explicit constexpr KvHeadLayout(const KvGeometry& geometry) {
    const bool is_int4 = geometry.format == KvFormat::kInt4;
    values_per_dword = geometry.format == KvFormat::kF32 ? 1 : geometry.format == KvFormat::kBf16 ? 2 : 4;
    const int64_t k_values = is_int4 ? 8 : values_per_dword, v_padding = is_int4 ? 32 : 16;
    k_dwords = (geometry.head_dim + k_values - 1) / k_values;
    v_dim_padded = (geometry.head_dim + v_padding - 1) / v_padding * v_padding;
    v_row_dwords = is_int4 ? v_dim_padded / 2 : v_dim_padded;
    v_offset = k_dwords * kBlockTokens * 4;
    k_scales_offset = v_offset + kBlockTokens / values_per_dword * v_row_dwords * 4;
    v_scales_offset = k_scales_offset + kBlockTokens * 4;
    const bool has_scales = geometry.format != KvFormat::kF32 && geometry.format != KvFormat::kBf16;
    size = has_scales ? v_scales_offset + kBlockTokens * 4 : k_scales_offset;
  }
};

}  // namespace millrace
