#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

// Ways of choosing the tokens that a draw is among. None sorts the vocabulary: thresholds are found by selection.
namespace millrace {

// A value (a logit or a weight) and the token that has it.
using Candidate = std::pair<float, int32_t>;

// The k tokens of the largest logits, best first and the lower id first among equals, without those below `lowest` and those that are
// -infinity. k is at least 1.
void select_top_k(std::span<const float> logits, int64_t k, float lowest, std::vector<Candidate>& best);

// In the following, candidates have weights in (0, 1]. What stays keeps its order; "first" is by that order.

// The smallest set, largest weights first and the first among equals, that holds `needed` of their sum.
void keep_top_p(std::vector<Candidate>& candidates, double needed, std::vector<double>& sums);

// The smallest set, nearest to the entropy first, that holds typical_p of the sum. logits[id] is what candidate id's weight was made of:
// exp((logit - max_logit) * inverse_temperature).
void keep_typical(std::vector<Candidate>& candidates, double typical_p, std::span<const float> logits, float max_logit,
                  float inverse_temperature, std::vector<uint32_t>& keys, std::vector<double>& sums);

// Of the candidates that have at least `threshold` of the sum only the least likely one stays, the last among equals.
void exclude_top_choices(std::vector<Candidate>& candidates, double threshold);

double sum_of_weights(std::span<const Candidate> candidates);

}  // namespace millrace
