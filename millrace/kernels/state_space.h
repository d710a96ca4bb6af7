#pragma once

#include <cstdint>
#include <span>

#include "millrace/base/cpu_features.h"

// Operations of layers that carry a state from token to token. Each works on one token and on channels that lie side by side in f32; a
// channel's results depend on nothing but that channel, so that neither the number of tokens in a step nor the division of channels among
// threads changes a bit (docs/design.md D5).
namespace millrace {

// y[c] = bias[c] + sum over t of weights[t * stride + c] * taps[t][c]       a causal depthwise convolution at one token
//
//   taps     [num_taps] rows of [size]: what the convolution is over, the oldest token first, the token itself last
//   weights  [num_taps, stride]
//   bias     [size], or null
//
// Added up in the order of the taps, each in one rounding. y may be one of the taps.
void convolve_row(Isa isa, std::span<const float* const> taps, const float* weights, int64_t stride, const float* bias, int64_t size,
                  float* y);

// y = a * b; y may be either
void multiply_row(Isa isa, const float* a, const float* b, int64_t size, float* y);

// y = log(1 + exp(x)); y may be x
void softplus_row(Isa isa, const float* x, int64_t size, float* y);

// One token of a selective state space: Mamba, arXiv:2312.00752, and with one decay for all states of a channel Mamba-2, arXiv:2405.21060.
//
//   state[n, c] = exp(dt[c] * a[n, c]) * state[n, c] + dt[c] * x[c] * b[n]
//   y[c] = d[c] * x[c] + sum over n, in its order, of state[n, c] * c[n]
struct ScanToken {
  const float *x, *dt;  // [size] input and step width, dt >= 0
  const float *b, *c;   // [num_states] what enters the state, and what is read of it
  const float* a;       // [num_states, a_stride] all at most 0; a_stride 0: [size], the same for all states
  int64_t a_stride;
  const float* d;  // [size]
  int64_t num_states;
  float* state;  // [num_states, state_stride]
  int64_t state_stride;
};
// y [size] may be token.x.
void scan_row(Isa isa, const ScanToken& token, int64_t size, float* y);

}  // namespace millrace
