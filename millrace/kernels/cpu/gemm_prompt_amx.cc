// Quantized weights times the tokens of a prompt with AMX tiles: weights are decoded to bf16, a strip at a time, and multiplied by bf16
// activations, with all sums in the tiles. Rounding both to bf16 (2^-9) costs less than rounding activations to int8 does, and nothing is
// left to scale; but decoding costs as much as multiplying by some 60 tokens, so that this is for prompts (docs/design.md D4).

// g++ 12 reports its own _mm512_undefined_*() as uninitialized.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "millrace/kernels/cpu/gemm_bf16_amx.h"
#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/grid_tables.h"

namespace millrace::amx {
namespace {

#include "millrace/kernels/cpu/gemm_vec512.inc"
#include "millrace/kernels/cpu/gemm_simd.inc"

// Most blocks of k in a strip of two panels: what of the first cache level stays when activations stream through it.
constexpr int64_t kDecodedBlocks = 18;
constexpr int64_t kDecodedBytes = kBlockK * 32;  // of a block of one panel

// 16 pairs of bf16, rounded to nearest: the instruction, which from the middle takes the even one, takes eight cycles for what these four
// take two. From the middle the first of a pair goes towards zero and the second away from it, so that a sum does not drift.
MR_INLINE __m512i bf16_pairs(F first, F second) {
  const __m512i below_half = _mm512_set1_epi32(0x7fff), half = _mm512_set1_epi32(0x8000),
                upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(first), below_half), 16);
  return _mm512_ternarylogic_epi32(_mm512_add_epi32(_mm512_castps_si512(second), half), upper, low, 0xea);  // (a & b) | c
}
// The lowest byte of each lane as a float. Codes of 4 bits are looked up: the index of a permutation ignores all others.
template <WeightClass kClass>
MR_INLINE F lowest_byte(I codes) {
  constexpr bool kFourBits = kClass == WeightClass::kQ4_0 || kClass == WeightClass::kQ4_1 || kClass == WeightClass::kQ4_K ||
                             kClass == WeightClass::kInt2Zero || kClass == WeightClass::kInt3Zero || kClass == WeightClass::kInt4 ||
                             kClass == WeightClass::kInt4Zero || kClass == WeightClass::kQ2_K || kClass == WeightClass::kQ3_K ||
                             kClass == WeightClass::kTQ2_0;
  if constexpr (kFourBits)
    return _mm512_maskz_permutexvar_ps(0xffff, codes, _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  return to_float(bit_and(codes, _mm512_set1_epi32(0xff)));
}
// NaN as arithmetic makes it: the rounding above would carry from a full mantissa into the sign.
MR_INLINE F without_payload(F value) {
  return _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), _mm512_set1_ps(__builtin_nanf("")));
}

// `count` blocks of a panel as bf16 [16 pairs of k][16 rows][2] each.
template <WeightClass kClass>
void decode(const GemmCall& call, const std::byte* panel, int64_t block_begin, int64_t count, std::byte* to) {
  constexpr PanelLayout kLayout = panel_layout(kClass);
  constexpr auto kZeroPoint = static_cast<float>(kZero<kClass>);
  const PanelStride stride = stride_of<kClass>(call);
  for (int64_t b = 0; b < count; ++b) {
    Block<kClass, 1> w;
    const std::byte* block = panel + stride.block_offset(block_begin + b);
    prefetch_block<kClass>(block + kPrefetchBytes);
    load_weights(block, panel + stride.header_offset(block_begin + b), call.group, 0, 0, w);
    MR_UNROLL for (int q = 0; q < 8; ++q) {
      const F scale = without_payload(w.scale[kLayout.num_scales == 2 ? q / 4 : 0][0]);
      F minimum;
      if constexpr (kLayout.has_minimum) {
        minimum = without_payload(w.minimum[kLayout.num_scales == 2 ? q / 4 : 0][0]);
      } else {
        minimum = mul(scale, _mm512_set1_ps(-kZeroPoint));
      }
      const I codes = w.codes[q][0];
      const F values[4] = {fma(lowest_byte<kClass>(codes), scale, minimum),
                           fma(lowest_byte<kClass>(_mm512_srli_epi32(codes, 8)), scale, minimum),
                           fma(lowest_byte<kClass>(_mm512_srli_epi32(codes, 16)), scale, minimum),
                           fma(lowest_byte<kClass>(_mm512_srli_epi32(codes, 24)), scale, minimum)};
      MR_UNROLL for (int pair = 0; pair < 2; ++pair) {
        _mm512_store_si512(to + b * kDecodedBytes + (2 * q + pair) * 64, bf16_pairs(values[2 * pair], values[2 * pair + 1]));
      }
    }
  }
}

