#define MR_VARIANT avx2
#include "millrace/kernels/cpu/elementwise_simd.inc"
