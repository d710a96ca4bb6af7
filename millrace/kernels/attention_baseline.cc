#define MR_VARIANT baseline
#include "millrace/kernels/cpu/attention_simd.inc"
