// g++ 12 reports its own _mm512_undefined_*() as uninitialized.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/grid_tables.h"

namespace millrace::avx512 {
namespace {

#include "millrace/kernels/cpu/gemm_vec512.inc"
#include "millrace/kernels/cpu/gemm_simd.inc"
#include "millrace/kernels/cpu/gemm_plain_simd.inc"

}  // namespace

void gemm_f32(const GemmCall& call) { gemm_plain<PlainF32>(call); }
void gemm_f16(const GemmCall& call) { gemm_plain<PlainF16>(call); }
void gemm_bf16(const GemmCall& call) { gemm_plain<PlainBf16>(call); }
void gemm_f8(const GemmCall& call) { gemm_e4m3(call); }
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
