#include "millrace/tensor/dequantize.h"

#include <bit>
#include <cstring>

#include "millrace/base/check.h"
#include "millrace/tensor/grid_blocks.h"
#include "millrace/tensor/half.h"

namespace millrace {
namespace {

// Reads of unaligned little-endian fields. `b` is always the start of a block.
using Bytes = const uint8_t*;

template <class T>
T load(Bytes bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}
float load_f16(Bytes bytes) { return f16_to_f32(load<uint16_t>(bytes)); }

// ---- Blocks of 32: one f16 scale (and minimum), nibbles or bytes. Nibble i of the low half is element i, of the high half i + 16.

void block_q4_0(Bytes b, float* y) {  // f16 d; u8 qs[16].  y = d (q - 8)
  const float d = load_f16(b);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>((b[2 + i] & 15) - 8);
    y[i + 16] = d * static_cast<float>((b[2 + i] >> 4) - 8);
  }
}

void block_q4_1(Bytes b, float* y) {  // f16 d; f16 m; u8 qs[16].  y = d q + m
  const float d = load_f16(b), m = load_f16(b + 2);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(b[4 + i] & 15) + m;
    y[i + 16] = d * static_cast<float>(b[4 + i] >> 4) + m;
  }
}

void block_q5_0(Bytes b, float* y) {  // f16 d; u32 fifth_bits; u8 qs[16].  y = d (q - 16)
  const float d = load_f16(b);
  const uint32_t fifth = load<uint32_t>(b + 2);
  for (int i = 0; i < 16; ++i) {
    const int low = (b[6 + i] & 15) | static_cast<int>(((fifth >> i) & 1) << 4);
    const int high = (b[6 + i] >> 4) | static_cast<int>(((fifth >> (i + 16)) & 1) << 4);
    y[i] = d * static_cast<float>(low - 16);
    y[i + 16] = d * static_cast<float>(high - 16);
  }
}

void block_q5_1(Bytes b, float* y) {  // f16 d; f16 m; u32 fifth_bits; u8 qs[16].  y = d q + m
  const float d = load_f16(b), m = load_f16(b + 2);
  const uint32_t fifth = load<uint32_t>(b + 4);
  for (int i = 0; i < 16; ++i) {
    const uint32_t low = (b[8 + i] & 15u) | (((fifth >> i) & 1) << 4);
    const uint32_t high = (b[8 + i] >> 4) | (((fifth >> (i + 16)) & 1) << 4);
    y[i] = d * static_cast<float>(low) + m;
    y[i + 16] = d * static_cast<float>(high) + m;
  }
}

void block_q8_0(Bytes b, float* y) {  // f16 d; i8 qs[32].  y = d q
  const float d = load_f16(b);
  for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(static_cast<int8_t>(b[2 + i]));
}

constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

void block_iq4_nl(Bytes b, float* y) {  // f16 d; u8 qs[16].  y = d kIq4Values[q]
  const float d = load_f16(b);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(kIq4Values[b[2 + i] & 15]);
    y[i + 16] = d * static_cast<float>(kIq4Values[b[2 + i] >> 4]);
  }
}

