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

#include "millrace/kernels/cpu/gemm_block_classes.inc"

}  // namespace millrace::avx512
