#include "millrace/sampling/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "millrace/base/check.h"
#include "millrace/sampling/philox.h"
#include "millrace/sampling/softmax.h"

namespace millrace {
namespace {

constexpr float kGreedyBelow = 1e-5f;
constexpr float kExcluded = -std::numeric_limits<float>::infinity();

using Candidate = std::pair<float, int32_t>;

bool more_likely(const Candidate& a, const Candidate& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; }

// The k best of `logits`, best first, excluded ones left out. One comparison for almost every logit: the buffer holds up to 2k
// candidates, and whenever it is full its lower half goes and the bar rises.
void select_top_k(std::span<const float> logits, int64_t k, std::vector<Candidate>& best) {
  best.clear();
  const std::size_t keep = static_cast<std::size_t>(k);
  const std::size_t capacity = std::max<std::size_t>(2 * keep, 64);
  float bar = kExcluded;
  const auto cut = [&] {
    std::nth_element(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(keep) - 1, best.end(), more_likely);
    best.resize(keep);
    bar = best.back().first;
  };
  for (std::size_t id = 0; id < logits.size(); ++id) {
    // Ids ascend, so a logit equal to the bar ranks behind all that are kept.
    if (logits[id] > bar) {
      best.emplace_back(logits[id], static_cast<int32_t>(id));
      if (best.size() == capacity) cut();
    }
  }
  if (best.size() > keep) cut();
  std::sort(best.begin(), best.end(), more_likely);
}

void add_penalties(const SamplingInput& input, std::vector<uint32_t>& token_counts, std::span<float> logits) {
  const SamplingParams& params = *input.params;
  if (params.repetition_penalty == 1.0f && params.presence_penalty == 0 && params.frequency_penalty == 0) return;
  token_counts.resize(std::max(token_counts.size(), logits.size()), 0);
  constexpr uint32_t kInPrompt = 1u << 31;  // the rest counts the completion
  const bool repetition = params.repetition_penalty != 1.0f;
  if (repetition) {
    for (const int32_t id : input.prompt_tokens) token_counts[static_cast<std::size_t>(id)] |= kInPrompt;
  }
  for (const int32_t id : input.completion_tokens) ++token_counts[static_cast<std::size_t>(id)];
  // Each distinct token is penalized at its first occurrence, which also sets its count back to zero.
  const auto penalize = [&](int32_t id) {
    uint32_t& seen = token_counts[static_cast<std::size_t>(id)];
    if (seen == 0) return;
    float logit = logits[static_cast<std::size_t>(id)];
    if (repetition) logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (const uint32_t count = seen & ~kInPrompt; count > 0) {
      logit -= params.frequency_penalty * static_cast<float>(count);
      logit -= params.presence_penalty;
    }
    // A tiny or huge repetition penalty must not turn a finite logit into an infinity.
    logits[static_cast<std::size_t>(id)] = std::clamp(logit, -1e30f, 1e30f);
    seen = 0;
  };
  for (const int32_t id : input.completion_tokens) penalize(id);
  if (repetition) {
    for (const int32_t id : input.prompt_tokens) penalize(id);
  }
}

bool changes_logits(const SamplingInput& input) {
  const SamplingParams& params = *input.params;
  return !params.logit_bias.empty() || params.repetition_penalty != 1.0f || params.presence_penalty != 0 || params.frequency_penalty != 0 ||
         !input.allowed.empty() || !input.forbidden.empty();
}

void change_logits(std::span<const float> logits, const SamplingInput& input, SamplingScratch& scratch) {
  scratch.logits.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : input.params->logit_bias) {
    float& logit = scratch.logits[static_cast<std::size_t>(id)];
    logit = std::clamp(logit + bias, -1e30f, 1e30f);
  }
  add_penalties(input, scratch.token_counts, scratch.logits);
  if (!input.allowed.empty()) {
    for (std::size_t id = 0; id < logits.size(); ++id) {
      if ((input.allowed[id / 32] >> (id % 32) & 1) == 0) scratch.logits[id] = kExcluded;
    }
  }
  for (const int32_t id : input.forbidden) scratch.logits[static_cast<std::size_t>(id)] = kExcluded;
}

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

// Keeps, in order of ids, the smallest set of weights, largest first and lower id first among equals, that holds top_p of their sum.
// First all that is negligible goes: were every weight as small as (1 - top_p) * sum / size, together they would be no more than what
// is dropped. Then a radix selection on the bits of the weights (of positive floats the order of bits is the order of values) finds the
// weight at which the set ends, in three passes and without a sort.
void keep_top_p(std::span<const float> weights, double top_p, std::vector<Candidate>& kept, std::vector<double>& sums) {
  constexpr int kShifts[] = {20, 10, 0};  // bits 20.. have at most 1016 values for weights up to 1
  const double total = ordered_sum(weights);
  const float negligible = static_cast<float>(0.999 * (1 - top_p) * total / static_cast<double>(weights.size()));
  kept.clear();
  for (std::size_t id = 0; id < weights.size(); ++id) {
    if (weights[id] > negligible) kept.emplace_back(weights[id], static_cast<int32_t>(id));
  }
  const double needed = top_p * total;
  double taken = 0;  // of weights above everything with the current prefix
  uint32_t prefix = 0;
  for (const int shift : kShifts) {
    sums.assign(1024, 0.0);
    for (const Candidate& candidate : kept) {
      const uint32_t bits = std::bit_cast<uint32_t>(candidate.first);
      if (shift == 20 || bits >> (shift + 10) == prefix) sums[bits >> shift & 1023] += static_cast<double>(candidate.first);
    }
    uint32_t digit = 1023;
    while (digit > 0 && taken + sums[digit] < needed) taken += sums[digit--];
    // Rounding may leave `needed` beyond the sum: then the set ends at the smallest weight there is.
    if (sums[digit] == 0) {
      while (digit < 1023 && sums[digit] == 0) ++digit;
      taken -= sums[digit];
    }
    prefix = prefix << 10 | digit;
  }
  const float threshold = std::bit_cast<float>(prefix);
  std::erase_if(kept, [&](const Candidate& candidate) {
    if (candidate.first > threshold) return false;
    if (candidate.first < threshold || taken >= needed) return true;
    taken += static_cast<double>(candidate.first);
    return false;
  });
}

int32_t draw_from_top_k(std::span<const float> logits, const SamplingInput& input, SamplingScratch& scratch) {
  const SamplingParams& params = *input.params;
  select_top_k(logits, params.top_k, scratch.candidates);
  std::vector<Candidate>& candidates = scratch.candidates;
  if (candidates.empty()) return -1;
  scratch.weights.resize(candidates.size());
  for (std::size_t i = 0; i < candidates.size(); ++i) scratch.weights[i] = candidates[i].first;
  std::span<float> weights(scratch.weights);
  softmax_weights(weights, candidates[0].first, 1.0f / params.temperature, weights);
  // Sorted: what min_p and top_p drop is a tail.
  std::size_t kept = weights.size();
  while (kept > 1 && weights[kept - 1] < params.min_p) --kept;
  if (params.top_p < 1.0f) {
    const double needed = static_cast<double>(params.top_p) * ordered_sum(weights.first(kept));
    double taken = 0;
    std::size_t count = 0;
    while (count < kept && (count == 0 || taken < needed)) taken += static_cast<double>(weights[count++]);
    kept = count;
  }
  const int32_t drawn = draw(weights.first(kept), uniform_at(input.seed, input.sequence, input.position), scratch.sums);
  return candidates[static_cast<std::size_t>(drawn)].second;
}

int32_t draw_from_all(std::span<const float> logits, float max_logit, const SamplingInput& input, SamplingScratch& scratch) {
  const SamplingParams& params = *input.params;
  scratch.weights.resize(logits.size());
  std::span<float> weights(scratch.weights);
  softmax_weights(logits, max_logit, 1.0f / params.temperature, weights);
  // The largest weight is 1, so min_p is compared with weights as they are.
  if (params.min_p > 0) {
    for (float& weight : weights) weight = weight < params.min_p ? 0 : weight;
  }
  const double u = uniform_at(input.seed, input.sequence, input.position);
  if (params.top_p >= 1.0f) return draw(weights, u, scratch.sums);
  keep_top_p(weights, static_cast<double>(params.top_p), scratch.candidates, scratch.sums);
  for (std::size_t i = 0; i < scratch.candidates.size(); ++i) weights[i] = scratch.candidates[i].first;
  const int32_t drawn = draw(weights.first(scratch.candidates.size()), u, scratch.sums);
  return scratch.candidates[static_cast<std::size_t>(drawn)].second;
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
  select_top_k(logits, k, candidates);
  for (const auto& [logit, id] : candidates) out.top_logprobs.emplace_back(id, logprob(logit));
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

  std::span<const float> changed = logits;
  if (changes_logits(input)) {
    change_logits(logits, input, scratch);
    changed = scratch.logits;
  }
  const float max_logit = largest(changed);
  if (max_logit != kExcluded) {
    if (params.temperature < kGreedyBelow) {
      out.id = static_cast<int32_t>(std::find(changed.begin(), changed.end(), max_logit) - changed.begin());
    } else if (params.top_k > 0 && params.top_k < static_cast<int64_t>(logits.size())) {
      out.id = draw_from_top_k(changed, input, scratch);
    } else {
      out.id = draw_from_all(changed, max_logit, input, scratch);
    }
  }
  if (params.num_logprobs >= 0) add_logprobs(logits, params.num_logprobs, scratch.candidates, out);
}

}  // namespace millrace
