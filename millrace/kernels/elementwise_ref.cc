#include <cmath>
#include <limits>

#include "millrace/kernels/elementwise_variants.h"

// The formulas as loops, sums in double. Never optimized: it is the judge.
namespace millrace::ref {
namespace {

void rms_norm_row(const float* x, const float* weight, float eps, int64_t size, float* y) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(x[i]) * x[i];
  const float factor = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(size) + eps));
  for (int64_t i = 0; i < size; ++i) y[i] = x[i] * factor * (weight != nullptr ? weight[i] : 1.0f);
}

void layer_norm_row(const float* x, const float* weight, const float* bias, float eps, int64_t size, float* y) {
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < size; ++i) sum += x[i];
  const double mean = sum / static_cast<double>(size);
  for (int64_t i = 0; i < size; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const double factor = 1.0 / std::sqrt(squares / static_cast<double>(size) + eps);
  for (int64_t i = 0; i < size; ++i) {
    const float normalized = static_cast<float>((x[i] - mean) * factor);
    y[i] = normalized * (weight != nullptr ? weight[i] : 1.0f) + (bias != nullptr ? bias[i] : 0.0f);
  }
}

void rope_head(float* head, const float* cos, const float* sin, int64_t rotary_dim, bool interleaved) {
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    float& first = interleaved ? head[2 * i] : head[i];
    float& second = interleaved ? head[2 * i + 1] : head[i + half];
    const float a = first, b = second;
    first = a * cos[i] - b * sin[i];
    second = b * cos[i] + a * sin[i];
  }
}

float activate(ActivationKind kind, float value) {
  const double x = value;
  switch (kind) {
    case ActivationKind::kSilu: return static_cast<float>(x / (1 + std::exp(-x)));
    case ActivationKind::kGeluTanh: return static_cast<float>(0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))));
    case ActivationKind::kGeluErf:
      return static_cast<float>(0.5 * x * std::erfc(-x * M_SQRT1_2));  // 1 + erf(z) = erfc(-z), no cancellation
    case ActivationKind::kRelu: return value < 0 ? 0.0f : value;
    case ActivationKind::kReluSquared: return value < 0 ? 0.0f : value * value;
    case ActivationKind::kQuickGelu: return static_cast<float>(x / (1 + std::exp(-1.702 * x)));
    case ActivationKind::kTanh: return static_cast<float>(std::tanh(x));
  }
  return std::numeric_limits<float>::quiet_NaN();
}

void activate_row(ActivationKind kind, const float* x, int64_t size, float* y) {
  for (int64_t i = 0; i < size; ++i) y[i] = activate(kind, x[i]);
}

void activate_mul_row(ActivationKind kind, const float* gate, const float* up, int64_t size, float* y) {
  for (int64_t i = 0; i < size; ++i) y[i] = activate(kind, gate[i]) * up[i];
}

void add_row(const float* x, int64_t size, float* y) {
  for (int64_t i = 0; i < size; ++i) y[i] += x[i];
}

void scale_row(const float* x, float scale, int64_t size, float* y) {
  for (int64_t i = 0; i < size; ++i) y[i] = x[i] * scale;
}

void add_scaled_row(const float* x, float scale, int64_t size, float* y) {
  for (int64_t i = 0; i < size; ++i) y[i] = std::fma(x[i], scale, y[i]);
}

void clip_row(float* x, float limit, int64_t size) {
  for (int64_t i = 0; i < size; ++i) x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
}

void limit_gated_row(float* gate, float* up, float limit, float offset, int64_t size) {
  clip_row(up, limit, size);
  for (int64_t i = 0; i < size; ++i) {
    if (gate[i] > limit) gate[i] = limit;
    up[i] += offset;
  }
}

void softcap_row(float* x, float cap, int64_t size) {
  for (int64_t i = 0; i < size; ++i) x[i] = static_cast<float>(cap * std::tanh(static_cast<double>(x[i]) / cap));
}

RowMax max_row(const float* x, int64_t size) {
  RowMax best{-std::numeric_limits<float>::infinity(), 0, true};
  for (int64_t i = 0; i < size; ++i) {
    if (std::isnan(x[i])) best.finite = false;
    if (x[i] > best.value) {
      best.value = x[i];
      best.index = static_cast<int32_t>(i);
    }
  }
  return best;
}

}  // namespace

const ElementwiseVariant kElementwise = {rms_norm_row, layer_norm_row, rope_head, activate_row,    activate_mul_row, add_row,
                                         scale_row,    add_scaled_row, clip_row,  limit_gated_row, softcap_row,      max_row};

}  // namespace millrace::ref