// All panels of the call take their turn at a range of k before the next range: its activations, a few hundred KB, stay in the second cache
// level.
template <WeightClass kClass>
MR_INLINE void gemm_prompt(const GemmCall& call) {
  constexpr int64_t kMultiple = kChunkMultiple<kClass>;
  alignas(64) std::byte strip[2 * kDecodedBlocks * kDecodedBytes];
  const int64_t num_blocks = call.k / kBlockK, chunk = even_share(num_blocks, kDecodedBlocks / kMultiple * kMultiple, kMultiple);
  const int64_t x_stride = call.x->bf16_stride();
  for (int64_t block = 0; block < num_blocks; block += chunk) {
    const int64_t count = num_blocks - block < chunk ? num_blocks - block : chunk;
    for (int64_t panel = 0; panel < call.num_panels; panel += 2) {
      const int64_t num_panels = call.num_panels - panel < 2 ? 1 : 2;
      for (int64_t p = 0; p < num_panels; ++p)
        decode<kClass>(call, call.panels + (panel + p) * call.panel_bytes, block, count, strip + p * count * kDecodedBytes);
      multiply_bf16({.panels = strip,
                     .panel_bytes = count * kDecodedBytes,
                     .num_panels = num_panels,
                     .num_pairs = count * kBlockK / 2,
                     .x = call.x->bf16 + call.row_begin * x_stride + block * kBlockK,
                     .x_stride = x_stride,
                     .num_rows = call.num_rows,
                     .y = call.y + panel * 16,
                     .y_stride = call.y_stride,
                     .adds = block > 0});
    }
  }
}

}  // namespace

void prompt_q4_0(const GemmCall& call) { gemm_prompt<WeightClass::kQ4_0>(call); }
void prompt_q4_1(const GemmCall& call) { gemm_prompt<WeightClass::kQ4_1>(call); }
void prompt_q5_0(const GemmCall& call) { gemm_prompt<WeightClass::kQ5_0>(call); }
void prompt_q5_1(const GemmCall& call) { gemm_prompt<WeightClass::kQ5_1>(call); }
void prompt_q8_0(const GemmCall& call) { gemm_prompt<WeightClass::kQ8_0>(call); }
void prompt_q4_k(const GemmCall& call) { gemm_prompt<WeightClass::kQ4_K>(call); }
void prompt_q5_k(const GemmCall& call) { gemm_prompt<WeightClass::kQ5_K>(call); }
void prompt_q6_k(const GemmCall& call) { gemm_prompt<WeightClass::kQ6_K>(call); }
void prompt_int2_zero(const GemmCall& call) { gemm_prompt<WeightClass::kInt2Zero>(call); }
void prompt_int3_zero(const GemmCall& call) { gemm_prompt<WeightClass::kInt3Zero>(call); }
void prompt_int4(const GemmCall& call) { gemm_prompt<WeightClass::kInt4>(call); }
void prompt_int4_zero(const GemmCall& call) { gemm_prompt<WeightClass::kInt4Zero>(call); }
void prompt_int8(const GemmCall& call) { gemm_prompt<WeightClass::kInt8>(call); }
void prompt_int8_zero(const GemmCall& call) { gemm_prompt<WeightClass::kInt8Zero>(call); }
void prompt_code4(const GemmCall& call) { gemm_prompt<WeightClass::kCode4>(call); }
void prompt_q2_k(const GemmCall& call) { gemm_prompt<WeightClass::kQ2_K>(call); }
void prompt_q3_k(const GemmCall& call) { gemm_prompt<WeightClass::kQ3_K>(call); }
void prompt_tq2_0(const GemmCall& call) { gemm_prompt<WeightClass::kTQ2_0>(call); }
void prompt_iq4_nl(const GemmCall& call) { gemm_prompt<WeightClass::kIQ4_NL>(call); }
void prompt_iq4_xs(const GemmCall& call) { gemm_prompt<WeightClass::kIQ4_XS>(call); }
void prompt_mxfp4(const GemmCall& call) { gemm_prompt<WeightClass::kMXFP4>(call); }
void prompt_nvfp4(const GemmCall& call) { gemm_prompt<WeightClass::kNVFP4>(call); }
void prompt_iq1_s(const GemmCall& call) { gemm_prompt<WeightClass::kIQ1_S>(call); }
void prompt_iq1_m(const GemmCall& call) { gemm_prompt<WeightClass::kIQ1_M>(call); }
void prompt_iq2_xxs(const GemmCall& call) { gemm_prompt<WeightClass::kIQ2_XXS>(call); }
void prompt_iq2_xs(const GemmCall& call) { gemm_prompt<WeightClass::kIQ2_XS>(call); }
void prompt_iq2_s(const GemmCall& call) { gemm_prompt<WeightClass::kIQ2_S>(call); }
void prompt_iq3_xxs(const GemmCall& call) { gemm_prompt<WeightClass::kIQ3_XXS>(call); }
void prompt_iq3_s(const GemmCall& call) { gemm_prompt<WeightClass::kIQ3_S>(call); }

}  // namespace millrace::amx
