#pragma once

#include <cstddef>
#include <cstdint>

// Kept free of templates and of anything that other files might share: files compiled for AMX include it.
namespace millrace::amx {

// y[row, 16 * panel + r] = (adds: what it was, plus) the product of bf16 activations and panels of bf16 weights (panel_layout.h).
struct Bf16Product {
  const std::byte* panels;
  int64_t panel_bytes, num_panels, num_pairs;  // pairs of k
  const uint16_t* x;                           // [num_rows, x_stride]; zeros from k to the next multiple of 32
  int64_t x_stride, num_rows;
  float* y;  // [num_rows, y_stride]
  int64_t y_stride;
  bool adds;
};
void multiply_bf16(const Bf16Product& product);

}  // namespace millrace::amx
