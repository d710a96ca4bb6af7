#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/grid_tables.h"

// The grouped integer and codebook classes.
namespace millrace::avx2vnni {
namespace {

#include "millrace/kernels/cpu/gemm_vec256.inc"
#include "millrace/kernels/cpu/gemm_dots_avx2vnni.inc"
#include "millrace/kernels/cpu/gemm_simd.inc"

}  // namespace

#include "millrace/kernels/cpu/gemm_grouped_classes.inc"

}  // namespace millrace::avx2vnni
