#include "millrace/sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "millrace/base/check.h"
#include "millrace/sampling/logit_changes.h"
#include "millrace/sampling/philox.h"
#include "millrace/sampling/softmax.h"
#include "millrace/sampling/truncation.h"

namespace millrace {
namespace {

constexpr float kGreedyBelow = 1e-5f;
constexpr float kExcluded = -std::numeric_limits<float>::infinity();

// The index at which the running sum of `weights` first exceeds u * total, u in [0, 1). Sums of whole blocks first: the sum is
// associated in the same way when it is made and when it is walked, so the walk ends inside.
int32_t draw(std::span<const float> weights, double u, std::vector<double>& sums) {
  constexpr std::size_t kBlock = 256;
  sums.clear();
  double total = 0;
  for (std::size_t begin = 0; begin < weights.size(); begin += kBlock) {
    sums.push_back(ordered_sum(weights.subspan(begin, std::min(kBlock, weights.size() - begin))));
    total += sums.back();
  }
  const double target = u * total;
  double before = 0;
  int32_t last = -1;  // with any weight at all, for when rounding leaves the target beyond the last
  for (std::size_t block = 0; block < sums.size(); ++block) {
    if (sums[block] == 0) continue;
    const std::size_t begin = block * kBlock, end = std::min(begin + kBlock, weights.size());
    const bool inside = before + sums[block] > target;
    double running = before;
    for (std::size_t i = begin; i < end; ++i) {
      if (weights[i] == 0) continue;
      last = static_cast<int32_t>(i);
      running += static_cast<double>(weights[i]);
      if (inside && running > target) return last;
    }
    if (inside) return last;
    before += sums[block];
  }
  return last;
}

// The least logit that top_n_sigma leaves.
float lowest_logit(std::span<const float> logits, float max_logit, const SamplingParams& params) {
  if (params.top_n_sigma <= 0) return kExcluded;
  return static_cast<float>(static_cast<double>(max_logit) -
                            static_cast<double>(params.top_n_sigma) * standard_deviation(logits, max_logit));
}

// The top_k in scratch.candidates, best first, with their weights, without the tail that min_p drops.
void weigh_top_k(std::span<const float> logits, float max_logit, float lowest, const SamplingParams& params, SamplingScratch& scratch) {
  std::vector<Candidate>& candidates = scratch.candidates;
  select_top_k(logits, params.top_k, lowest, candidates);
  scratch.weights.resize(candidates.size());
  for (std::size_t i = 0; i < candidates.size(); ++i) scratch.weights[i] = candidates[i].first;
  softmax_weights(scratch.weights, max_logit, 1.0f / params.temperature, scratch.weights);
  std::size_t kept = candidates.size();
  while (kept > 1 && (scratch.weights[kept - 1] < params.min_p || scratch.weights[kept - 1] == 0)) --kept;
  candidates.resize(kept);
  for (std::size_t i = 0; i < kept; ++i) candidates[i].first = scratch.weights[i];
}

// The weights of all in scratch.weights; those that top_n_sigma and min_p drop are 0.
void weigh_all(std::span<const float> logits, float max_logit, float lowest, const SamplingParams& params, SamplingScratch& scratch) {
  scratch.weights.resize(logits.size());
  std::span<float> weights(scratch.weights);
  softmax_weights(logits, max_logit, 1.0f / params.temperature, weights);
  // The largest weight is 1, so min_p is compared with weights as they are.
  if (params.min_p > 0) {
    for (float& weight : weights) weight = weight < params.min_p ? 0 : weight;
  }
  if (lowest > kExcluded) {
    for (std::size_t id = 0; id < weights.size(); ++id) weights[id] = logits[id] < lowest ? 0 : weights[id];
  }
}

// The sorted candidates' beginning that holds top_p of their sum.
void cut_sorted_tail(std::vector<Candidate>& candidates, double top_p) {
  const double needed = top_p * sum_of_weights(candidates);
  double taken = 0;
  std::size_t count = 0;
  while (count < candidates.size() && (count == 0 || taken < needed)) taken += static_cast<double>(candidates[count++].first);
  candidates.resize(count);
}

int32_t draw_token(std::span<const float> logits, float max_logit, const SamplingInput& input, SamplingScratch& scratch) {
  const SamplingParams& params = *input.params;
  std::vector<Candidate>& candidates = scratch.candidates;
  const float lowest = lowest_logit(logits, max_logit, params);
  const double u = uniform_at(input.seed, input.sequence, input.position);
  const bool typical = params.typical_p < 1.0f;
  const bool top_p = params.top_p < 1.0f;
  const bool exclude_top = params.xtc_probability > 0 && params.xtc_threshold <= 0.5f &&
                           uniform_at(input.seed, input.sequence, input.position, 1) < static_cast<double>(params.xtc_probability);
  const bool top_k = params.top_k > 0 && params.top_k < static_cast<int64_t>(logits.size());
  double total = 0;
  if (top_k) {
    weigh_top_k(logits, max_logit, lowest, params, scratch);
  } else {
    weigh_all(logits, max_logit, lowest, params, scratch);
    if (!typical && !top_p && !exclude_top) return draw(scratch.weights, u, scratch.sums);
    // Before top_p alone all that is negligible can go: were every weight as small as (1 - top_p) * sum / size, together they would be no
    // more than what is dropped.
    float negligible = 0;
    if (top_p && !typical) {
      total = ordered_sum(scratch.weights);
      negligible = static_cast<float>(0.999 * (1 - static_cast<double>(params.top_p)) * total / static_cast<double>(logits.size()));
    }
    candidates.clear();
    for (std::size_t id = 0; id < scratch.weights.size(); ++id) {
      if (scratch.weights[id] > negligible) candidates.emplace_back(scratch.weights[id], static_cast<int32_t>(id));
    }
  }
  if (typical) {
    keep_typical(candidates, static_cast<double>(params.typical_p), logits, max_logit, 1.0f / params.temperature, scratch.keys,
                 scratch.sums);
    total = sum_of_weights(candidates);
  }
  if (top_p && top_k) {
    cut_sorted_tail(candidates, static_cast<double>(params.top_p));
  } else if (top_p) {
    keep_top_p(candidates, static_cast<double>(params.top_p) * total, scratch.sums);
  }
  if (exclude_top) exclude_top_choices(candidates, static_cast<double>(params.xtc_threshold));
  scratch.weights.resize(candidates.size());
  for (std::size_t i = 0; i < candidates.size(); ++i) scratch.weights[i] = candidates[i].first;
  return candidates[static_cast<std::size_t>(draw(scratch.weights, u, scratch.sums))].second;
}

// Among the tokens that surprise by at most mu bits, or the likeliest; then mu moves by the error, so that surprises come to tau on
// average. As in llama.cpp the surprise is that among the tokens that were left.
int32_t draw_mirostat(std::span<const float> logits, float max_logit, const SamplingInput& input, SamplingScratch& scratch, double& mu) {
  const SamplingParams& params = *input.params;
  scratch.weights.resize(logits.size());
  std::span<float> weights(scratch.weights);
  softmax_weights(logits, max_logit, 1.0f / params.temperature, weights);
  const double bar = std::min(1.0, ordered_sum(weights) * std::exp2(-mu));
  bool any = false;
  for (float& weight : weights) {
    weight = static_cast<double>(weight) < bar || (bar == 1.0 && any) ? 0 : weight;
    any = any || weight > 0;
  }
  const int32_t drawn = draw(weights, uniform_at(input.seed, input.sequence, input.position), scratch.sums);
  const double surprise = std::log2(ordered_sum(weights) / static_cast<double>(weights[static_cast<std::size_t>(drawn)]));
  mu -= static_cast<double>(params.mirostat_eta) * (surprise - static_cast<double>(params.mirostat_tau));
  return drawn;
}

void add_logprobs(std::span<const float> logits, int32_t num_logprobs, std::vector<Candidate>& candidates, SampledToken& out) {
  const float max_logit = largest(logits);
  const double log_denominator = std::log(softmax_denominator(logits, max_logit));
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(max_logit) - log_denominator);
  };
  if (out.id >= 0) out.logprob = logprob(logits[static_cast<std::size_t>(out.id)]);
  const int64_t k = std::min<int64_t>(num_logprobs, static_cast<int64_t>(logits.size()));
  if (k == 0) return;
  select_top_k(logits, k, kExcluded, candidates);
  for (const auto& [logit, id] : candidates) out.top_logprobs.emplace_back(id, logprob(logit));
}

