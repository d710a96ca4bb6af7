#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/grid_tables.h"

// GGUF's types with a code book.
namespace millrace::avx2vnni {
namespace {

#include "millrace/kernels/cpu/gemm_vec256.inc"
#include "millrace/kernels/cpu/gemm_dots_avx2vnni.inc"
#include "millrace/kernels/cpu/gemm_simd.inc"

}  // namespace

void gemm_iq1_s(const GemmCall& call) { gemm_quantized<WeightClass::kIQ1_S>(call); }
void gemm_iq1_m(const GemmCall& call) { gemm_quantized<WeightClass::kIQ1_M>(call); }
void gemm_iq2_xxs(const GemmCall& call) { gemm_quantized<WeightClass::kIQ2_XXS>(call); }
void gemm_iq2_xs(const GemmCall& call) { gemm_quantized<WeightClass::kIQ2_XS>(call); }
void gemm_iq2_s(const GemmCall& call) { gemm_quantized<WeightClass::kIQ2_S>(call); }
void gemm_iq3_xxs(const GemmCall& call) { gemm_quantized<WeightClass::kIQ3_XXS>(call); }
void gemm_iq3_s(const GemmCall& call) { gemm_quantized<WeightClass::kIQ3_S>(call); }

}  // namespace millrace::avx2vnni
