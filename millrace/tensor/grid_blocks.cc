#include "millrace/tensor/grid_blocks.h"

#include <cstring>

#include "millrace/base/check.h"
#include "millrace/tensor/grid_tables.h"

namespace millrace {
namespace {

template <class T>
T load(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// Four times seven signs, and four bits of scale: IQ2_XXS and IQ3_XXS.
void read_signs_and_scale(uint32_t word, GridGroup& group) {
  for (int i = 0; i < 4; ++i) group.signs[i] = with_eighth_sign((word >> (7 * i)) & 127);
  group.scale[0] = group.scale[1] = word >> 28;
}

}  // namespace

uint16_t read_grid_scale(DType dtype, const uint8_t* block) {
  if (dtype != DType::kIQ1_M) return load<uint16_t>(block);
  uint16_t d = 0;  // a nibble at the top of each of four words
  for (int i = 0; i < 4; ++i) d = static_cast<uint16_t>(d | (load<uint16_t>(block + 48 + 2 * i) >> 12) << (4 * i));
  return d;
}

GridGroup read_grid_group(DType dtype, const uint8_t* block, int g) {
  GridGroup group{};
  switch (dtype) {
    case DType::kIQ2_XXS: {  // f16 d; {u8 index[4]; u32 signs and scale} [8]
      const uint8_t* from = block + 2 + 8 * g;
      for (int i = 0; i < 4; ++i) group.index[i] = from[i];
      read_signs_and_scale(load<uint32_t>(from + 4), group);
      return group;
    }
    case DType::kIQ2_XS: {  // f16 d; u16 (index | signs << 9) [32]; u8 scales[8]
      for (int i = 0; i < 4; ++i) {
        const uint32_t both = load<uint16_t>(block + 2 + 8 * g + 2 * i);
        group.index[i] = both & 511;
        group.signs[i] = with_eighth_sign(both >> 9);
      }
      group.scale[0] = block[66 + g] & 15;
      group.scale[1] = block[66 + g] >> 4;
      return group;
    }
    case DType::kIQ2_S: {  // f16 d; u8 low[32]; u8 signs[32]; u8 high[8]; u8 scales[8]
      for (int i = 0; i < 4; ++i) {
        group.index[i] = block[2 + 4 * g + i] | ((block[66 + g] >> (2 * i)) & 3u) << 8;
        group.signs[i] = block[34 + 4 * g + i];
      }
      group.scale[0] = block[74 + g] & 15;
      group.scale[1] = block[74 + g] >> 4;
      return group;
    }
    case DType::kIQ3_XXS:  // f16 d; u8 index[64]; u32 signs and scale [8]
      for (int i = 0; i < 8; ++i) group.index[i] = block[2 + 8 * g + i];
      read_signs_and_scale(load<uint32_t>(block + 66 + 4 * g), group);
      return group;
    case DType::kIQ3_S:  // f16 d; u8 low[64]; u8 ninth_bits[8]; u8 signs[32]; u8 scales[4]
      for (int i = 0; i < 8; ++i) group.index[i] = block[2 + 8 * g + i] | ((block[66 + g] >> i) & 1u) << 8;
      for (int i = 0; i < 4; ++i) group.signs[i] = block[74 + 4 * g + i];
      group.scale[0] = group.scale[1] = (block[106 + g / 2] >> (g % 2 * 4)) & 15;
      return group;
    case DType::kIQ1_S: {  // f16 d; u8 low[32]; u16 (three high bits [4] | scale << 12 | shift's sign << 15) [8]
      const uint32_t high = load<uint16_t>(block + 34 + 2 * g);
      for (int i = 0; i < 4; ++i) {
        group.index[i] = block[2 + 4 * g + i] | ((high >> (3 * i)) & 7) << 8;
        group.signs[i] = high >> 15;
      }
      group.scale[0] = group.scale[1] = (high >> 12) & 7;
      return group;
    }
    case DType::kIQ1_M: {  // u8 low[32]; u8 (three high bits | shift's sign << 3) nibbles [16]; u16 (three bits of scale [4] | part of d <<
                           // 12) [4]
      const uint32_t scales = load<uint16_t>(block + 48 + g / 2 * 2) >> (g % 2 * 6);
      for (int i = 0; i < 4; ++i) {
        const uint32_t high = (block[32 + 2 * g + i / 2] >> (i % 2 * 4)) & 15u;
        group.index[i] = block[4 * g + i] | (high & 7) << 8;
        group.signs[i] = high >> 3;
      }
      group.scale[0] = scales & 7;
      group.scale[1] = (scales >> 3) & 7;
      return group;
    }
    default: MR_CHECK(false, dtype_name(dtype));
  }
}

void grid_codes(DType dtype, const GridGroup& group, int8_t (&codes)[32]) {
  const bool ternary = dtype == DType::kIQ1_S || dtype == DType::kIQ1_M, fours = dtype == DType::kIQ3_XXS || dtype == DType::kIQ3_S;
  const uint32_t* table = dtype == DType::kIQ2_XXS   ? kGridTables.iq2_xxs
                          : dtype == DType::kIQ2_XS  ? kGridTables.iq2_xs
                          : dtype == DType::kIQ2_S   ? kGridTables.iq2_s
                          : dtype == DType::kIQ3_XXS ? kGridTables.iq3_xxs
                          : dtype == DType::kIQ3_S   ? kGridTables.iq3_s
                                                     : kGridTables.iq1;
  for (int i = 0; i < 32; ++i) {
    const uint32_t word = fours ? table[group.index[i / 4]] : table[2 * group.index[i / 8] + static_cast<uint32_t>(i / 4 % 2)];
    const int value = static_cast<int8_t>(word >> (i % 4 * 8) & 255);
    const bool minus = ((group.signs[i / 8] >> (ternary ? 0 : i % 8)) & 1) != 0;
    codes[i] = static_cast<int8_t>(ternary ? value + (minus ? -1 : 1) : minus ? -value : value);
  }
}

}  // namespace millrace
