#pragma once

#include <cstdint>

#include "millrace/tensor/dtype.h"

// Blocks of GGUF's types with a code book: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S. A block is 256 numbers with one f16
// scale d.
namespace millrace {

constexpr bool is_grid_type(DType dtype) {
  return dtype == DType::kIQ1_S || dtype == DType::kIQ1_M || dtype == DType::kIQ2_XXS || dtype == DType::kIQ2_XS ||
         dtype == DType::kIQ2_S || dtype == DType::kIQ3_XXS || dtype == DType::kIQ3_S;
}

// 32 numbers: number i is d (2 scale[i / 16] + 1) grid_unit() code[i]. All of these products are exact in f32.
struct GridGroup {
  uint32_t index[8];  // in the code book (grid_tables.h): of the four 8 numbers, or of IQ3 of the eight 4 numbers
  uint32_t signs[4];  // bit i of signs[g]: number 8 g + i is negative. Of IQ1 bit 0 alone: the eight are shifted by -1/8, else by 1/8
  uint32_t scale[2];
};
constexpr float grid_unit(DType dtype) { return dtype == DType::kIQ3_XXS ? 0.25f : dtype == DType::kIQ3_S ? 1.0f : 0.125f; }

// `block` may have any alignment; `group` is 0 ... 7.
GridGroup read_grid_group(DType dtype, const uint8_t* block, int group);
uint16_t read_grid_scale(DType dtype, const uint8_t* block);  // d
void grid_codes(DType dtype, const GridGroup& group, int8_t (&codes)[32]);

}  // namespace millrace
