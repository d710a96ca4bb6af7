#include "millrace/quality/divergence.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "millrace/base/check.h"
#include "millrace/sampling/softmax.h"

namespace millrace {
namespace {

struct Normalizer {
  float largest;
  double denominator;  // sum of exp(logit - largest)
  double log_norm() const { return largest + std::log(denominator); }
};

Normalizer normalizer(std::span<const float> logits) {
  const float top = largest(logits);
  return {top, softmax_denominator(logits, top)};
}

int64_t first_of(std::span<const float> values, float value) { return std::find(values.begin(), values.end(), value) - values.begin(); }

}  // namespace

double negative_log_likelihood(std::span<const float> logits, int32_t target) {
  return normalizer(logits).log_norm() - static_cast<double>(logits[static_cast<std::size_t>(target)]);
}

RowDivergence compare_rows(const ReferenceRow& reference, std::span<const float> logits, int32_t target) {
  MR_CHECK(reference.values.size() == logits.size(), "one vocabulary");
  const Normalizer model = normalizer(logits);
  const float reference_top = largest(reference.values), floor = reference.log_probs ? kUncountedLogProb : -INFINITY;
  // With w = exp(r - largest r), p = w / weight. Of log-probabilities that is exp(r) itself.
  const double weight =
      reference.log_probs ? std::exp(-static_cast<double>(reference_top)) : softmax_denominator(reference.values, reference_top);
  const double reference_norm = reference.log_probs ? 0 : reference_top + std::log(weight), model_norm = model.log_norm();

  constexpr std::size_t kChunk = 1024;
  std::array<float, kChunk> weights;
  double weighted_differences = 0, total_weight = 0, lowest = INFINITY, highest = -INFINITY;
  for (std::size_t begin = 0; begin < logits.size(); begin += kChunk) {
    const std::size_t count = std::min(kChunk, logits.size() - begin);
    softmax_weights(reference.values.subspan(begin, count), reference_top, 1.0f, std::span(weights).first(count));
    for (std::size_t i = 0; i < count; ++i) {
      if (reference.values[begin + i] <= floor) continue;
      const double difference = static_cast<double>(reference.values[begin + i]) - static_cast<double>(logits[begin + i]);
      weighted_differences += static_cast<double>(weights[i]) * difference;
      total_weight += static_cast<double>(weights[i]);
      lowest = std::min(lowest, difference);
      highest = std::max(highest, difference);
    }
  }
  RowDivergence row;
  row.nll = model_norm - static_cast<double>(logits[static_cast<std::size_t>(target)]);
  row.reference_nll = reference_norm - static_cast<double>(reference.values[static_cast<std::size_t>(target)]);
  // sum of p ((r - reference_norm) - (l - model_norm)): with this sum of the weights a shift of all logits drops out exactly.
  row.kl = (weighted_differences - total_weight * (reference_norm - model_norm)) / weight;
  row.same_top = first_of(reference.values, reference_top) == first_of(logits, model.largest);
  const double shift = reference.log_probs ? model_norm : 0;
  row.max_difference = lowest > highest ? 0 : std::max(std::abs(lowest + shift), std::abs(highest + shift));
  return row;
}

Estimate estimate(std::span<const double> values) {
  if (values.empty()) return {};
  const auto count = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  const double mean = sum / count;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return {mean, values.size() < 2 ? 0 : std::sqrt(squares / (count - 1) / count)};
}

Estimate estimate_difference(std::span<const double> a, std::span<const double> b) {
  MR_CHECK(a.size() == b.size(), "pairs");
  std::vector<double> differences(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) differences[i] = a[i] - b[i];
  return estimate(differences);
}

double quantile(std::span<const double> sorted, double fraction) {
  MR_CHECK(!sorted.empty() && fraction >= 0 && fraction <= 1, "a fraction of something");
  const double at = fraction * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace millrace
