#include "millrace/kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "millrace/base/check.h"
#include "millrace/kernels/attention_variants.h"
#include "millrace/tensor/half.h"

namespace millrace {
namespace {

const AttentionVariant& variant(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return baseline::kAttention;
    case Isa::kAvx2:
    case Isa::kAvx2Vnni: return avx2::kAttention;
    case Isa::kAvx512Vnni:
    case Isa::kAvx512VnniBf16: return avx512::kAttention;
  }
  MR_CHECK(false, "unknown instruction set");
}

// The code grid of one token's keys or values. Not finite: the scale says so, and the scores will.
float int8_scale(const float* x, int64_t size) {
  float largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < size; ++i) {
    largest = std::max(largest, std::abs(x[i]));
    finite = finite && std::isfinite(x[i]);
  }
  return finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
}

int8_t int8_code(float x, float scale) {
  if (!(scale > 0)) return 0;
  return static_cast<int8_t>(std::lrint(std::clamp(x / scale, -127.0f, 127.0f)));
}

}  // namespace

int64_t KvGeometry::head_bytes() const { return KvHeadLayout(*this).size; }

void kv_write(Isa, const KvView& kv, int64_t block, int64_t token, int64_t kv_head, const float* k, const float* v) {
  MR_DCHECK(block >= 0 && token >= 0 && token < kBlockTokens && kv_head >= 0 && kv_head < kv.geometry.num_kv_heads, "no such KV slot");
  const KvHeadLayout layout(kv.geometry);
  const int64_t head_dim = kv.geometry.head_dim, g = layout.values_per_dword;
  std::byte* head = kv.base + block * kv.block_stride + kv_head * layout.size;
  std::byte* v_row = head + layout.v_offset + (token / g) * layout.v_dim_padded * 4;
  // The padding of K's last group multiplies queries padded with zeros, so that it must be zero; the padding of V's rows gives outputs which
  // are dropped.
  switch (kv.geometry.format) {
    case KvFormat::kF32: {
      float* keys = reinterpret_cast<float*>(head) + token;
      for (int64_t d = 0; d < head_dim; ++d) keys[d * kBlockTokens] = k[d];
      std::memcpy(v_row, v, static_cast<std::size_t>(head_dim) * 4);
      break;
    }
    case KvFormat::kBf16: {
      uint16_t* keys = reinterpret_cast<uint16_t*>(head) + token * 2;
      for (int64_t d = 0; d < layout.k_dwords * 2; ++d) keys[(d / 2) * kBlockTokens * 2 + d % 2] = d < head_dim ? f32_to_bf16(k[d]) : uint16_t{0};
      uint16_t* values = reinterpret_cast<uint16_t*>(v_row) + token % 2;
      for (int64_t d = 0; d < head_dim; ++d) values[d * 2] = f32_to_bf16(v[d]);
      break;
    }
    case KvFormat::kInt8: {
      const float k_scale = int8_scale(k, head_dim), v_scale = int8_scale(v, head_dim);
      reinterpret_cast<float*>(head + layout.k_scales_offset)[token] = k_scale;
      reinterpret_cast<float*>(head + layout.v_scales_offset)[token] = v_scale;
      int8_t* keys = reinterpret_cast<int8_t*>(head) + token * 4;
      for (int64_t d = 0; d < layout.k_dwords * 4; ++d) keys[(d / 4) * kBlockTokens * 4 + d % 4] = d < head_dim ? int8_code(k[d], k_scale) : int8_t{0};
      int8_t* values = reinterpret_cast<int8_t*>(v_row) + token % 4;
      for (int64_t d = 0; d < head_dim; ++d) values[d * 4] = int8_code(v[d], v_scale);
      break;
    }
  }
}

int64_t attention_scratch_floats(const KvGeometry& geometry, int64_t) {
  MR_CHECK(geometry.head_dim >= 1 && geometry.head_dim <= 512, "head_dim must be 1 to 512");
  // Of every query of a tile: itself, its scores in a segment, its accumulator, maximum and sum.
  return kTileQueries * (3 * kQueryStride + 2);
}

int64_t attention_num_segments(const AttentionArgs& args, int64_t row) { return (args.first_position + row) / kSegmentTokens + 1; }

void attention(Isa isa, const KvView& kv, const AttentionArgs& args, int64_t row_begin, int64_t row_end, int64_t kv_head, float* scratch) {
  MR_DCHECK(args.num_heads % kv.geometry.num_kv_heads == 0, "heads share keys in whole groups");
  MR_DCHECK(row_begin >= 0 && row_end <= args.num_rows && kv_head >= 0 && kv_head < kv.geometry.num_kv_heads, "no such rows");
  variant(isa).attention(kv, args, row_begin, row_end, kv_head, scratch);
}

void attention_partial(Isa isa, const KvView& kv, const AttentionArgs& args, int64_t row, int64_t kv_head, int64_t segment, float* partial,
                       float* scratch) {
  MR_DCHECK(segment >= 0 && segment < attention_num_segments(args, row), "no such segment");
  variant(isa).partial(kv, args, row, kv_head, segment, partial, scratch);
}

void attention_merge(Isa isa, const KvView& kv, const AttentionArgs& args, int64_t row, int64_t kv_head, const float* partials,
                     int64_t num_segments) {
  variant(isa).merge(kv, args, row, kv_head, partials, num_segments);
}

}  // namespace millrace
