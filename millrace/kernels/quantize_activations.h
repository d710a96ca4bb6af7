#pragma once

#include <cstdint>

// The variants of quantize_row_int8() and convert_row_bf16() (gemm.h): whole blocks of 32 only; the dispatcher pads the last.
namespace millrace {

namespace ref {
void quantize_blocks_int8(const float* x, int64_t num_blocks, int8_t* codes, float* scales, int16_t* sums16);
void convert_blocks_bf16(const float* x, int64_t num_blocks, uint16_t* out);
}  // namespace ref
namespace avx2 {
void quantize_blocks_int8(const float* x, int64_t num_blocks, int8_t* codes, float* scales, int16_t* sums16);
void convert_blocks_bf16(const float* x, int64_t num_blocks, uint16_t* out);
}  // namespace avx2
namespace avx512 {
void convert_blocks_bf16(const float* x, int64_t num_blocks, uint16_t* out);
}  // namespace avx512

// Below this largest magnitude a block counts as zero: its quotients would leave the range of f32.
inline constexpr float kSmallestBlockMax = 0x1p-120f;

}  // namespace millrace
