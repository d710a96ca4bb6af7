#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/grid_tables.h"

// AVX2 without VNNI: the plain classes, and those of GGUF's blocks.
namespace millrace::avx2 {
namespace {

#include "millrace/kernels/cpu/gemm_vec256.inc"
#include "millrace/kernels/cpu/gemm_dots_avx2.inc"

inline void bf16_pairs(I pairs, F (&w)[2]) {
  w[0] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  w[1] = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}
inline void f16_pairs(I pairs, F (&w)[2]) {
  const I low = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff)), high = _mm256_srli_epi32(pairs, 16);
  const I apart = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
  w[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(apart));
  w[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(apart, 1));
}

#include "millrace/kernels/cpu/gemm_simd.inc"
#include "millrace/kernels/cpu/gemm_plain_simd.inc"

}  // namespace

void gemm_f32(const GemmCall& call) { gemm_plain<PlainF32>(call); }
void gemm_f16(const GemmCall& call) { gemm_plain<PlainF16>(call); }
void gemm_bf16(const GemmCall& call) { gemm_plain<PlainBf16>(call); }
void gemm_f8(const GemmCall& call) { gemm_e4m3(call); }
void gemm_exact(const GemmCall& call) { gemm_decoded(call); }

#include "millrace/kernels/cpu/gemm_block_classes.inc"

}  // namespace millrace::avx2
