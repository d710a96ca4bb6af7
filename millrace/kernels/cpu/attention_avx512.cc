#define MR_VARIANT avx512
#include "millrace/kernels/cpu/attention_simd.inc"
