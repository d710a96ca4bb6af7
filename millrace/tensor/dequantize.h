#pragma once

#include <cstddef>
#include <cstdint>

#include "millrace/tensor/dtype.h"

namespace millrace {

// What stored numbers mean: the scalar reference for every block layout that a file may hold, and the judge of every kernel that
// reads blocks directly. Results are bit-identical to those of the gguf Python package (github.com/ggml-org/llama.cpp, gguf-py).

// Whether dequantize_row() reads this type: all but Q8_1 (never in files).
bool can_dequantize(DType dtype);

// Writes the `elements` numbers of one stored row to `out` as f32. `row` holds row_bytes(dtype, elements) bytes, of any alignment;
// it and `out` do not overlap. `elements` is a multiple of the type's block, and the type one that can_dequantize() accepts.
// Integers and f64 are rounded to nearest; non-finite scales give non-finite numbers.
void dequantize_row(DType dtype, const std::byte* row, int64_t elements, float* out);

}  // namespace millrace
