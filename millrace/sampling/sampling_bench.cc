#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <vector>

#include "millrace/sampling/sampling.h"

// Time of one draw over a vocabulary, for the common parameters and for each method. Bound: one pass over the logits at cache speed (about
// 4 bytes a cycle and more) for greedy; with a temperature one exponential a token.
namespace millrace {
namespace {

void measure(const char* name, const std::vector<float>& logits, const SamplingParams& params) {
  SamplingScratch scratch;
  SampledToken token;
  SamplingInput input;
  input.params = &params;
  // 200 tokens of which many repeat, as penalties and DRY meet them.
  std::vector<int32_t> completion(200);
  for (std::size_t i = 0; i < completion.size(); ++i) completion[i] = static_cast<int32_t>(i % 7 * i % 11);
  input.completion_tokens = completion;
  std::vector<double> micros;
  for (int i = 0; i < 60; ++i) {
    input.position = static_cast<uint64_t>(i);
    const auto start = std::chrono::steady_clock::now();
    sample(logits, input, scratch, token);
    micros.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(micros.begin(), micros.end());
  fmt::print("{:7} tokens  {:38} {:8.1f} us median  {:6.2f} ns a token\n", logits.size(), name, micros[micros.size() / 2],
             micros[micros.size() / 2] * 1e3 / static_cast<double>(logits.size()));
}

}  // namespace
}  // namespace millrace

int main() {
  using namespace millrace;
  for (const std::size_t vocab_size : {49152u, 151936u}) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 2);
    std::vector<float> logits(vocab_size);
    for (float& logit : logits) logit = normal(random);
    // As networks' logits are: some tens of tokens have nearly all of the probability.
    for (int i = 0; i < 50; ++i) logits[random() % vocab_size] += 16 * std::exp(-0.05f * static_cast<float>(i));
    SamplingParams params;
    params.temperature = 0;
    measure("greedy", logits, params);
    params.temperature = 0.8f;
    measure("temperature 0.8", logits, params);
    const SamplingParams warm = params;  // the methods below each beside the temperature alone
    params.top_p = 0.95f;
    measure("temperature 0.8, top_p 0.95", logits, params);
    params.top_k = 50;
    measure("temperature 0.8, top_k 50, top_p 0.95", logits, params);
    params.repetition_penalty = 1.1f;
    measure("... repetition_penalty 1.1", logits, params);
    params.num_logprobs = 5;
    measure("... logprobs 5", logits, params);
    const auto beside_temperature = [&](const char* name, const auto& set) {
      SamplingParams one = warm;
      set(one);
      measure(name, logits, one);
    };
    beside_temperature("min_p 0.05", [](auto& p) { p.min_p = 0.05f; });
    beside_temperature("typical_p 0.9", [](auto& p) { p.typical_p = 0.9f; });
    beside_temperature("top_n_sigma 1", [](auto& p) { p.top_n_sigma = 1; });
    beside_temperature("xtc_probability 1", [](auto& p) { p.xtc_probability = 1; });
    beside_temperature("top_k 50, typical_p 0.9, xtc 1", [](auto& p) { p.top_k = 50, p.typical_p = 0.9f, p.xtc_probability = 1; });
    beside_temperature("mirostat 2", [](auto& p) { p.mirostat = 2; });
    beside_temperature("dry_multiplier 0.8", [](auto& p) { p.dry_multiplier = 0.8f; });
    beside_temperature("presence_penalty 0.5", [](auto& p) { p.presence_penalty = 0.5f; });
    beside_temperature("logit_bias of 1 token", [](auto& p) { p.logit_bias = {{5, 1.0f}}; });
    beside_temperature("bad_words, 10 of 2 tokens", [](auto& p) { p.bad_words.assign(10, {5, 6}); });
    beside_temperature("allowed_token_ids, 4", [](auto& p) { p.allowed_token_ids = {5, 6, 7, 8}; });
  }
  return 0;
}
