#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

// Logits to token, as a pure function of its inputs: no state, no history of other requests. What mirostat remembers comes in and goes out.
namespace millrace {

// vLLM's SamplingParams, the part that acts on logits, and what llama.cpp has besides. Names and neutral defaults are theirs.
struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy
  float top_p = 1.0f;               // (0, 1]
  int32_t top_k = 0;                // 0 or -1: all
  float min_p = 0.0f;               // [0, 1], relative to the largest probability
  float presence_penalty = 0.0f;    // over completion tokens
  float frequency_penalty = 0.0f;   // over completion tokens
  float repetition_penalty = 1.0f;  // over prompt and completion tokens
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> allowed_token_ids;       // only these may be drawn; empty: all
  std::vector<std::vector<int32_t>> bad_words;  // token sequences, none empty, none of which a completion contains
  int32_t num_logprobs = -1;                    // -1: none; k: the sampled token's and the k most likely

  float typical_p = 1.0f;        // (0, 1]: the tokens whose information is nearest to the entropy. Meister et al. 2022, arXiv:2202.00666
  float top_n_sigma = -1.0f;     // above 0: logits within so many standard deviations of the largest. Tang et al. 2024, arXiv:2411.07641
  float xtc_probability = 0.0f;  // [0, 1]: how often "exclude top choices" acts
  float xtc_threshold = 0.1f;    // of the tokens at least so likely it leaves the least likely one; above 0.5 it does nothing
  // DRY ("don't repeat yourself", of text-generation-webui): a token that would prolong a repetition of at least dry_allowed_length
  // tokens to L + 1 loses dry_multiplier * dry_base^(L - dry_allowed_length). Over prompt and completion.
  float dry_multiplier = 0.0f;      // 0: off
  float dry_base = 1.75f;           // at least 1
  int32_t dry_allowed_length = 2;   // at least 1
  int32_t dry_penalty_last_n = -1;  // tokens looked back at; -1: all, 0: none
  std::shared_ptr<const std::vector<int32_t>>
      dry_breakers;  // sorted ids, across which nothing repeats and which are never penalized; null: none
  // 2: Mirostat 2.0 (Basu et al. 2021, arXiv:2007.14966) chooses in the place of top_k, top_p, min_p, typical_p, top_n_sigma and XTC. 0:
  // off.
  int32_t mirostat = 0;
  float mirostat_tau = 5.0f;  // bits of surprise aimed at, at least 0
  float mirostat_eta = 0.1f;  // how fast it gets there, [0, 1]

  // A draw needs to know the outcome of the one before (SamplingInput::mirostat_mu): two positions of a sequence cannot be drawn in one
  // step.
  bool needs_previous_draw() const { return mirostat == 2; }
};

struct SamplingInput {
  const SamplingParams* params = nullptr;
  uint64_t seed = 0;                                                    // of the request (or drawn for it)
  uint64_t sequence = 0;                                                // index among the request's n
  uint64_t position = 0;                                                // index of the token to be drawn among the completion's
  std::span<const int32_t> prompt_tokens = {}, completion_tokens = {};  // for penalties
  std::span<const uint32_t> allowed = {};   // bitmask [ceil(vocab_size / 32)] of tokens that may be drawn; empty: all
  std::span<const int32_t> forbidden = {};  // ids that must not be drawn (min_tokens: the stop tokens)
  std::optional<double> mirostat_mu = {};   // SampledToken::mirostat_mu of the draw before; absent at a sequence's first
  int32_t given = -1;  // at least 0: nothing is drawn, and this token, in [0, vocab_size), gets its logprob and rank: a prompt's
};

struct SampledToken {
  int32_t id = -1;
  bool finite = true;                                   // false: a logit was NaN or infinite, and id is meaningless
  double mirostat_mu = 0;                               // with mirostat: the bits of surprise that the next draw tolerates
  float logprob = 0;                                    // of id under the unmodified logits' softmax; only with num_logprobs >= 0
  std::vector<std::pair<int32_t, float>> top_logprobs;  // most likely first
  int64_t rank = 0;                                     // of SamplingInput::given: 1 is the likeliest; among equals the lower id goes first
};

// Reused between calls, so that a draw allocates nothing once the vectors have grown. What is in it means nothing to a caller.
struct SamplingScratch {
  std::vector<float> logits;
  std::vector<float> weights;
  std::vector<std::pair<float, int32_t>> candidates;
  std::vector<uint32_t> token_counts;  // all zero between calls
  std::vector<double> sums;
  std::vector<uint32_t> keys;
  std::vector<int32_t> context;
  std::vector<int32_t> match_lengths;
};

// Draws one token. The random number is a counter of (seed, sequence, position): the same inputs give the same token, in any company.
//
//   logits  [vocab_size], unmodified; a NaN or an infinity among them makes out.finite false
//
// Order: logit_bias, penalties and DRY, masks; temperature; then what vLLM has before what llama.cpp adds, each over what the ones before
// left: top_n_sigma, min_p, top_k, typical_p, top_p, XTC. Among equals the lower id goes first, in greedy choice, in top_k (which keeps
// exactly k), in typical_p and in top_p (the smallest set whose probability reaches it). A temperature below 1e-5 is greedy: the likeliest
// token after penalties and masks. out.id is -1 when the masks leave no token. Parameters outside the ranges above are the caller's
// mistake; tokens of prompt and completion must be in [0, vocab_size), other ids that are not are of no effect. Time is linear in the
// vocabulary and, for penalties and DRY, in the tokens looked at; nothing sorts more than the top_k.
void sample(std::span<const float> logits, const SamplingInput& input, SamplingScratch& scratch, SampledToken& out);

}  // namespace millrace
