#include "millrace/kernels/small_block_panels.h"

#include <cmath>
#include <cstring>

#include "millrace/kernels/unaligned.h"
#include "millrace/tensor/grid_blocks.h"
#include "millrace/tensor/grid_tables.h"
#include "millrace/tensor/half.h"

namespace millrace {
namespace {

using unaligned::load, unaligned::store, unaligned::load_f16;

DType dtype_of_grid(WeightClass weight_class) {
  switch (weight_class) {
    case WeightClass::kIQ1_S: return DType::kIQ1_S;
    case WeightClass::kIQ1_M: return DType::kIQ1_M;
    case WeightClass::kIQ2_XXS: return DType::kIQ2_XXS;
    case WeightClass::kIQ2_XS: return DType::kIQ2_XS;
    case WeightClass::kIQ2_S: return DType::kIQ2_S;
    case WeightClass::kIQ3_XXS: return DType::kIQ3_XXS;
    default: return DType::kIQ3_S;
  }
}

// ---- Planes of codes; a quad in a register is four codes, a byte each.

void store_line(std::byte* to, int64_t line, int64_t row, uint32_t word) { store(to + line * 64 + row * 4, word); }
uint32_t load_line(const std::byte* from, int64_t line, int64_t row) { return load<uint32_t>(from + line * 64 + row * 4); }

void store_pair_plane(const uint8_t* codes, std::byte* to, int64_t row) {
  for (int p = 0; p < 2; ++p) {
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) {
      uint32_t quad;
      std::memcpy(&quad, codes + 16 * p + 4 * i, 4);
      word |= (quad & 0x03030303u) << (2 * i);
    }
    store_line(to, p, row, word);
  }
}
void store_third_bits(const uint8_t* codes, std::byte* to, int64_t row) {
  uint32_t word = 0;
  for (int q = 0; q < 8; ++q) {
    uint32_t quad;
    std::memcpy(&quad, codes + 4 * q, 4);
    word |= ((quad >> 2) & 0x01010101u) << q;
  }
  store_line(to, 2, row, word);
}
void store_nibble_plane(const uint8_t* codes, std::byte* to, int64_t row) {
  for (int q = 0; q < 4; ++q) {
    uint32_t low, high;
    std::memcpy(&low, codes + 4 * q, 4);
    std::memcpy(&high, codes + 16 + 4 * q, 4);
    store_line(to, q, row, low | high << 4);
  }
}
void store_split_nibbles(const std::byte* bytes, std::byte* to,
                         int64_t row) {  // low halves are elements 0-15, high halves 16-31: as in the plane
  for (int q = 0; q < 4; ++q) store_line(to, q, row, load<uint32_t>(bytes + 4 * q));
}

int pair_code(const std::byte* block, int i, int64_t row) {
  return static_cast<int>((load_line(block, i / 16, row) >> (i % 4 * 8 + i / 4 % 4 * 2)) & 3);
}
int third_bit(const std::byte* block, int i, int64_t row) {
  return static_cast<int>((load_line(block, 2, row) >> (i % 4 * 8 + i / 4)) & 1);
}
int nibble_code(const std::byte* block, int i, int64_t row) {
  return static_cast<int>((load_line(block, i / 4 % 4, row) >> (i % 4 * 8 + i / 16 * 4)) & 15);
}

// ---- Stored blocks. `g` is the group of 32 in a block of 256.

// Two bits of 32 codes: four groups share 32 bytes.
void read_pairs(const std::byte* bytes, int64_t g, uint8_t* codes) {
  for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>((static_cast<int>(bytes[g / 4 * 32 + i]) >> (g % 4 * 2)) & 3);
}

// Digits in base 3, five (of the last four bytes, four) a byte: see tensor/dequantize.cc.
void read_ternary(const std::byte* bytes, int64_t g, uint8_t* codes) {
  constexpr int kPowers[5] = {1, 3, 9, 27, 81};
  for (int64_t i = 0; i < 32; ++i) {
    const int64_t at = g * 32 + i;
    const int64_t byte = at < 160 ? at % 32 : at < 240 ? 32 + at % 16 : 48 + at % 4;
    const int64_t digit = at < 160 ? at / 32 : at < 240 ? (at - 160) / 16 : (at - 240) / 4;
    const auto top = static_cast<uint8_t>(static_cast<int>(bytes[byte]) * kPowers[digit]);
    codes[i] = static_cast<uint8_t>((top * 3) >> 8);
  }
}

int8_t q3_k_scale(const std::byte* scales, int64_t group) {  // 16 of 6 bits in 12 bytes
  const int low = group < 8 ? static_cast<int>(scales[group]) & 15 : static_cast<int>(scales[group - 8]) >> 4;
  const int high = (static_cast<int>(scales[8 + group % 4]) >> (group / 4 * 2)) & 3;
  return static_cast<int8_t>((low | high << 4) - 32);
}

void store_bytes(std::byte* to, int64_t line_bytes, int64_t row, uint32_t value) { to[line_bytes + row] = static_cast<std::byte>(value); }

// The fields of a code-book group, as the file has them.
void pack_grid_block(DType dtype, const GridGroup& group, int64_t row, std::byte* to) {
  const auto word_of = [](const uint32_t* values, uint32_t mask, int bits) {
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) word |= (values[i] & mask) << (bits * i);
    return word;
  };
  const uint32_t nibbles = group.scale[0] | group.scale[1] << 4;
  switch (dtype) {
    case DType::kIQ2_XXS:
      store_line(to, 0, row, word_of(group.index, 255, 8));
      store_line(to, 1, row, word_of(group.signs, 127, 7) | group.scale[0] << 28);
      return;
    case DType::kIQ2_XS:
      for (int p = 0; p < 2; ++p) {
        const auto half = [&](int i) { return group.index[i] | (group.signs[i] & 127) << 9; };
        store_line(to, p, row, half(2 * p) | half(2 * p + 1) << 16);
      }
      return store_bytes(to, 128, row, nibbles);
    case DType::kIQ2_S: {
      store_line(to, 0, row, word_of(group.index, 255, 8));
      store_line(to, 1, row, word_of(group.signs, 255, 8));
      uint32_t high = 0;
      for (int i = 0; i < 4; ++i) high |= (group.index[i] >> 8) << (2 * i);
      store_bytes(to, 128, row, high);
      return store_bytes(to, 144, row, nibbles);
    }
    case DType::kIQ3_XXS:
      for (int p = 0; p < 2; ++p) store_line(to, p, row, word_of(group.index + 4 * p, 255, 8));
      return store_line(to, 2, row, word_of(group.signs, 127, 7) | group.scale[0] << 28);
    case DType::kIQ3_S: {
      for (int p = 0; p < 2; ++p) store_line(to, p, row, word_of(group.index + 4 * p, 255, 8));
      store_line(to, 2, row, word_of(group.signs, 255, 8));
      uint32_t ninth = 0;
      for (int i = 0; i < 8; ++i) ninth |= (group.index[i] >> 8) << i;
      store_bytes(to, 192, row, ninth);
      return store_bytes(to, 208, row, group.scale[0]);
    }
    case DType::kIQ1_S: {
      uint32_t high = group.scale[0] << 12 | group.signs[0] << 15;
      for (int i = 0; i < 4; ++i) high |= (group.index[i] >> 8) << (3 * i);
      store_line(to, 0, row, word_of(group.index, 255, 8));
      return store(to + 64 + row * 2, static_cast<uint16_t>(high));
    }
    default: {  // IQ1_M
      uint32_t high = 0;
      for (int i = 0; i < 4; ++i) high |= (group.index[i] >> 8 | group.signs[i] << 3) << (4 * i);
      store_line(to, 0, row, word_of(group.index, 255, 8));
      store(to + 64 + row * 2, static_cast<uint16_t>(high));
      return store_bytes(to, 96, row, nibbles);
    }
  }
}

