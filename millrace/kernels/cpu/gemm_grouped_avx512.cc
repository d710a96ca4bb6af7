// g++ 12 reports its own _mm512_undefined_*() as uninitialized.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/grid_tables.h"

// The grouped integer and codebook classes.
namespace millrace::avx512 {
namespace {

#include "millrace/kernels/cpu/gemm_vec512.inc"
#include "millrace/kernels/cpu/gemm_simd.inc"

}  // namespace

void gemm_int2_zero(const GemmCall& call) { gemm_quantized<WeightClass::kInt2Zero>(call); }
void gemm_int3_zero(const GemmCall& call) { gemm_quantized<WeightClass::kInt3Zero>(call); }
void gemm_int4(const GemmCall& call) { gemm_quantized<WeightClass::kInt4>(call); }
void gemm_int4_zero(const GemmCall& call) { gemm_quantized<WeightClass::kInt4Zero>(call); }
void gemm_int8(const GemmCall& call) { gemm_quantized<WeightClass::kInt8>(call); }
void gemm_int8_zero(const GemmCall& call) { gemm_quantized<WeightClass::kInt8Zero>(call); }
void gemm_code4(const GemmCall& call) { gemm_quantized<WeightClass::kCode4>(call); }

}  // namespace millrace::avx512
