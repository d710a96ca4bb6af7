#include <algorithm>
#include <bit>
#include <cmath>

#include "millrace/kernels/quantize_activations.h"
#include "millrace/tensor/half.h"

namespace millrace::ref {

void quantize_blocks_int8(const float* x, int64_t num_blocks, int8_t* codes, float* scales, int16_t* sums16) {
  for (int64_t block = 0; block < num_blocks; ++block, x += 32, codes += 32, sums16 += 2) {
    // Magnitudes compare like their bits, and NaN is above infinity: it reaches the scale instead of being lost in a maximum.
    uint32_t max_bits = 0;
    for (int i = 0; i < 32; ++i) max_bits = std::max(max_bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
    const float max = std::bit_cast<float>(max_bits);
    const bool usable = max >= kSmallestBlockMax && max_bits < 0x7f800000u;
    // A non-finite value leaves codes 0 and a non-finite scale, whose products are NaN: the damage stays visible in the output.
    scales[block] = max < kSmallestBlockMax ? 0.0f : max / 127.0f;
    const float inverse = usable ? 127.0f / max : 0.0f;
    for (int half = 0; half < 2; ++half) {
      int sum = 0;
      for (int i = 16 * half; i < 16 * half + 16; ++i) {
        codes[i] = usable ? static_cast<int8_t>(std::lrint(x[i] * inverse)) : int8_t{0};  // nearest even; at most 127 in magnitude
        sum += codes[i];
      }
      sums16[half] = static_cast<int16_t>(sum);
    }
  }
}

void convert_blocks_bf16(const float* x, int64_t num_blocks, uint16_t* out) {
  for (int64_t i = 0; i < num_blocks * 32; ++i) out[i] = f32_to_bf16(x[i]);
}

}  // namespace millrace::ref
