#define MR_VARIANT avx2
#include "millrace/kernels/cpu/attention_simd.inc"
