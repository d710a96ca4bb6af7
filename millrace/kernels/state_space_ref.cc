#include <cmath>

#include "millrace/kernels/state_space_variants.h"

// The formulas as loops, sums in double. Never optimized: it is the judge.
namespace millrace::ref {
namespace {

void convolve_row(const float* const* taps, int64_t num_taps, const float* weights, int64_t stride, const float* bias, int64_t size,
                  float* y) {
  for (int64_t c = 0; c < size; ++c) {
    double sum = bias != nullptr ? bias[c] : 0;
    for (int64_t t = 0; t < num_taps; ++t) sum += static_cast<double>(weights[t * stride + c]) * taps[t][c];
    y[c] = static_cast<float>(sum);
  }
}

void multiply_row(const float* a, const float* b, int64_t size, float* y) {
  for (int64_t c = 0; c < size; ++c) y[c] = a[c] * b[c];
}

void softplus_row(const float* x, int64_t size, float* y) {
  for (int64_t c = 0; c < size; ++c) {
    const double value = x[c];
    y[c] = static_cast<float>((value > 0 ? value : 0) + std::log1p(std::exp(-std::abs(value))));
  }
}

void scan_row(const ScanToken& token, int64_t size, float* y) {
  for (int64_t c = 0; c < size; ++c) {
    const double x = token.x[c], dt = token.dt[c];
    double sum = token.d[c] * x;
    for (int64_t n = 0; n < token.num_states; ++n) {
      float& state = token.state[n * token.state_stride + c];
      state = static_cast<float>(std::exp(dt * token.a[n * token.a_stride + c]) * state + dt * x * token.b[n]);
      sum += static_cast<double>(state) * token.c[n];
    }
    y[c] = static_cast<float>(sum);
  }
}

}  // namespace

const StateSpaceVariant kStateSpace = {convolve_row, multiply_row, softplus_row, scan_row};

}  // namespace millrace::ref