int64_t rank_of(std::span<const float> logits, int32_t id) {
  const float logit = logits[static_cast<std::size_t>(id)];
  const auto end_of_lower = logits.begin() + id;
  return 1 + std::count_if(logits.begin(), logits.end(), [logit](float other) { return other > logit; }) +
         std::count(logits.begin(), end_of_lower, logit);
}

}  // namespace

void sample(std::span<const float> logits, const SamplingInput& input, SamplingScratch& scratch, SampledToken& out) {
  MR_CHECK(!logits.empty() && input.params != nullptr, "sampling needs logits and parameters");
  const SamplingParams& params = *input.params;
  out.id = -1;
  out.logprob = 0;
  out.top_logprobs.clear();
  out.finite = all_finite(logits);
  if (!out.finite) return;
  if (input.given >= 0) {
    MR_CHECK(static_cast<std::size_t>(input.given) < logits.size(), "a given token is in the vocabulary");
    out.id = input.given;
    out.rank = rank_of(logits, out.id);
    add_logprobs(logits, std::max(0, params.num_logprobs), scratch.candidates, out);
    return;
  }

  out.mirostat_mu = input.mirostat_mu.value_or(2 * static_cast<double>(params.mirostat_tau));
  std::span<const float> changed = logits;
  if (changes_logits(input)) {
    change_logits(logits, input, scratch);
    changed = scratch.logits;
  }
  const float max_logit = largest(changed);
  if (max_logit != kExcluded) {
    if (params.temperature < kGreedyBelow) {
      out.id = static_cast<int32_t>(std::find(changed.begin(), changed.end(), max_logit) - changed.begin());
    } else if (params.mirostat == 2) {
      out.id = draw_mirostat(changed, max_logit, input, scratch, out.mirostat_mu);
    } else {
      out.id = draw_token(changed, max_logit, input, scratch);
    }
  }
  if (params.num_logprobs >= 0) add_logprobs(logits, params.num_logprobs, scratch.candidates, out);
}

}  // namespace millrace
