#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "millrace/kernels/packed_matrix.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/dtype.h"

// Panels of GGUF's types of up to 4 bits beyond Q4_K: how stored blocks become them, and what they mean. Layout: panel_layout.h.
namespace millrace {

constexpr bool is_small_block(WeightClass weight_class) { return weight_class >= WeightClass::kQ2_K; }

// Of both ternary types TQ2_0.
std::optional<WeightClass> small_block_class(DType dtype);

// Packs block `block` (of 32 k) of one stored row as row `row` (0..15). `header` is the one before the 8 blocks, null where the class has
// none.
void pack_small_block(DType dtype, const std::byte* stored, int64_t block, int64_t row, std::byte* header, std::byte* to);

BlockRow load_small_block_row(WeightClass weight_class, const std::byte* block, const std::byte* header, int64_t row);

}  // namespace millrace
