#pragma once

#include <span>

// The passes over the whole vocabulary that every draw needs. They are compiled for the baseline only: one result on every machine.
namespace millrace {

bool all_finite(std::span<const float> values);

// The largest value; values must not be empty. NaN anywhere makes the result meaningless.
float largest(std::span<const float> values);

// weights[i] = exp((logits[i] - max_logit) * inverse_temperature), within 2 units in the last place and 0 below exp(-87).
// max_logit is at least every logit; a logit of -infinity weighs 0. weights may be logits.
void softmax_weights(std::span<const float> logits, float max_logit, float inverse_temperature, std::span<float> weights);

// sum over i of exp(logits[i] - max_logit), in double.
double softmax_denominator(std::span<const float> logits, float max_logit);

// The standard deviation (of the population) of those values that are not -infinity; max_value is at least each of them, one at least is
// finite.
double standard_deviation(std::span<const float> values, float max_value);

// The sum in double, in an order that depends on the length only.
double ordered_sum(std::span<const float> values);

}  // namespace millrace
