#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

// Logits to token, as a pure function of its inputs: no state, no history of other requests.
namespace millrace {

// vLLM's SamplingParams, the part that acts on logits. Defaults are vLLM's.
struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy
  float top_p = 1.0f;               // (0, 1]
  int32_t top_k = 0;                // 0 or -1: all
  float min_p = 0.0f;               // [0, 1], relative to the largest probability
  float presence_penalty = 0.0f;    // over completion tokens
  float frequency_penalty = 0.0f;   // over completion tokens
  float repetition_penalty = 1.0f;  // over prompt and completion tokens
  std::vector<std::pair<int32_t, float>> logit_bias;
  int32_t num_logprobs = -1;        // -1: none; k: the sampled token's and the k most likely
};

struct SamplingInput {
  const SamplingParams* params = nullptr;
  uint64_t seed = 0;                // of the request (or drawn for it)
  uint64_t sequence = 0;            // index among the request's n
  uint64_t position = 0;            // index of the token to be drawn among the completion's
  std::span<const int32_t> prompt_tokens = {}, completion_tokens = {};  // for penalties
  std::span<const uint32_t> allowed = {};  // bitmask [ceil(vocab_size / 32)] of tokens that may be drawn; empty: all
  std::span<const int32_t> forbidden = {}; // ids that must not be drawn (min_tokens: the stop tokens)
};

struct SampledToken {
  int32_t id = -1;
  bool finite = true;               // false: a logit was NaN or infinite, and id is meaningless
  float logprob = 0;                // of id under the unmodified logits' softmax; only with num_logprobs >= 0
  std::vector<std::pair<int32_t, float>> top_logprobs;  // most likely first
};

// Reused between calls, so that a draw allocates nothing once the vectors have grown. What is in it means nothing to a caller.
struct SamplingScratch {
  std::vector<float> logits;
  std::vector<float> weights;
  std::vector<std::pair<float, int32_t>> candidates;
  std::vector<uint32_t> token_counts;  // all zero between calls
  std::vector<double> sums;
};

// Draws one token. The random number is a counter of (seed, sequence, position): the same inputs give the same token, in any company.
//
//   logits  [vocab_size], unmodified; a NaN or an infinity among them makes out.finite false
//
// Order, as in vLLM: bias and penalties, mask, temperature, min_p, top_k, top_p. Among equal logits the lower id goes first, in
// greedy choice, in top_k (which keeps exactly k) and in top_p (the smallest set whose probability, after top_k, reaches top_p).
// A temperature below 1e-5 is greedy. out.id is -1 when `allowed` and `forbidden` leave no token. Parameters outside the ranges
// above are the caller's mistake; token ids in the input must be in [0, vocab_size).
void sample(std::span<const float> logits, const SamplingInput& input, SamplingScratch& scratch, SampledToken& out);

}  // namespace millrace
