#pragma once

#include <cstdint>

// Scalar conversions between f32 and the 16-bit formats. Everything is static and always inlined, without standard library
// templates, so that a file compiled for one ISA never supplies a copy that the linker keeps for the whole program.
namespace millrace {

#define MR_HALF_INLINE [[gnu::always_inline]] static inline

MR_HALF_INLINE float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  uint32_t bits = 0;
  if (exponent == 0x1f) {
    bits = 0x7f800000u | (mantissa << 13);  // infinity, or a NaN with its payload
  } else if (exponent == 0) {
    bits = __builtin_bit_cast(uint32_t, static_cast<float>(mantissa) * 0x1p-24f);  // zero or subnormal: exact in f32
  } else {
    bits = ((exponent + 112) << 23) | (mantissa << 13);
  }
  return __builtin_bit_cast(float, sign | bits);
}

// Nearest even; beyond 65504 by half a step or more is infinity; NaN stays NaN (quiet).
MR_HALF_INLINE uint16_t f32_to_f16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Subnormal in f16, whose unit is 2^-24: shift the f32 mantissa to that unit and round by the bits that fell off.
    const uint32_t exponent = magnitude >> 23;
    if (exponent < 102) return sign;
    const uint32_t shift = 126 - exponent;
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t kept = mantissa >> shift;
    const uint32_t rest = mantissa & ((1u << shift) - 1);
    const uint32_t middle = 1u << (shift - 1);
    return static_cast<uint16_t>(sign | (kept + (rest > middle || (rest == middle && (kept & 1)) ? 1 : 0)));
  }
  // 0xfff plus the lowest kept bit carries only above half, or at half when the kept part is odd.
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

MR_HALF_INLINE float bf16_to_f32(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

// Nearest even; NaN stays NaN (quiet).
MR_HALF_INLINE uint16_t f32_to_bf16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

#undef MR_HALF_INLINE

}  // namespace millrace
