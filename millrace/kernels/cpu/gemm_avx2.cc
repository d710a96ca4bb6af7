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
constexpr int kTogether = 1;

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

template <int kBits, int kQuads, class Weights, int kT>
inline void add_dots(const Weights (&w)[1], int first, const int8_t* codes, int64_t token_stride, I (&totals)[kT][1]) {
  constexpr int kRun = kBits == 4 ? 8 : kBits == 5 ? 4 : 2;
  static_assert(kQuads % kRun == 0);
#pragma GCC unroll 8
  for (int t = 0; t < kT; ++t, codes += token_stride) {
#pragma GCC unroll 8
    for (int run = first; run < first + kQuads; run += kRun) {
      I sum = _mm256_maddubs_epi16(w[0].codes[run], broadcast_quad(codes + 4 * run));
#pragma GCC unroll 8
      for (int q = run + 1; q < run + kRun; ++q) {
        pin(sum);
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[0].codes[q], broadcast_quad(codes + 4 * q)));
      }
      totals[t][0] = _mm256_add_epi32(totals[t][0], _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
    }
  }
}

// The 8-bit plane: bytes 0 and 2, and 1 and 3, of a quad as 16-bit words, for vpmaddwd, which neither saturates nor minds signs.
// Half a block (4 quads) at a time: 8 vectors.
template <WeightClass>
inline void load_words(const std::byte* block, int half, int unit, I (&words)[8]) {
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const I bytes = load_i(block + (4 * half + q) * 64 + unit * 32);
    words[2 * q] = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
    words[2 * q + 1] = _mm256_srai_epi16(bytes, 8);
  }
}
// `codes` as make_tile() wrote them: 32 bytes of even ones, then 32 of odd ones.
template <WeightClass>
inline I dot_words(const I (&words)[8], const int8_t* codes, I total) {
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    total = _mm256_add_epi32(total, _mm256_madd_epi16(words[2 * q], broadcast_quad(codes + 4 * q)));
    total = _mm256_add_epi32(total, _mm256_madd_epi16(words[2 * q + 1], broadcast_quad(codes + 32 + 4 * q)));
  }
  return total;
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
