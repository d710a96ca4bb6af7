#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "millrace/tensor/grouped_weights.h"

// Quantization by rounding to the nearest code, without a look at activations: weights of a row to what GroupedWeights calls codes, scales
// and zero points. The formulas are those of the libraries that publish such checkpoints, so that quantizing here and there gives the same
// numbers:
//
//   kInt8, kInt4, symmetric   scale = max |w| / (2^bits - 1) * 2     code = round(w / scale) + 2^(bits - 1), within the codes
//   kInt8, kInt4 otherwise    scale = (max - min) / (2^bits - 1)     zero point = round(-min / scale), code = round(w / scale + zero
//   point),
//                             min <= 0 <= max                      both within the codes: compressed-tensors' min-max observer
//   kF8E4M3                   scale = max |w| / 448                  code = the nearest number of w / scale: the same
//   kCodebook4                scale = max |w|                        code = the nearest of kNormalFloat4: bitsandbytes, QLoRA,
//   arXiv:2305.14314
//
// Ties go to the even code, in kCodebook4 to the lower one. A scale is rounded to `scale_dtype` before codes are made with it, so that only
// the codes round the weights. A group of zeros, or of numbers so small that their scale is none, has scale 0 and codes that mean 0.
namespace millrace {

// NF4: the 16 numbers that a normal distribution, scaled to -1 to 1, has as quantiles.
inline constexpr std::array<float, 16> kNormalFloat4 = {-1.0f,
                                                        -0.6961928009986877f,
                                                        -0.5250730514526367f,
                                                        -0.39491748809814453f,
                                                        -0.28444138169288635f,
                                                        -0.18477343022823334f,
                                                        -0.09105003625154495f,
                                                        0.0f,
                                                        0.07958029955625534f,
                                                        0.16093020141124725f,
                                                        0.24611230194568634f,
                                                        0.33791524171829224f,
                                                        0.44070982933044434f,
                                                        0.5626170039176941f,
                                                        0.7229568362236023f,
                                                        1.0f};

struct RoundToNearest {
  CodeKind kind = CodeKind::kInt8;  // kInt8, kInt4, kCodebook4 or kF8E4M3
  bool symmetric = true;            // of integers: no zero points other than the middle
  int64_t group_size = 0;           // a multiple of 32; the last group of a row may be shorter
  DType scale_dtype = DType::kF32;  // kF32, kF16 or kBf16
};

// `weights`: [k], k a multiple of 32. Writes codes [k], and of each group its scale and, of integers, its zero point. Gives the first
// weight that is infinite or not a number, whose group and those after it are not written; absent: all are finite.
std::optional<int64_t> round_to_nearest(const RoundToNearest& how, const float* weights, int64_t k, uint8_t* codes, float* scales,
                                        uint8_t* zero_points);

// The nearest 8-bit float (E4M3, OCP 8-bit floating point) of a number from -448 to 448; ties to the even one.
uint8_t f32_to_f8e4m3(float value);

}  // namespace millrace
