#pragma once

#include <cstdint>
#include <span>
#include <vector>

// What one prediction says about a model, and about its distance from a reference.
namespace millrace {

// -log p(target), in nats, of the softmax of the logits. Finite logits only.
double negative_log_likelihood(std::span<const float> logits, int32_t target);

// One prediction of the reference.
struct ReferenceRow {
  std::span<const float> values;  // [vocab_size] finite logits, or log-probabilities, which are not normalized again
  bool log_probs = false;
};

// Of log-probabilities, which a file holds rounded and clamped from below, those up to here do not count in the divergence; as in
// llama.cpp's tool.
inline constexpr float kUncountedLogProb = -16.0f;

struct RowDivergence {
  double nll = 0, reference_nll = 0;  // of the target, nats
  double kl = 0;                      // KL(reference || model) = sum over tokens of p_ref (log p_ref - log p), nats
  bool same_top = false;              // the same likeliest token; of equals the one with the lower id
  double max_difference = 0;          // largest |difference| of a logit; where the reference has log-probabilities, of those that count
};
RowDivergence compare_rows(const ReferenceRow& reference, std::span<const float> logits, int32_t target);

struct Estimate {
  double mean = 0;
  double standard_error = 0;  // of the mean, as if the values were independent; 0 for fewer than two
};
Estimate estimate(std::span<const double> values);
// Of the differences a[i] - b[i]: what both have in common drops out of the error.
Estimate estimate_difference(std::span<const double> a, std::span<const double> b);

// The value below which `fraction` of them lie, interpolated between neighbours. `sorted` is ascending and not empty.
double quantile(std::span<const double> sorted, double fraction);

}  // namespace millrace
