// What is asked of a server: prompts and lengths, all of them functions of a seed and a request's index, the same on every machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "millrace/base/status.h"

namespace millrace {

// A source of random numbers that is the same everywhere, which the standard library's distributions are not. splitmix64.
class LoadRandom {
 public:
  explicit LoadRandom(uint64_t seed, uint64_t stream = 0);
  uint64_t next();
  double uniform();                                // above 0, to 1
  double exponential() { return -log_uniform(); }  // mean 1
  double normal();                                 // mean 0, deviation 1

 private:
  double log_uniform();
  uint64_t state_;
};

// Lengths whose logarithm is normal: `median`, and `sigma` of the logarithm.
struct LogNormal {
  double median = 0, sigma = 0;
};

enum class Lengths {
  kFixed,
  // As long as a chat's: two log-normal distributions, with medians and spreads of our choice (below), so that the mean prompt has 215 and
  // the mean answer 198 tokens. A published run of vLLM's benchmark over 1,000 of ShareGPT's conversations had means of 230 and 203
  // (vllm-project/vllm, pull request 18566). Its limits (is_valid_sequence): prompts below 4 or above 1,024 tokens, answers below 4 and
  // pairs above 2,048 are drawn again.
  kShareGpt,
};
inline constexpr LogNormal kShareGptPrompt{159, 0.93}, kShareGptOutput{171, 0.545};

struct WorkloadOptions {
  Lengths lengths = Lengths::kFixed;
  int64_t prompt_tokens = 256, output_tokens = 128;  // where fixed
  int64_t shared_prefix_tokens = 0;                  // before each prompt, the same in all of them
  uint64_t seed = 0;
  std::vector<std::string> words;  // that prompts are made of, in order from a random place on; empty: common English words at random
};

// How many tokens words have in a server's vocabulary: tokens = per_word * words + extra.
struct TokenScale {
  double per_word = 1;
  double extra = 0;  // of a template, or of a token at the beginning
};

struct PlannedRequest {
  std::string prompt;
  int64_t prompt_tokens = 0;  // aimed at, with the shared prefix
  int64_t output_tokens = 0;
};

class Workload {
 public:
  explicit Workload(WorkloadOptions options);

  void set_scale(const TokenScale& scale) { scale_ = scale; }
  // Request `index` of load number `point`: no two of them have the same words, but for the shared prefix.
  PlannedRequest request(int64_t point, int64_t index) const;
  // A prompt of so many words, for finding the scale.
  std::string words(int64_t num_words, uint64_t stream) const;
  // When request `index` arrives, in seconds: the sum of so many exponential gaps of mean 1 / `rate`. Asked for in order.
  double arrival_gap_s(int64_t point, int64_t index, double rate) const;

 private:
  void append_words(std::string& text, int64_t num_words, uint64_t stream) const;

  const WorkloadOptions options_;
  TokenScale scale_;
};

// The words of a text file. Errors: not found, or fewer than 2 words.
Result<std::vector<std::string>> read_words(const std::string& path);

}  // namespace millrace
