#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <vector>

#include "millrace/sampling/sampling.h"

// Time of one draw over a vocabulary, for the common parameters. Bound: one pass over the logits at cache speed (about 4 bytes a cycle
// and more) for greedy; with a temperature one exponential a token.
namespace millrace {
namespace {

void measure(const char* name, const std::vector<float>& logits, const SamplingParams& params) {
  SamplingScratch scratch;
  SampledToken token;
  SamplingInput input;
  input.params = &params;
  const std::vector<int32_t> completion(200, 5);
  input.completion_tokens = completion;
  std::vector<double> micros;
  for (int i = 0; i < 60; ++i) {
    input.position = static_cast<uint64_t>(i);
    const auto start = std::chrono::steady_clock::now();
    sample(logits, input, scratch, token);
    micros.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(micros.begin(), micros.end());
  fmt::print("{:7} tokens  {:34} {:8.1f} us median  {:6.2f} ns a token\n", logits.size(), name, micros[micros.size() / 2],
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
    params.top_p = 0.95f;
    measure("temperature 0.8, top_p 0.95", logits, params);
    params.top_k = 50;
    measure("temperature 0.8, top_k 50, top_p 0.95", logits, params);
    params.repetition_penalty = 1.1f;
    measure("... repetition_penalty 1.1", logits, params);
    params.num_logprobs = 5;
    measure("... logprobs 5", logits, params);
  }
  return 0;
}
