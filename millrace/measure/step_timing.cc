#include "millrace/measure/step_timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "millrace/base/clock.h"
#include "millrace/base/system_memory.h"
#include "millrace/measure/machine_probe.h"

namespace millrace {
namespace {

struct Phase {
  bool decodes;
  PhaseResult result;
  std::vector<std::vector<OpCost>> steps;  // costs of each operation
  std::optional<ProfileSampler> sampler;
};

std::string title(const StepTimingOptions& options, bool decodes) {
  const std::string each = options.batch > 1 ? fmt::format(" of {} sequences", options.batch) : "";
  const std::string depth = options.depth > 0 ? fmt::format(" after {}", options.depth) : "";
  if (!decodes) return fmt::format("prefill of {} tokens{}{}", options.prompt_tokens, each, depth);
  return fmt::format("decode step{}, {} tokens{}", each, options.new_tokens, depth);
}

}  // namespace

double mbu(const PhaseResult& phase, const MachineBound& bound) { return bound.memory_seconds(phase.cost) / phase.median_seconds(); }

double mfu(const PhaseResult& phase, const MachineBound& bound) { return bound.compute_seconds(phase.cost) / phase.median_seconds(); }

Result<StepTimingResult> time_steps(CpuExecutor& executor, ThreadPool& pool, const ThreadProfile& machine,
                                    const StepTimingOptions& options) {
  MR_ASSIGN_OR_RETURN(SequenceBatch batch,
                      SequenceBatch::create(executor, options.batch, options.depth + std::max(options.prompt_tokens, options.new_tokens)));
  const auto ignore = [](const StepPlan&) {};
  if (options.depth > 0) batch.append(options.depth, options.chunk, true, ignore);
  std::vector<Phase> phases;
  if (options.prompt_tokens > 0) phases.push_back({false, {.tokens = options.batch * options.prompt_tokens}, {}, {}});
  if (options.new_tokens > 0) phases.push_back({true, {.tokens = options.batch * options.new_tokens}, {}, {}});
  const auto run = [&](const Phase& phase, const SequenceBatch::OnStep& on_step) {
    batch.rewind(options.depth);
    if (!phase.decodes) return batch.append(options.prompt_tokens, options.chunk, true, on_step);
    for (int64_t i = 0; i < options.new_tokens; ++i) batch.append(1, options.batch, false, on_step);
  };

  for (Phase& phase : phases) {
    run(phase, [&](const StepPlan& plan) {
      phase.steps.push_back(step_cost(executor, plan));
      for (const OpCost& cost : phase.steps.back()) phase.result.cost += cost;
    });
  }
  StepTimingResult result;
  result.bound = machine_bound(machine, executor.options().isa);
  result.memory_bytes_per_second = result.bound.bytes_per_second;
  result.bandwidth_source = "memory";
  std::optional<ReadStream> stream;
  if (!phases.empty()) {
    result.step_bytes = phases.back().result.cost.bytes() / static_cast<int64_t>(phases.back().steps.size());
    MR_ASSIGN_OR_RETURN(ReadStream made,
                        ReadStream::create(std::min({result.step_bytes, int64_t{1} << 30, available_memory_bytes() / 4}), true, pool));
    stream.emplace(std::move(made));
  }
  for (int repeat = 0; repeat < options.repeat; ++repeat) {
    if (stream) result.step_bytes_per_second = std::max(result.step_bytes_per_second, stream->measure(pool, 0.06).best);
    for (Phase& phase : phases) {
      const double start = steady_seconds();
      run(phase, ignore);
      phase.result.seconds.push_back(steady_seconds() - start);
    }
  }
  StepTimes times;
  if (options.profile) executor.set_times(&times);
  for (int repeat = 0; options.profile && repeat < options.repeat; ++repeat) {
    for (Phase& phase : phases) {
      if (!phase.sampler) phase.sampler.emplace(executor);
      run(phase, [&](const StepPlan& plan) {
        phase.sampler->add(plan, times);
        if (phase.decodes) phase.sampler->close_sample();
      });
      if (!phase.decodes) phase.sampler->close_sample();
    }
  }
  executor.set_times(nullptr);
  const auto consider = [&](double bytes_per_second, const char* source) {
    if (bytes_per_second <= result.bound.bytes_per_second) return;
    result.bound.bytes_per_second = bytes_per_second;
    result.bandwidth_source = source;
  };
  consider(result.step_bytes_per_second, "step");
  for (Phase& phase : phases) {
    std::sort(phase.result.seconds.begin(), phase.result.seconds.end());
    if (phase.decodes) consider(static_cast<double>(phase.result.cost.bytes()) / phase.result.seconds.front(), "decode");
  }
  for (Phase& phase : phases) {
    for (const auto& step : phase.steps) {
      for (const OpCost& cost : step) phase.result.bound_seconds += result.bound.seconds(cost);
    }
    if (phase.sampler) phase.result.profile = phase.sampler->profile(title(options, phase.decodes), result.bound, options.profile_layers);
    (phase.decodes ? result.decode : result.prefill) = std::move(phase.result);
  }
  return result;
}

}  // namespace millrace
