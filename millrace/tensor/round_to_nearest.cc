#include "millrace/tensor/round_to_nearest.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "millrace/tensor/half.h"

namespace millrace {
namespace {

// Loops over a block have a constant count and no pointers that may alias, so that the compiler turns them into vectors at -O2.
constexpr int kBlock = 32;
using Block = float[kBlock];

// The integer nearest to v, |v| < 2^22, ties to even: in the sum of v and 1.5 * 2^23 one unit of the last place is 1.
constexpr float kRound = 12582912.0f;
int32_t round_to_integer(float v) { return std::bit_cast<int32_t>(v + kRound) - std::bit_cast<int32_t>(kRound); }

float rounded_to(DType dtype, float scale) {
  switch (dtype) {
    case DType::kF16: return f16_to_f32(f32_to_f16(scale));
    case DType::kBf16: return bf16_to_f32(f32_to_bf16(scale));
    default: return scale;
  }
}

struct Range {
  float magnitude = 0, low = 0, high = 0;
  bool finite = true;
};

Range range_of(const float* weights, int64_t count) {
  Range range;
  int32_t top = 0;  // without their signs floats are ordered as their bits are, infinity and what is no number above all
  for (int64_t at = 0; at < count; at += kBlock) {
    Block w;
    std::memcpy(w, weights + at, sizeof w);
    for (int i = 0; i < kBlock; ++i) {
      const int32_t bits = std::bit_cast<int32_t>(w[i]) & 0x7fffffff;
      top = bits > top ? bits : top;
    }
    for (int i = 0; i < kBlock; ++i) {
      range.low = w[i] < range.low ? w[i] : range.low;
      range.high = w[i] > range.high ? w[i] : range.high;
    }
  }
  range.magnitude = std::bit_cast<float>(top);
  range.finite = top < 0x7f800000;
  return range;
}

// code = round(w / scale + offset), from low to high; stored as code + bias.
struct Integers {
  float scale, offset, low, high;
  int32_t bias;

  void operator()(const Block& w, uint8_t (&codes)[kBlock]) const {
    int32_t rounded[kBlock];
    for (int i = 0; i < kBlock; ++i) {
      float v = w[i] / scale + offset;
      v = v < low ? low : v;
      v = v > high ? high : v;
      rounded[i] = round_to_integer(v) + bias;
    }
    for (int i = 0; i < kBlock; ++i) codes[i] = static_cast<uint8_t>(rounded[i]);
  }
};

struct NormalFloats {
  float scale;

  // The number of middles between neighbours that lie below.
  void operator()(const Block& w, uint8_t (&codes)[kBlock]) const {
    int32_t below[kBlock] = {};
    float v[kBlock];
    for (int i = 0; i < kBlock; ++i) v[i] = w[i] / scale;
    for (std::size_t m = 0; m + 1 < kNormalFloat4.size(); ++m) {
      const float middle = (kNormalFloat4[m] + kNormalFloat4[m + 1]) / 2;
      for (int i = 0; i < kBlock; ++i) below[i] += v[i] > middle ? 1 : 0;
    }
    for (int i = 0; i < kBlock; ++i) codes[i] = static_cast<uint8_t>(below[i]);
  }
};

constexpr float kF8Max = 448.0f;

struct Floats {
  float scale;

  void operator()(const Block& w, uint8_t (&codes)[kBlock]) const {
    for (int i = 0; i < kBlock; ++i) codes[i] = f32_to_f8e4m3(std::clamp(w[i] / scale, -kF8Max, kF8Max));
  }
};

template <class Coder>
void code_group(const Coder& coder, const float* weights, int64_t count, uint8_t* codes) {
  for (int64_t at = 0; at < count; at += kBlock) {
    Block w;
    uint8_t block_codes[kBlock];
    std::memcpy(w, weights + at, sizeof w);
    coder(w, block_codes);
    std::memcpy(codes + at, block_codes, sizeof block_codes);
  }
}

}  // namespace

uint8_t f32_to_f8e4m3(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  constexpr uint32_t kSmallestNormal = 0x3c800000;  // 2^-6
  if (magnitude < kSmallestNormal) {
    // Multiples of 2^-9, which is the last place of a sum with 1.5 * 2^14. 8 of them are the smallest normal number, whose code is 8 too.
    constexpr float kUnits = 24576.0f;
    return static_cast<uint8_t>(sign |
                                (std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + kUnits) - std::bit_cast<uint32_t>(kUnits)));
  }
  // Half of the last of 3 bits, less one where that is even: carries above half, or at half when the kept part is odd. Then the exponent's
  // bias: 127 to 7.
  return static_cast<uint8_t>(sign | (((magnitude + 0x7ffffu + ((magnitude >> 20) & 1)) >> 20) - (120u << 3)));
}

std::optional<int64_t> round_to_nearest(const RoundToNearest& how, const float* weights, int64_t k, uint8_t* codes, float* scales,
                                        uint8_t* zero_points) {
  const int bits = code_bits(how.kind);
  const float steps = static_cast<float>((1 << bits) - 1);
  const int32_t middle = 1 << (bits - 1);
  for (int64_t begin = 0, group = 0; begin < k; begin += how.group_size, ++group) {
    const float* from = weights + begin;
    const int64_t count = std::min(how.group_size, k - begin);
    const Range range = range_of(from, count);
    if (!range.finite) return begin + (std::find_if(from, from + count, [](float w) { return !std::isfinite(w); }) - from);

    float scale = 0;
    switch (how.kind) {
      case CodeKind::kCodebook4: scale = range.magnitude; break;
      case CodeKind::kF8E4M3: scale = range.magnitude / kF8Max; break;
      default:
        scale = how.symmetric ? range.magnitude / (steps / 2) : (range.high - range.low) / steps;
        if (!std::isfinite(scale)) scale = range.high / steps - range.low / steps;
    }
    scale = rounded_to(how.scale_dtype, scale);
    // Below the smallest normal number quotients are of no use, and where denormal numbers are taken as 0 they are none.
    const bool none = !(scale >= FLT_MIN);
    if (none) scale = 0;
    scales[group] = scale;

    uint8_t* to = codes + begin;
    if (how.kind == CodeKind::kCodebook4) {
      constexpr uint8_t kZero = 7;
      static_assert(kNormalFloat4[kZero] == 0);
      if (none)
        std::fill_n(to, count, kZero);
      else
        code_group(NormalFloats{scale}, from, count, to);
      continue;
    }
    if (how.kind == CodeKind::kF8E4M3) {
      if (none)
        std::fill_n(to, count, uint8_t{0});
      else
        code_group(Floats{scale}, from, count, to);
      continue;
    }
    const auto low = static_cast<float>(-middle), high = static_cast<float>(middle - 1);
    const float zero = how.symmetric || none ? 0.0f : static_cast<float>(round_to_integer(std::clamp(low - range.low / scale, low, high)));
    zero_points[group] = static_cast<uint8_t>(static_cast<int32_t>(zero) + middle);
    if (none)
      std::fill_n(to, count, zero_points[group]);
    else
      code_group(Integers{scale, zero, low, high, middle}, from, count, to);
  }
  return std::nullopt;
}

}  // namespace millrace
