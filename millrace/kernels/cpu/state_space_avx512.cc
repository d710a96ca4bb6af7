#define MR_VARIANT avx512
#include "millrace/kernels/cpu/state_space_simd.inc"
