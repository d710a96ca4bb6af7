#define MR_VARIANT avx512
#include "millrace/kernels/cpu/elementwise_simd.inc"