GridGroup load_grid_group(DType dtype, const std::byte* block, int64_t row) {
  GridGroup group{};
  const auto byte = [&](int64_t at) { return static_cast<uint32_t>(block[at + row]); };
  const auto bytes_of = [&](int64_t line, uint32_t* values) {
    for (int i = 0; i < 4; ++i) values[i] = (load_line(block, line, row) >> (8 * i)) & 255;
  };
  const auto seven_signs = [&](uint32_t word) {
    for (int i = 0; i < 4; ++i) group.signs[i] = with_eighth_sign((word >> (7 * i)) & 127);
    group.scale[0] = group.scale[1] = word >> 28;
  };
  const auto two_scales = [&](int64_t at) {
    group.scale[0] = byte(at) & 15;
    group.scale[1] = byte(at) >> 4;
  };
  switch (dtype) {
    case DType::kIQ2_XXS:
      bytes_of(0, group.index);
      seven_signs(load_line(block, 1, row));
      return group;
    case DType::kIQ2_XS:
      for (int i = 0; i < 4; ++i) {
        const uint32_t both = load_line(block, i / 2, row) >> (i % 2 * 16) & 0xffff;
        group.index[i] = both & 511;
        group.signs[i] = with_eighth_sign(both >> 9);
      }
      two_scales(128);
      return group;
    case DType::kIQ2_S:
      bytes_of(0, group.index);
      bytes_of(1, group.signs);
      for (int i = 0; i < 4; ++i) group.index[i] |= ((byte(128) >> (2 * i)) & 3) << 8;
      two_scales(144);
      return group;
    case DType::kIQ3_XXS:
      bytes_of(0, group.index);
      bytes_of(1, group.index + 4);
      seven_signs(load_line(block, 2, row));
      return group;
    case DType::kIQ3_S:
      bytes_of(0, group.index);
      bytes_of(1, group.index + 4);
      bytes_of(2, group.signs);
      for (int i = 0; i < 8; ++i) group.index[i] |= ((byte(192) >> i) & 1) << 8;
      group.scale[0] = group.scale[1] = byte(208);
      return group;
    default: {
      const uint32_t high = load<uint16_t>(block + 64 + row * 2);
      const bool small = dtype == DType::kIQ1_S;
      bytes_of(0, group.index);
      for (int i = 0; i < 4; ++i) {
        group.index[i] |= (small ? (high >> (3 * i)) & 7 : (high >> (4 * i)) & 7) << 8;
        group.signs[i] = small ? high >> 15 : (high >> (4 * i + 3)) & 1;
      }
      group.scale[0] = group.scale[1] = (high >> 12) & 7;
      if (!small) two_scales(96);
      return group;
    }
  }
}

