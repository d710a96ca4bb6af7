// g++ 12 reports its own _mm512_undefined_*() as uninitialized.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/grid_tables.h"

// GGUF's blocks of 2 to 4 bits.
namespace millrace::avx512 {
namespace {

#include "millrace/kernels/cpu/gemm_vec512.inc"
#include "millrace/kernels/cpu/gemm_simd.inc"

}  // namespace

void gemm_q2_k(const GemmCall& call) { gemm_quantized<WeightClass::kQ2_K>(call); }
void gemm_q3_k(const GemmCall& call) { gemm_quantized<WeightClass::kQ3_K>(call); }
void gemm_tq2_0(const GemmCall& call) { gemm_quantized<WeightClass::kTQ2_0>(call); }
void gemm_iq4_nl(const GemmCall& call) { gemm_quantized<WeightClass::kIQ4_NL>(call); }
void gemm_iq4_xs(const GemmCall& call) { gemm_quantized<WeightClass::kIQ4_XS>(call); }
void gemm_mxfp4(const GemmCall& call) { gemm_quantized<WeightClass::kMXFP4>(call); }
void gemm_nvfp4(const GemmCall& call) { gemm_quantized<WeightClass::kNVFP4>(call); }

}  // namespace millrace::avx512