// Twice the FP4 (E2M1) numbers, so that they are whole; the scales below carry the factor one half.
constexpr int8_t kFp4TwiceValues[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void block_mxfp4(Bytes b, float* y) {  // u8 exponent (E8M0); u8 qs[16].  y = 2^(exponent - 127) fp4(q)
  const uint32_t exponent = b[0];
  const float half_d = std::bit_cast<float>(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
  for (int i = 0; i < 16; ++i) {
    y[i] = half_d * static_cast<float>(kFp4TwiceValues[b[1 + i] & 15]);
    y[i + 16] = half_d * static_cast<float>(kFp4TwiceValues[b[1 + i] >> 4]);
  }
}

// ---- Block of 64: four groups of 16 with an unsigned E4M3 scale each.

float half_of_unsigned_e4m3(uint8_t bits) {
  if (bits == 0x7f || bits == 0xff) return 0.0f;  // as the reference reads the NaN code
  const int exponent = (bits >> 3) & 15;
  const float mantissa = static_cast<float>(bits & 7);
  if (exponent == 0) return mantissa * 0x1p-10f;
  return std::bit_cast<float>(static_cast<uint32_t>(exponent + 119) << 23) * (1.0f + mantissa * 0.125f);
}

void block_nvfp4(Bytes b, float* y) {  // u8 d[4] (E4M3); u8 qs[4][8].  y = d fp4(q)
  for (int group = 0; group < 4; ++group, y += 16) {
    const float half_d = half_of_unsigned_e4m3(b[group]);
    for (int i = 0; i < 8; ++i) {
      const uint8_t pair = b[4 + 8 * group + i];
      y[i] = half_d * static_cast<float>(kFp4TwiceValues[pair & 15]);
      y[i + 8] = half_d * static_cast<float>(kFp4TwiceValues[pair >> 4]);
    }
  }
}

// ---- Blocks of 256 ("K"): groups of 16 or 32 whose small scales are multiples of the block's f16 scale.

void block_q2_k(Bytes b, float* y) {  // u8 scales[16] (scale | min << 4); u8 qs[64]; f16 d; f16 dmin
  const float d = load_f16(b + 80), dmin = load_f16(b + 82);
  for (int i = 0; i < 256; ++i) {
    const int scale = b[i / 16];
    const int q = (b[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
    y[i] = d * static_cast<float>(scale & 15) * static_cast<float>(q) - dmin * static_cast<float>(scale >> 4);
  }
}

void block_q3_k(Bytes b, float* y) {  // u8 high_bits[32]; u8 qs[64]; u8 scales[12] (16 x 6 bits); f16 d
  const float d = load_f16(b + 108);
  const Bytes scales = b + 96;
  for (int i = 0; i < 256; ++i) {
    const int group = i / 16;
    const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
    const int high = (scales[8 + group % 4] >> (group / 4 * 2)) & 3;
    const int q = (b[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
    const int third = (b[i % 32] >> (i / 32)) & 1;  // stored inverted: set means "do not subtract 4"
    y[i] = d * static_cast<float>((low | high << 4) - 32) * static_cast<float>(q - (third ? 0 : 4));
  }
}

struct ScaleMin {
  int scale, min;
};

// The 6-bit scale and minimum of group 0..7, packed in 12 bytes: four of each in bytes 0-3 and 4-7, whose top bits and bytes 8-11
// hold the other four.
ScaleMin k_scale_min(Bytes scales, int group) {
  if (group < 4) return {scales[group] & 63, scales[group + 4] & 63};
  return {(scales[group + 4] & 15) | (scales[group - 4] >> 6 << 4), (scales[group + 4] >> 4) | (scales[group] >> 6 << 4)};
}

void block_q4_k(Bytes b, float* y) {  // f16 d; f16 dmin; u8 scales[12]; u8 qs[128]
  const float d = load_f16(b), dmin = load_f16(b + 2);
  for (int group = 0; group < 8; ++group) {
    const auto [scale, min] = k_scale_min(b + 4, group);
    const float group_d = d * static_cast<float>(scale), group_min = dmin * static_cast<float>(min);
    const Bytes qs = b + 16 + group / 2 * 32;
    for (int i = 0; i < 32; ++i) *y++ = group_d * static_cast<float>((qs[i] >> (group % 2 * 4)) & 15) - group_min;
  }
}

void block_q5_k(Bytes b, float* y) {  // f16 d; f16 dmin; u8 scales[12]; u8 fifth_bits[32]; u8 qs[128]
  const float d = load_f16(b), dmin = load_f16(b + 2);
  for (int group = 0; group < 8; ++group) {
    const auto [scale, min] = k_scale_min(b + 4, group);
    const float group_d = d * static_cast<float>(scale), group_min = dmin * static_cast<float>(min);
    const Bytes qs = b + 48 + group / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      const int q = ((qs[i] >> (group % 2 * 4)) & 15) | (((b[16 + i] >> group) & 1) << 4);
      *y++ = group_d * static_cast<float>(q) - group_min;
    }
  }
}

void block_q6_k(Bytes b, float* y) {  // u8 low[128]; u8 high[64]; i8 scales[16]; f16 d
  const float d = load_f16(b + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, quarter = i % 128 / 32, l = i % 32;
    const int low = (b[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4)) & 15;
    const int high = (b[128 + half * 32 + l] >> (quarter * 2)) & 3;
    y[i] = d * static_cast<float>(static_cast<int8_t>(b[192 + i / 16])) * static_cast<float>((low | high << 4) - 32);
  }
}

void block_q8_k(Bytes b, float* y) {  // f32 d; i8 qs[256]; i16 group_sums[16] (not needed here)
  const float d = load<float>(b);
  for (int i = 0; i < 256; ++i) y[i] = d * static_cast<float>(static_cast<int8_t>(b[4 + i]));
}

void block_iq4_xs(Bytes b, float* y) {  // f16 d; u16 scales_high; u8 scales_low[4]; u8 qs[8][16]
  const float d = load_f16(b);
  const int scales_high = load<uint16_t>(b + 2);
  for (int group = 0; group < 8; ++group, y += 32) {
    const int scale = ((b[4 + group / 2] >> (group % 2 * 4)) & 15) | (((scales_high >> (group * 2)) & 3) << 4);
    const float group_d = d * static_cast<float>(scale - 32);
    for (int i = 0; i < 16; ++i) {
      const uint8_t pair = b[8 + group * 16 + i];
      y[i] = group_d * static_cast<float>(kIq4Values[pair & 15]);
      y[i + 16] = group_d * static_cast<float>(kIq4Values[pair >> 4]);
    }
  }
}

// Ternary digits in base 3, five a byte: the byte is the fraction times 256, so multiplying by 3^k (mod 256) brings digit k to the top.
float ternary_digit(uint8_t byte, int power_of_3) { return static_cast<float>(((static_cast<uint8_t>(byte * power_of_3) * 3) >> 8) - 1); }

void block_tq1_0(Bytes b, float* y) {  // u8 qs[48] (5 digits a byte); u8 rest[4] (4 digits a byte); f16 d
  constexpr int kPowers[5] = {1, 3, 9, 27, 81};
  const float d = load_f16(b + 52);
  for (int power : kPowers) {
    for (int i = 0; i < 32; ++i) *y++ = d * ternary_digit(b[i], power);
  }
  for (int power : kPowers) {
    for (int i = 32; i < 48; ++i) *y++ = d * ternary_digit(b[i], power);
  }
  for (int k = 0; k < 4; ++k) {
    for (int i = 48; i < 52; ++i) *y++ = d * ternary_digit(b[i], kPowers[k]);
  }
}

void block_tq2_0(Bytes b, float* y) {  // u8 qs[64] (4 digits a byte); f16 d.  y = d (q - 1)
  const float d = load_f16(b + 64);
  for (int i = 0; i < 256; ++i) y[i] = d * static_cast<float>(((b[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3) - 1);
}

// ---- Blocks of 256 with a code book: see grid_blocks.h.

template <DType kDType>
void block_grid(Bytes b, float* y) {
  const float d = f16_to_f32(read_grid_scale(kDType, b));
  for (int g = 0; g < 8; ++g) {
    const GridGroup group = read_grid_group(kDType, b, g);
    int8_t codes[32];
    grid_codes(kDType, group, codes);
    for (int i = 0; i < 32; ++i)
      *y++ = d * static_cast<float>(2 * group.scale[i / 16] + 1) * grid_unit(kDType) * static_cast<float>(codes[i]);
  }
}

// ---- Plain types: a block is one number.

float f8_e4m3(uint8_t bits) {  // no infinity; 0x7f and 0xff are NaN
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24;
  const uint32_t exponent = (bits >> 3) & 15, mantissa = bits & 7;
  uint32_t magnitude = ((exponent + 120) << 23) | (mantissa << 20);
  if (exponent == 0) magnitude = std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-9f);
  if (exponent == 15 && mantissa == 7) magnitude = 0x7fc00000u;
  return std::bit_cast<float>(sign | magnitude);
}

template <class T>
void number(Bytes b, float* y) {
  *y = static_cast<float>(load<T>(b));
}
void number_f16(Bytes b, float* y) { *y = load_f16(b); }
void number_bf16(Bytes b, float* y) { *y = bf16_to_f32(load<uint16_t>(b)); }
void number_bool(Bytes b, float* y) { *y = b[0] != 0 ? 1.0f : 0.0f; }
void number_f8_e4m3(Bytes b, float* y) { *y = f8_e4m3(b[0]); }
void number_f8_e5m2(Bytes b, float* y) { *y = f16_to_f32(static_cast<uint16_t>(b[0] << 8)); }  // the top half of an f16

using BlockFunction = void (*)(Bytes, float*);

BlockFunction block_function(DType dtype) {
  switch (dtype) {
    case DType::kF32: return number<float>;
    case DType::kF16: return number_f16;
    case DType::kBf16: return number_bf16;
    case DType::kF64: return number<double>;
    case DType::kI8: return number<int8_t>;
    case DType::kI16: return number<int16_t>;
    case DType::kI32: return number<int32_t>;
    case DType::kI64: return number<int64_t>;
    case DType::kU8: return number<uint8_t>;
    case DType::kBool: return number_bool;
    case DType::kF8E4M3: return number_f8_e4m3;
    case DType::kF8E5M2: return number_f8_e5m2;
    case DType::kQ4_0: return block_q4_0;
    case DType::kQ4_1: return block_q4_1;
    case DType::kQ5_0: return block_q5_0;
    case DType::kQ5_1: return block_q5_1;
    case DType::kQ8_0: return block_q8_0;
    case DType::kQ2_K: return block_q2_k;
    case DType::kQ3_K: return block_q3_k;
    case DType::kQ4_K: return block_q4_k;
    case DType::kQ5_K: return block_q5_k;
    case DType::kQ6_K: return block_q6_k;
    case DType::kQ8_K: return block_q8_k;
    case DType::kIQ4_NL: return block_iq4_nl;
    case DType::kIQ4_XS: return block_iq4_xs;
    case DType::kTQ1_0: return block_tq1_0;
    case DType::kTQ2_0: return block_tq2_0;
    case DType::kMXFP4: return block_mxfp4;
    case DType::kNVFP4: return block_nvfp4;
    case DType::kIQ2_XXS: return block_grid<DType::kIQ2_XXS>;
    case DType::kIQ2_XS: return block_grid<DType::kIQ2_XS>;
    case DType::kIQ3_XXS: return block_grid<DType::kIQ3_XXS>;
    case DType::kIQ1_S: return block_grid<DType::kIQ1_S>;
    case DType::kIQ3_S: return block_grid<DType::kIQ3_S>;
    case DType::kIQ2_S: return block_grid<DType::kIQ2_S>;
    case DType::kIQ1_M: return block_grid<DType::kIQ1_M>;
    case DType::kQ8_1: return nullptr;
  }
  return nullptr;
}

}  // namespace

bool can_dequantize(DType dtype) { return block_function(dtype) != nullptr; }

void dequantize_row(DType dtype, const std::byte* row, int64_t elements, float* out) {
  const BlockFunction function = block_function(dtype);
  MR_CHECK(function != nullptr, dtype_name(dtype));
  const DTypeInfo& info = dtype_info(dtype);
  MR_CHECK(elements >= 0 && elements % info.block_elements == 0, "a row is whole blocks");
  auto block = reinterpret_cast<Bytes>(row);
  for (int64_t i = 0; i < elements; i += info.block_elements, block += info.block_bytes) function(block, out + i);
}

}  // namespace millrace