// 2^(e - 128).
float half_of_e8m0(std::byte e) { return std::ldexp(1.0f, static_cast<int>(e) - 128); }

// Half of an E4M3 without sign: with three zero bits below it is an f16 but for the exponent's bias, 7 instead of 15.
float half_of_e4m3(std::byte e) { return f16_to_f32(static_cast<uint16_t>(static_cast<int>(e) << 7)) * 128.0f; }

}  // namespace

std::optional<WeightClass> small_block_class(DType dtype) {
  switch (dtype) {
    case DType::kQ2_K: return WeightClass::kQ2_K;
    case DType::kQ3_K: return WeightClass::kQ3_K;
    case DType::kTQ1_0:
    case DType::kTQ2_0: return WeightClass::kTQ2_0;
    case DType::kIQ4_NL: return WeightClass::kIQ4_NL;
    case DType::kIQ4_XS: return WeightClass::kIQ4_XS;
    case DType::kMXFP4: return WeightClass::kMXFP4;
    case DType::kNVFP4: return WeightClass::kNVFP4;
    case DType::kIQ1_S: return WeightClass::kIQ1_S;
    case DType::kIQ1_M: return WeightClass::kIQ1_M;
    case DType::kIQ2_XXS: return WeightClass::kIQ2_XXS;
    case DType::kIQ2_XS: return WeightClass::kIQ2_XS;
    case DType::kIQ2_S: return WeightClass::kIQ2_S;
    case DType::kIQ3_XXS: return WeightClass::kIQ3_XXS;
    case DType::kIQ3_S: return WeightClass::kIQ3_S;
    default: return std::nullopt;
  }
}

