#pragma once

#include <cstdint>

#include "millrace/base/cpu_features.h"
#include "millrace/kernels/packed_matrix.h"

namespace millrace {

// From one row of bf16 activations to the next: an odd number of cache lines, since rows whose distance is a large power of two would
// take turns in a few sets of the cache.
constexpr int64_t bf16_row_stride(int64_t k) { return ((k + 31) / 32 | 1) * 32; }

// Activations of `num_rows` tokens. Only the forms the consumer asked for are set; strides are in elements.
// int8: per 32 values one scale = max|x| / 127, codes in [-127, 127] (never -128: the AVX2 sign trick relies on it),
// value = scale * code; sums16 are the sums of 16 consecutive codes (zero points and minima need them).
// k is padded with zeros to k_padded = a multiple of 32 in every form.
struct Activations {
  int64_t num_rows = 0, k = 0;
  const float* f32 = nullptr;  // [num_rows, f32_stride]
  int64_t f32_stride = 0;
  const int8_t* codes = nullptr;    // [num_rows, k_padded]
  const float* scales = nullptr;    // [num_rows, k_padded / 32]
  const int16_t* sums16 = nullptr;  // [num_rows, k_padded / 16]
  const uint16_t* bf16 = nullptr;   // [num_rows, bf16_stride]

  int64_t k_padded() const { return (k + 31) / 32 * 32; }
  int64_t bf16_stride() const { return bf16_row_stride(k); }
};

// Quantizes one row of k floats into codes [k_padded], scales [k_padded / 32], sums16 [k_padded / 16]. Bit-identical on every ISA.
void quantize_row_int8(Isa isa, const float* x, int64_t k, int8_t* codes, float* scales, int16_t* sums16);
// Rounds to nearest even, pads to k_padded.
void convert_row_bf16(Isa isa, const float* x, int64_t k, uint16_t* out);

// fast: the class's integer or bf16 dot products. exact: weights decoded to f32, f32 FMA, for every class. prompt: what the tokens of a
// prompt are computed with, where another arithmetic is faster for many tokens (AMX: weights decoded to bf16); elsewhere as fast
// (docs/design.md D4).
enum class GemmPath { kFast, kExact, kPrompt };
// Whether prompt differs from fast for any class.
bool has_prompt_path(Isa isa);
ActivationForm activation_form(WeightClass weight_class, Isa isa, GemmPath path);

// y[m, r] = sum over k of W[r, k] * x[m, k], for rows r of panels [panel_begin, panel_end) and activation rows m in [row_begin, row_end).
//
//   y   f32; y[(m - row_begin) * y_stride + (r - 16 * panel_begin)]; whole panels are written, so there must be room for 16 per panel
//
// The value of y[m, r] does not depend on the ranges of the call nor on the other rows (docs/design.md D5): one accumulation order.
// Any thread; no allocation, but the exact path uses `scratch` ([k_padded, 16] floats).
void gemm(Isa isa, GemmPath path, const PackedMatrix& w, const Activations& x, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
          int64_t row_end, float* y, int64_t y_stride, float* scratch);

}  // namespace millrace
