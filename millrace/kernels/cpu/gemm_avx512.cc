// g++ 12 reports its own _mm512_undefined_*() as uninitialized.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"

namespace millrace::avx512 {
namespace {

using F = __m512;
using I = __m512i;
constexpr int kLanes = 16;       // one whole panel
constexpr bool kSigned8 = false;
constexpr bool kDotsAreChained = true;
constexpr int kFewTokens = 8;
constexpr int kTogether = 8;
template <int kBits>
constexpr int kTileTokens = 6;
constexpr int kPlainUnits = 2;
constexpr int kPlainTokens = 8;

inline F load_f(const float* p) { return _mm512_loadu_ps(p); }
inline void store_f(float* p, F v) { _mm512_storeu_ps(p, v); }
inline F set1_f(const float* p) { return _mm512_set1_ps(*p); }
inline F zero_f() { return _mm512_setzero_ps(); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F negate(F a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
inline I load_i(const void* p) { return _mm512_loadu_si512(p); }
inline I set1_i(const int32_t* p) { return _mm512_set1_epi32(*p); }
inline I set1_byte(int byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }
inline I zero_i() { return _mm512_setzero_si512(); }
inline I add_i(I a, I b) { return _mm512_add_epi32(a, b); }
inline F to_float(I v) { return _mm512_cvtepi32_ps(v); }
inline I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
inline I bit_or(I a, I b) { return _mm512_or_si512(a, b); }
inline I bit_xor(I a, I b) { return _mm512_xor_si512(a, b); }
inline I broadcast_quad(const int8_t* codes) {
  int32_t quad;
  __builtin_memcpy(&quad, codes, 4);
  return _mm512_set1_epi32(quad);
}
template <int n>
inline I shift_left(I v) { return _mm512_slli_epi16(v, n); }
template <int n>
inline I shift_right(I v) { return _mm512_srli_epi16(v, n); }
inline F half_scales(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline F u8_scales(const void* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))); }
inline F s8_scales(const void* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))); }
inline void bf16_pairs(I pairs, F (&w)[2]) {
  w[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  w[1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}
inline void f16_pairs(I pairs, F (&w)[2]) {
  w[0] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs));
  w[1] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16)));
}

template <int kBits, int kFirst, int kQuads, int kN, int kU, int kT>
[[gnu::always_inline]] inline void add_dots(const I (&codes)[kN][kU], const int8_t* x, int64_t token_stride, I (&totals)[kT][kU]) {
#pragma GCC unroll 8
  for (int q = kFirst; q < kFirst + kQuads; ++q) {
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
      const I activations = broadcast_quad(x + t * token_stride + 4 * q);
#pragma GCC unroll 2
      for (int u = 0; u < kU; ++u) totals[t][u] = _mm512_dpbusd_epi32(totals[t][u], codes[q][u], activations);
    }
  }
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

}  // namespace millrace::avx512
