#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"

// AVX2 without VNNI. vpmaddubsw saturates at 16 bits: |sum of 2 products| must stay below 32768, and so must what is added up before
// vpmaddwd widens it. With activations of at most 127: 4-bit codes allow 8 additions (8 * 2 * 15 * 127 = 30480), 5-bit 4 (31496), 6-bit 2 (32004).
namespace millrace::avx2 {
namespace {

#include "millrace/kernels/cpu/gemm_vec256.inc"

constexpr bool kSigned8 = true;
constexpr bool kDotsAreChained = false;
constexpr int kFewTokens = 8;
constexpr int kTogether = 1;
template <int kBits>
constexpr int kTileTokens = kBits == 6 ? 3 : 4;

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

// g++ 12 and clang 19 reorder the sums so that they no longer fit in registers; an empty asm keeps each where it is.
inline void pin(I& v) { __asm__("" : "+x"(v)); }

template <int kBits, int kFirst, int kQuads, int kN, int kU, int kT>
[[gnu::always_inline]] inline void add_dots(const I (&codes)[kN][kU], const int8_t* x, int64_t token_stride, I (&totals)[kT][kU]) {
  if constexpr (kBits == 8) {
#pragma GCC unroll 16
    for (int i = 2 * kFirst; i < 2 * (kFirst + kQuads); ++i) {
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        const I activations = broadcast_quad(x + t * token_stride + i % 2 * 32 + i / 2 * 4);
#pragma GCC unroll 2
        for (int u = 0; u < kU; ++u) {
          totals[t][u] = _mm256_add_epi32(totals[t][u], _mm256_madd_epi16(codes[i][u], activations));
          pin(totals[t][u]);
        }
      }
    }
    return;
  }
  if constexpr (kBits == 6) {  // pairs of quads, so that their 16-bit sums are needed only for a moment
#pragma GCC unroll 4
    for (int q = kFirst; q < kFirst + kQuads; q += 2) {
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        const I first = broadcast_quad(x + t * token_stride + 4 * q), second = broadcast_quad(x + t * token_stride + 4 * q + 4);
#pragma GCC unroll 2
        for (int u = 0; u < kU; ++u) {
          const I sum = _mm256_add_epi16(_mm256_maddubs_epi16(codes[q][u], first), _mm256_maddubs_epi16(codes[q + 1][u], second));
          totals[t][u] = _mm256_add_epi32(totals[t][u], _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
          pin(totals[t][u]);
        }
      }
    }
    return;
  }
  constexpr int kRun = kBits == 4 ? 8 : 4;
  static_assert(kQuads % kRun == 0);
#pragma GCC unroll 8
  for (int run = kFirst; run < kFirst + kQuads; run += kRun) {
    I sums[kT][kU];
#pragma GCC unroll 8
    for (int q = run; q < run + kRun; ++q) {
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        const I activations = broadcast_quad(x + t * token_stride + 4 * q);
#pragma GCC unroll 2
        for (int u = 0; u < kU; ++u) {
          const I products = _mm256_maddubs_epi16(codes[q][u], activations);
          sums[t][u] = q == run ? products : _mm256_add_epi16(sums[t][u], products);
          pin(sums[t][u]);
        }
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 2
      for (int u = 0; u < kU; ++u) totals[t][u] = _mm256_add_epi32(totals[t][u], _mm256_madd_epi16(sums[t][u], _mm256_set1_epi16(1)));
    }
  }
}

// The 8-bit plane: bytes 0 and 2, and 1 and 3, of a quad as 16-bit words, for vpmaddwd, which neither saturates nor minds signs.
inline void widen_codes(I bytes, I& even, I& odd) {
  even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
  odd = _mm256_srai_epi16(bytes, 8);
}

#include "millrace/kernels/cpu/gemm_simd.inc"
#include "millrace/kernels/cpu/gemm_plain_simd.inc"

}  // namespace

void gemm_f32(const GemmCall& call) { gemm_plain<PlainF32>(call); }
void gemm_f16(const GemmCall& call) { gemm_plain<PlainF16>(call); }
void gemm_bf16(const GemmCall& call) { gemm_plain<PlainBf16>(call); }
void gemm_exact(const GemmCall& call) { gemm_decoded(call); }
void gemm_q4_0(const GemmCall& call) { gemm_quantized<WeightClass::kQ4_0>(call); }
void gemm_q4_1(const GemmCall& call) { gemm_quantized<WeightClass::kQ4_1>(call); }
void gemm_q5_0(const GemmCall& call) { gemm_quantized<WeightClass::kQ5_0>(call); }
void gemm_q5_1(const GemmCall& call) { gemm_quantized<WeightClass::kQ5_1>(call); }
void gemm_q8_0(const GemmCall& call) { gemm_quantized<WeightClass::kQ8_0>(call); }
void gemm_q4_k(const GemmCall& call) { gemm_quantized<WeightClass::kQ4_K>(call); }
void gemm_q5_k(const GemmCall& call) { gemm_quantized<WeightClass::kQ5_K>(call); }
void gemm_q6_k(const GemmCall& call) { gemm_quantized<WeightClass::kQ6_K>(call); }

}  // namespace millrace::avx2
