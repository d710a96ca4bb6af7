#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/grid_tables.h"

// The quantized classes with 256-bit vpdpbusd; plain ones are those of AVX2.
namespace millrace::avx2vnni {
namespace {

#include "millrace/kernels/cpu/gemm_vec256.inc"
#include "millrace/kernels/cpu/gemm_dots_avx2vnni.inc"
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
