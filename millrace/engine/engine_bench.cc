#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <vector>

#include "millrace/engine/engine.h"

// What a step costs besides the network: scheduling, block tables, bookkeeping and callbacks, with an executor that computes nothing.
namespace millrace {
namespace {

class IdleExecutor : public Executor {
 public:
  IdleExecutor() {
    info_.vocab_size = info_.sampled_vocab_size = 50'000;
    info_.max_positions = 1 << 20;
    info_.kv_groups.push_back({1, 1, 1, std::nullopt, 1});
  }
  const ExecutorInfo& info() const override { return info_; }
  Status allocate_kv(std::span<const int64_t>) override { return Status::ok(); }
  void enqueue(const StepPlan& plan) override {
    output_.tokens.resize(plan.outputs.size());
    for (SampledToken& token : output_.tokens) token.id = 17;
  }
  const StepOutput& wait() override { return output_; }

 private:
  ExecutorInfo info_;
  StepOutput output_;
};

void measure(int num_sequences, int64_t num_prompt_tokens) {
  IdleExecutor executor;
  EngineOptions options;
  options.max_running_sequences = 256;
  options.kv_bytes = 1 << 20;
  auto engine = std::move(Engine::create(executor, nullptr, options)).value();
  int64_t num_tokens = 0;
  for (int i = 0; i < num_sequences; ++i) {
    GenerationRequest request;
    request.prompt_tokens.assign(static_cast<std::size_t>(num_prompt_tokens), i);
    request.max_tokens = 100'000;
    MR_CHECK(engine->add(request, [&](OutputDelta& delta) { num_tokens += static_cast<int64_t>(delta.token_ids.size()); }).is_ok(),
             "added");
  }
  while (engine->metrics().num_running_sequences < num_sequences || num_tokens < 2 * num_sequences) engine->step();
  constexpr int kSteps = 2000;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kSteps; ++i) engine->step();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print("{:4} sequences, prompts of {:6} tokens: {:8.2f} us a step, {:6.3f} us a token\n", num_sequences, num_prompt_tokens,
             seconds / kSteps * 1e6, seconds / kSteps * 1e6 / num_sequences);
}

}  // namespace
}  // namespace millrace

int main() {
  for (const int num_sequences : {1, 16, 64, 256}) {
    for (const int64_t num_prompt_tokens : {100, 4000}) millrace::measure(num_sequences, num_prompt_tokens);
  }
  return 0;
}
