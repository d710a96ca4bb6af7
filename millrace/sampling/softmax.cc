#include "millrace/sampling/softmax.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace millrace {
namespace {

// Four lanes everywhere: the baseline's width, and an accumulation order that no compiler flag changes.
constexpr std::size_t kLanes = 4;
using Float4 = float __attribute__((vector_size(16)));
using Int4 = int32_t __attribute__((vector_size(16)));

Float4 load(const float* from) {
  Float4 value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

Float4 broadcast(float value) { return Float4{value, value, value, value}; }

// exp of x <= 0: x = k ln 2 + r with |r| <= ln 2 / 2, a Taylor polynomial of degree 7 for exp(r) (its remainder is below 6e-9), and
// 2^k made from its bits. Nothing is subnormal: below -87 the result is 0.
Float4 exp_nonpositive(Float4 x) {
  const Float4 lowest = broadcast(-87.0f);
  const Int4 tiny = x < lowest;
  x = tiny ? lowest : x;
  const Float4 rounder = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves no bits for a fraction
  const Float4 k_biased = x * 1.44269504f + rounder;
  const Float4 k = k_biased - rounder;
  const Float4 r = x - k * 0.693359375f - k * -2.12194440e-4f;
  Float4 p = r * 1.98412698e-4f + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const Int4 scale_bits = (__builtin_convertvector(k, Int4) + 127) << 23;
  Float4 scale;
  std::memcpy(&scale, &scale_bits, sizeof scale);
  p *= scale;
  return tiny ? broadcast(0.0f) : p;
}

Float4 load_tail(const float* from, std::size_t count, float fill) {
  std::array<float, kLanes> padded;
  padded.fill(fill);
  std::copy_n(from, count, padded.begin());
  return load(padded.data());
}

}  // namespace

bool all_finite(std::span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000;
  const auto bits_at = [&](std::size_t i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof bits);
    return bits;
  };
  std::size_t i = 0;
  // x - x is 0 for a finite x and NaN for any other, and a sum keeps its NaN.
  Float4 sum = broadcast(0.0f);
  for (; i + kLanes <= values.size(); i += kLanes) {
    const Float4 x = load(&values[i]);
    sum += x - x;
  }
  bool finite = sum[0] == 0 && sum[1] == 0 && sum[2] == 0 && sum[3] == 0;
  for (; i < values.size(); ++i) finite = finite && (bits_at(i) & kExponent) != kExponent;
  return finite;
}

float largest(std::span<const float> values) {
  Float4 best = broadcast(values[0]);
  std::size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    const Float4 x = load(&values[i]);
    best = x > best ? x : best;
  }
  float result = std::max(std::max(best[0], best[1]), std::max(best[2], best[3]));
  for (; i < values.size(); ++i) result = std::max(result, values[i]);
  return result;
}

void softmax_weights(std::span<const float> logits, float max_logit, float inverse_temperature, std::span<float> weights) {
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    const Float4 w = exp_nonpositive((load(&logits[i]) - max_logit) * inverse_temperature);
    std::memcpy(&weights[i], &w, sizeof w);
  }
  if (i < logits.size()) {
    const std::size_t rest = logits.size() - i;
    const Float4 w = exp_nonpositive((load_tail(&logits[i], rest, max_logit) - max_logit) * inverse_temperature);
    for (std::size_t j = 0; j < rest; ++j) weights[i + j] = w[j];
  }
}

double softmax_denominator(std::span<const float> logits, float max_logit) {
  constexpr std::size_t kChunk = 1024;
  std::array<float, kChunk> weights;
  double sum = 0;
  for (std::size_t begin = 0; begin < logits.size(); begin += kChunk) {
    const std::size_t count = std::min(kChunk, logits.size() - begin);
    softmax_weights(logits.subspan(begin, count), max_logit, 1.0f, std::span(weights).first(count));
    sum += ordered_sum(std::span(weights).first(count));
  }
  return sum;
}

double standard_deviation(std::span<const float> values, float max_value) {
  // Distances from the largest, so that the squares stay small beside what their sum can hold exactly enough.
  std::array<double, kLanes> sums{}, squares{}, counts{};
  const auto add = [&](float value, std::size_t lane) {
    const bool counted = value > -std::numeric_limits<float>::infinity();
    const double distance = counted ? static_cast<double>(max_value) - static_cast<double>(value) : 0.0;
    sums[lane] += distance;
    squares[lane] += distance * distance;
    counts[lane] += counted ? 1.0 : 0.0;
  };
  std::size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) add(values[i + lane], lane);
  }
  for (; i < values.size(); ++i) add(values[i], 0);
  const auto total = [](const std::array<double, kLanes>& lanes) { return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]); };
  const double mean = total(sums) / total(counts);
  return std::sqrt(std::max(0.0, total(squares) / total(counts) - mean * mean));
}

double ordered_sum(std::span<const float> values) {
  std::array<double, kLanes> sums{};
  std::size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(values[i + lane]);
  }
  for (; i < values.size(); ++i) sums[0] += static_cast<double>(values[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace millrace
