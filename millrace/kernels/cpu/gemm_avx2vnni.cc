#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"

// The quantized classes with 256-bit vpdpbusd; plain ones are those of AVX2.
namespace millrace::avx2vnni {
namespace {

#include "millrace/kernels/cpu/gemm_vec256.inc"

constexpr bool kSigned8 = false;
constexpr bool kDotsAreChained = true;
constexpr int kFewTokens = 8;
constexpr int kTogether = 2;
template <int kBits>
constexpr int kTileTokens = 4;

template <int kBits, int kFirst, int kQuads, int kN, int kU, int kT>
[[gnu::always_inline]] inline void add_dots(const I (&codes)[kN][kU], const int8_t* x, int64_t token_stride, I (&totals)[kT][kU]) {
#pragma GCC unroll 8
  for (int q = kFirst; q < kFirst + kQuads; ++q) {
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
      const I activations = broadcast_quad(x + t * token_stride + 4 * q);
#pragma GCC unroll 2
      for (int u = 0; u < kU; ++u) totals[t][u] = _mm256_dpbusd_avx_epi32(totals[t][u], codes[q][u], activations);
    }
  }
}

#include "millrace/kernels/cpu/gemm_simd.inc"

}  // namespace

void gemm_q4_0(const GemmCall& call) { gemm_quantized<WeightClass::kQ4_0>(call); }
void gemm_q4_1(const GemmCall& call) { gemm_quantized<WeightClass::kQ4_1>(call); }
void gemm_q5_0(const GemmCall& call) { gemm_quantized<WeightClass::kQ5_0>(call); }
void gemm_q5_1(const GemmCall& call) { gemm_quantized<WeightClass::kQ5_1>(call); }
void gemm_q8_0(const GemmCall& call) { gemm_quantized<WeightClass::kQ8_0>(call); }
void gemm_q4_k(const GemmCall& call) { gemm_quantized<WeightClass::kQ4_K>(call); }
void gemm_q5_k(const GemmCall& call) { gemm_quantized<WeightClass::kQ5_K>(call); }
void gemm_q6_k(const GemmCall& call) { gemm_quantized<WeightClass::kQ6_K>(call); }

}  // namespace millrace::avx2vnni
