#pragma once

#include <cstdint>

#include "millrace/base/cpu_features.h"

// Row operations. Each works on one contiguous row of f32; results depend on nothing but the row (docs/design.md D5).
// Sums are taken in a fixed order of lanes, so a variant gives the same bits wherever it is called.
namespace millrace {

// y = x / sqrt(mean(x^2) + eps) * weight            RMSNorm, arXiv:1910.07467.   y may be x.   weight null: ones
void rms_norm_row(Isa isa, const float* x, const float* weight, float eps, int64_t size, float* y);

// y = (x - mean) / sqrt(var + eps) * weight + bias  LayerNorm, arXiv:1607.06450. y may be x.   weight or bias may be null
void layer_norm_row(Isa isa, const float* x, const float* weight, const float* bias, float eps, int64_t size, float* y);

// Rotates the first rotary_dim values of a head in place by the angles whose cosines and sines are given ([rotary_dim / 2] each).
// half: pairs (i, i + rotary_dim / 2); interleaved: pairs (2i, 2i + 1).
void rope_head(Isa isa, float* head, const float* cos, const float* sin, int64_t rotary_dim, bool interleaved);

enum class ActivationKind : uint8_t { kSilu, kGeluTanh, kGeluErf, kRelu, kReluSquared, kQuickGelu, kTanh };
// y = f(x); y may be x.
void activate_row(Isa isa, ActivationKind kind, const float* x, int64_t size, float* y);
// y = f(gate) * up; y may be either.
void activate_mul_row(Isa isa, ActivationKind kind, const float* gate, const float* up, int64_t size, float* y);

// y += x
void add_row(Isa isa, const float* x, int64_t size, float* y);
// y = x * scale; y may be x
void scale_row(Isa isa, const float* x, float scale, int64_t size, float* y);
// y += x * scale, each in one rounding
void add_scaled_row(Isa isa, const float* x, float scale, int64_t size, float* y);
// x = -limit where it is below, limit where it is above; NaN stays
void clip_row(Isa isa, float* x, float limit, int64_t size);
// gate = limit where it is above; up = -limit where it is below, limit where it is above, + offset; NaN stays
void limit_gated_row(Isa isa, float* gate, float* up, float limit, float offset, int64_t size);
// x = cap * tanh(x / cap)
void softcap_row(Isa isa, float* x, float cap, int64_t size);
// Largest value and its lowest index; NaN anywhere makes finite false.
struct RowMax {
  float value;
  int32_t index;
  bool finite;
};
RowMax max_row(Isa isa, const float* x, int64_t size);

}  // namespace millrace
