#define MR_VARIANT avx2
#include "millrace/kernels/cpu/state_space_simd.inc"