void pack_small_block(DType dtype, const std::byte* stored, int64_t block, int64_t row, std::byte* header, std::byte* to) {
  const DTypeInfo& info = dtype_info(dtype);
  const int64_t blocks = info.block_elements / kBlockK, g = block % blocks;  // NVFP4: 2, else 8 or 1
  const std::byte* from = stored + block / blocks * info.block_bytes;
  alignas(4) uint8_t codes[kBlockK];
  const auto store_f16 = [&](std::byte* at, const std::byte* source) { store(at + row * 2, load<uint16_t>(source)); };
  switch (dtype) {
    case DType::kQ2_K:
      store_f16(header, from + 80);
      store_f16(header + 32, from + 82);
      read_pairs(from + 16, g, codes);
      store_pair_plane(codes, to, row);
      for (int half = 0; half < 2; ++half) to[128 + half * 16 + row] = from[2 * g + half];
      return;
    case DType::kQ3_K:
      store_f16(header, from + 108);
      read_pairs(from + 32, g, codes);
      for (int i = 0; i < kBlockK; ++i) codes[i] = static_cast<uint8_t>(codes[i] | ((static_cast<int>(from[i]) >> g) & 1) << 2);
      store_pair_plane(codes, to, row);
      store_third_bits(codes, to, row);
      for (int half = 0; half < 2; ++half) store(to + 192 + half * 16 + row, q3_k_scale(from + 96, 2 * g + half));
      return;
    case DType::kTQ1_0:
      store_f16(header, from + 52);
      read_ternary(from, g, codes);
      return store_pair_plane(codes, to, row);
    case DType::kTQ2_0:
      store_f16(header, from + 64);
      read_pairs(from, g, codes);
      return store_pair_plane(codes, to, row);
    case DType::kIQ4_NL: store_split_nibbles(from + 2, to, row); return store_f16(to + 256, from);
    case DType::kIQ4_XS: {
      store_f16(header, from);
      store_split_nibbles(from + 8 + 16 * g, to, row);
      const int low = (static_cast<int>(from[4 + g / 2]) >> (g % 2 * 4)) & 15, high = (load<uint16_t>(from + 2) >> (2 * g)) & 3;
      return store(to + 256 + row, static_cast<int8_t>((low | high << 4) - 32));
    }
    case DType::kMXFP4:
      store_split_nibbles(from + 1, to, row);
      to[256 + row] = from[0];
      return;
    case DType::kNVFP4:  // groups of 16 whose low nibbles are elements 0-7, high nibbles 8-15
      for (int i = 0; i < kBlockK; ++i)
        codes[i] = static_cast<uint8_t>((static_cast<int>(from[4 + 16 * g + i / 16 * 8 + i % 8]) >> (i % 16 / 8 * 4)) & 15);
      store_nibble_plane(codes, to, row);
      for (int half = 0; half < 2; ++half) {
        const std::byte e = from[2 * g + half] & std::byte{0x7f};
        to[256 + half * 16 + row] = e == std::byte{0x7f} ? std::byte{0} : e;  // the reference reads the NaN code as 0
      }
      return;
    default: {
      const auto* bytes = reinterpret_cast<const uint8_t*>(from);
      store(header + row * 2, read_grid_scale(dtype, bytes));
      return pack_grid_block(dtype, read_grid_group(dtype, bytes, static_cast<int>(g)), row, to);
    }
  }
}

BlockRow load_small_block_row(WeightClass weight_class, const std::byte* block, const std::byte* header, int64_t row) {
  BlockRow result{};
  const auto set_both = [&](float scale) { result.scale[0] = result.scale[1] = scale; };
  const float d = header != nullptr ? load_f16(header + row * 2) : 0;
  if (is_grid(weight_class)) {
    const DType dtype = dtype_of_grid(weight_class);
    const GridGroup group = load_grid_group(dtype, block, row);
    int8_t codes[kBlockK];
    grid_codes(dtype, group, codes);
    for (int i = 0; i < kBlockK; ++i) result.codes[i] = codes[i];
    for (int half = 0; half < 2; ++half) result.scale[half] = d * static_cast<float>(2 * group.scale[half] + 1) * grid_unit(dtype);
    return result;
  }
  if (const int8_t* table = fixed_table(weight_class); table != nullptr) {
    for (int i = 0; i < kBlockK; ++i) result.codes[i] = table[nibble_code(block, i, row)];
    if (weight_class == WeightClass::kIQ4_NL) set_both(load_f16(block + 256 + row * 2));
    if (weight_class == WeightClass::kIQ4_XS) set_both(d * static_cast<float>(load<int8_t>(block + 256 + row)));
    if (weight_class == WeightClass::kMXFP4) set_both(half_of_e8m0(block[256 + row]));
    if (weight_class == WeightClass::kNVFP4) {
      for (int half = 0; half < 2; ++half) result.scale[half] = half_of_e4m3(block[256 + half * 16 + row]);
    }
    return result;
  }
  for (int i = 0; i < kBlockK; ++i) result.codes[i] = pair_code(block, i, row);
  if (weight_class == WeightClass::kTQ2_0) set_both(d);
  if (weight_class == WeightClass::kQ3_K) {
    for (int i = 0; i < kBlockK; ++i) result.codes[i] |= third_bit(block, i, row) << 2;
    for (int half = 0; half < 2; ++half) result.scale[half] = d * static_cast<float>(load<int8_t>(block + 192 + half * 16 + row));
  }
  if (weight_class == WeightClass::kQ2_K) {
    const float dmin = load_f16(header + 32 + row * 2);
    for (int half = 0; half < 2; ++half) {
      const auto both = static_cast<int>(block[128 + half * 16 + row]);
      result.scale[half] = d * static_cast<float>(both & 15);
      result.minimum[half] = -(dmin * static_cast<float>(both >> 4));
    }
  }
  return result;
}

}  // namespace millrace
