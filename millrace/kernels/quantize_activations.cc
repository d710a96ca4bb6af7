#include "millrace/kernels/quantize_activations.h"

#include <cstring>

#include "millrace/kernels/gemm.h"

namespace millrace {

// 256 bits are enough here: it is a small part of a step.
void quantize_row_int8(Isa isa, const float* x, int64_t k, int8_t* codes, float* scales, int16_t* sums16) {
  const auto quantize_blocks = isa == Isa::kScalar ? ref::quantize_blocks_int8 : avx2::quantize_blocks_int8;
  const int64_t whole = k / 32, rest = k % 32;
  quantize_blocks(x, whole, codes, scales, sums16);
  if (rest > 0) {
    float last[32] = {};
    std::memcpy(last, x + whole * 32, static_cast<std::size_t>(rest) * sizeof(float));
    quantize_blocks(last, 1, codes + whole * 32, scales + whole, sums16 + whole * 2);
  }
}

void convert_row_bf16(Isa isa, const float* x, int64_t k, uint16_t* out) {
  const auto convert_blocks = isa == Isa::kScalar       ? ref::convert_blocks_bf16
                              : isa >= Isa::kAvx512Vnni ? avx512::convert_blocks_bf16
                                                        : avx2::convert_blocks_bf16;
  const int64_t whole = k / 32, rest = k % 32;
  convert_blocks(x, whole, out);
  if (rest > 0) {
    float last[32] = {};
    std::memcpy(last, x + whole * 32, static_cast<std::size_t>(rest) * sizeof(float));
    convert_blocks(last, 1, out + whole * 32);
  }
}

}  // namespace millrace
