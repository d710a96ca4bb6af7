#include "millrace/sampling/logit_changes.h"

#include <algorithm>
#include <limits>

namespace millrace {
namespace {

constexpr float kExcluded = -std::numeric_limits<float>::infinity();
// Extreme parameters must not turn a finite logit into an infinity.
constexpr float kLimit = 1e30f;

bool has_penalties(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0 || params.frequency_penalty != 0;
}

bool has_dry(const SamplingParams& params) { return params.dry_multiplier > 0 && params.dry_penalty_last_n != 0; }

// token_counts as large as the vocabulary; all of it is zero before and after.
void add_penalties(const SamplingInput& input, std::span<uint32_t> token_counts, std::span<float> logits) {
  const SamplingParams& params = *input.params;
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
    logits[static_cast<std::size_t>(id)] = std::clamp(logit, -kLimit, kLimit);
    seen = 0;
  };
  for (const int32_t id : input.completion_tokens) penalize(id);
  if (repetition) {
    for (const int32_t id : input.prompt_tokens) penalize(id);
  }
}

bool is_breaker(const SamplingParams& params, int32_t id) {
  return params.dry_breakers && std::binary_search(params.dry_breakers->begin(), params.dry_breakers->end(), id);
}

// multiplier * base^exponent, up to the limit. By multiplication: one result on every machine.
float dry_penalty(const SamplingParams& params, int32_t exponent) {
  double penalty = static_cast<double>(params.dry_multiplier);
  const double base = static_cast<double>(params.dry_base);
  for (int32_t i = 0; i < exponent && base > 1 && penalty < static_cast<double>(kLimit); ++i) penalty *= base;
  return static_cast<float>(std::min(penalty, static_cast<double>(kLimit)));
}

void add_dry(const SamplingInput& input, SamplingScratch& scratch) {
  const SamplingParams& params = *input.params;
  // The text in reverse, its last token first, as far back as asked for.
  const std::size_t available = input.prompt_tokens.size() + input.completion_tokens.size();
  const std::size_t size =
      params.dry_penalty_last_n < 0 ? available : std::min(available, static_cast<std::size_t>(params.dry_penalty_last_n));
  std::vector<int32_t>& reversed = scratch.context;
  reversed.clear();
  for (auto id = input.completion_tokens.rbegin(); id != input.completion_tokens.rend() && reversed.size() < size; ++id)
    reversed.push_back(*id);
  for (auto id = input.prompt_tokens.rbegin(); id != input.prompt_tokens.rend() && reversed.size() < size; ++id) reversed.push_back(*id);
  // A repetition does not reach across a breaker.
  int32_t length_max = 0;
  while (length_max < static_cast<int32_t>(size) && !is_breaker(params, reversed[static_cast<std::size_t>(length_max)])) ++length_max;
  if (length_max < params.dry_allowed_length) return;
  matches_of_the_end(reversed, scratch.match_lengths);
  // The token after an earlier occurrence of the text's end would prolong the repetition. The longest counts for each token.
  std::vector<uint32_t>& longest = scratch.token_counts;
  for (std::size_t j = 1; j < size; ++j) {
    const int32_t length = std::min(scratch.match_lengths[j], length_max);
    if (length < params.dry_allowed_length || is_breaker(params, reversed[j - 1])) continue;
    uint32_t& seen = longest[static_cast<std::size_t>(reversed[j - 1])];
    seen = std::max(seen, static_cast<uint32_t>(length));
  }
  for (const int32_t id : reversed) {
    uint32_t& length = longest[static_cast<std::size_t>(id)];
    if (length == 0) continue;
    float& logit = scratch.logits[static_cast<std::size_t>(id)];
    logit = std::clamp(logit - dry_penalty(params, static_cast<int32_t>(length) - params.dry_allowed_length), -kLimit, kLimit);
    length = 0;
  }
}

// A sequence may not be completed: its last token goes where the completion ends in all before it.
void exclude_bad_words(const SamplingInput& input, std::span<float> logits) {
  for (const std::vector<int32_t>& word : input.params->bad_words) {
    const std::span<const int32_t> before = std::span(word).first(word.size() - 1);
    if (before.size() > input.completion_tokens.size() || static_cast<std::size_t>(word.back()) >= logits.size()) continue;
    const std::span<const int32_t> end = input.completion_tokens.last(before.size());
    if (std::equal(before.begin(), before.end(), end.begin())) logits[static_cast<std::size_t>(word.back())] = kExcluded;
  }
}

}  // namespace

void matches_of_the_end(std::span<const int32_t> reversed, std::vector<int32_t>& lengths) {
  const std::size_t size = reversed.size();
  lengths.assign(size, 0);
  // [left, right): the match found so far that reaches furthest; within it the beginning repeats, and so do its lengths.
  std::size_t left = 0, right = 0;
  for (std::size_t j = 1; j < size; ++j) {
    std::size_t length = j < right ? std::min(right - j, static_cast<std::size_t>(lengths[j - left])) : 0;
    while (j + length < size && reversed[length] == reversed[j + length]) ++length;
    if (j + length > right) left = j, right = j + length;
    lengths[j] = static_cast<int32_t>(length);
  }
}

bool changes_logits(const SamplingInput& input) {
  const SamplingParams& params = *input.params;
  return !params.logit_bias.empty() || has_penalties(params) || has_dry(params) || !params.bad_words.empty() ||
         !params.allowed_token_ids.empty() || !input.allowed.empty() || !input.forbidden.empty();
}

void change_logits(std::span<const float> logits, const SamplingInput& input, SamplingScratch& scratch) {
  const SamplingParams& params = *input.params;
  const auto in_vocabulary = [&](int32_t id) { return id >= 0 && static_cast<std::size_t>(id) < logits.size(); };
  scratch.logits.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : params.logit_bias) {
    if (!in_vocabulary(id)) continue;
    float& logit = scratch.logits[static_cast<std::size_t>(id)];
    logit = std::clamp(logit + bias, -kLimit, kLimit);
  }
  if (has_penalties(params) || has_dry(params)) scratch.token_counts.resize(std::max(scratch.token_counts.size(), logits.size()), 0);
  if (has_penalties(params)) add_penalties(input, scratch.token_counts, scratch.logits);
  if (has_dry(params)) add_dry(input, scratch);
  if (!params.allowed_token_ids.empty()) {
    // The weights are not needed yet: they keep the few logits that stay.
    scratch.weights.clear();
    for (const int32_t id : params.allowed_token_ids)
      scratch.weights.push_back(in_vocabulary(id) ? scratch.logits[static_cast<std::size_t>(id)] : 0);
    std::fill(scratch.logits.begin(), scratch.logits.end(), kExcluded);
    for (std::size_t i = 0; i < params.allowed_token_ids.size(); ++i) {
      if (in_vocabulary(params.allowed_token_ids[i]))
        scratch.logits[static_cast<std::size_t>(params.allowed_token_ids[i])] = scratch.weights[i];
    }
  }
  if (!input.allowed.empty()) {
    for (std::size_t id = 0; id < logits.size(); ++id) {
      if ((input.allowed[id / 32] >> (id % 32) & 1) == 0) scratch.logits[id] = kExcluded;
    }
  }
  for (const int32_t id : input.forbidden) {
    if (in_vocabulary(id)) scratch.logits[static_cast<std::size_t>(id)] = kExcluded;
  }
  exclude_bad_words(input, scratch.logits);
}

}  // namespace millrace
