#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>

#include "millrace/cli/conversation.h"

namespace millrace::cli {
namespace {

struct SpeculationBenchOptions : ModelOptions, GenerationOptions {
  int64_t new_tokens = 160;
  int repeat = 5;
};

struct Task {
  std::string_view name, instruction;
  bool grounded = true;  // the answer repeats much of the passage
};

constexpr std::string_view kPassage =
    "The mill at Alder Bridge was built in 1743 by Thomas Hale, who had learned his trade in the north. A weir across the river raised the "
    "water by two metres, and a channel of four hundred metres, the mill race, led it "
    "to the wheel. The first wheel was made of oak and turned one pair of stones. In 1802 his grandson, William Hale, replaced it by a "
    "wheel of cast iron, which turned three pairs and could grind nine tonnes of wheat in a "
    "day. A flood carried the weir away in the spring of 1851; the mill stood still for seven months while Anna Hale, who had inherited "
    "it, had a new one built of stone. In 1898 the wheel gave way to a turbine, and from "
    "1911 on the turbine drove a generator as well, which lit the eleven houses of the village. The stones stopped in 1962. Since 1987 the "
    "mill has been a museum, and on the first Sunday of every month the old race is "
    "opened and the turbine turns again.";

constexpr Task kTasks[] = {
    {"copy", "Repeat the following text word for word.\n\n"},
    {"edit", "Write the following text again with the name Hale replaced by Marsh and nothing else changed.\n\n"},
    {"extract", "Copy the sentences of the following text that name a year.\n\n"},
    {"summarize", "Summarize the following text in a few sentences, in its own words.\n\n"},
    {"open", "Tell a story about a child who is afraid of the dark. Do not write about this text:\n\n", false},
};

struct Run {
  std::vector<int32_t> tokens;
  double seconds = 0;  // from the first token to the last
};

Result<Run> run_once(Engine& engine, GenerationRequest request) {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  Run run;
  Status error;
  std::optional<std::chrono::steady_clock::time_point> first;
  const auto added = engine.add(std::move(request), [&](OutputDelta& delta) {
    const auto now = std::chrono::steady_clock::now();
    const std::lock_guard lock(mutex);
    if (!first) first = now;
    run.tokens.insert(run.tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
    run.seconds = std::chrono::duration<double>(now - *first).count();
    if (delta.finish_reason == FinishReason::kError) error = delta.error;
    if (!delta.request_finished) return;
    done = true;
    changed.notify_one();
  });
  if (!added.is_ok()) return added.status();
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return done; });
  if (!error.is_ok()) return error;
  return run;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct TaskResult {
  const Task* task = nullptr;
  int64_t num_tokens = 0, num_draft_tokens = 0, num_accepted_tokens = 0;
  double plain_seconds = 0, speculative_seconds = 0;  // medians
  double plain_rate() const { return static_cast<double>(num_tokens - 1) / plain_seconds; }
  double speculative_rate() const { return static_cast<double>(num_tokens - 1) / speculative_seconds; }
  double ratio() const { return plain_seconds / speculative_seconds; }
};

// The two engines take turns, so that what else the machine does falls on both. Each answers once before, which also teaches it what steps
// take.
Result<TaskResult> measure(const Task& task, const GenerationRequest& request, Engine& plain, Engine& speculative, int repeat) {
  TaskResult result;
  result.task = &task;
  std::vector<double> plain_seconds, speculative_seconds;
  for (int i = 0; i <= repeat; ++i) {
    MR_ASSIGN_OR_RETURN(const Run expected, run_once(plain, request));
    const EngineMetrics before = speculative.metrics();
    MR_ASSIGN_OR_RETURN(const Run got, run_once(speculative, request));
    const EngineMetrics after = speculative.metrics();
    if (got.tokens != expected.tokens)
      return Status::internal(fmt::format("{}: speculation changed the answer, which it never may", task.name));
    result.num_tokens = static_cast<int64_t>(got.tokens.size());
    if (i == 0) continue;
    result.num_draft_tokens += after.num_draft_tokens - before.num_draft_tokens;
    result.num_accepted_tokens += after.num_accepted_tokens - before.num_accepted_tokens;
    plain_seconds.push_back(expected.seconds);
    speculative_seconds.push_back(got.seconds);
  }
  result.num_draft_tokens /= repeat;
  result.num_accepted_tokens /= repeat;
  result.plain_seconds = median(std::move(plain_seconds));
  result.speculative_seconds = median(std::move(speculative_seconds));
  return result;
}

Status run_bench_speculation(const SpeculationBenchOptions& options) {
  MR_ASSIGN_OR_RETURN(auto model, load_decoder(options));
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model->tokenizer());
  GenerationOptions with = options, without = options;
  without.speculative_config = "off";
  MR_ASSIGN_OR_RETURN(auto plain, start_engine(*model, options, without, {}));
  MR_ASSIGN_OR_RETURN(auto speculative, start_engine(*model, options, with, {}));
  std::vector<TaskResult> results;
  for (const Task& task : kTasks) {
    const std::string text = fmt::format("{}{}", task.instruction, kPassage);
    GenerationRequest request;
    if (model->chat_template().is_ok()) {
      MR_ASSIGN_OR_RETURN(request.prompt_tokens, conversation_tokens(*model, {json::object{{"role", "user"}, {"content", text}}}));
    } else {
      MR_ASSIGN_OR_RETURN(request.prompt_tokens, tokenizer->encode(text + "\n\n"));
    }
    MR_ASSIGN_OR_RETURN(request.sampling, sampling_params(*model, *tokenizer, options));
    request.seed = 1;
    request.max_tokens = options.new_tokens;
    MR_ASSIGN_OR_RETURN(const TaskResult result, measure(task, request, *plain.engine, *speculative.engine, options.repeat));
    if (result.num_tokens >= 2) results.push_back(result);
  }
  double plain_seconds = 0, speculative_seconds = 0;
  for (const TaskResult& result : results) {
    if (!result.task->grounded) continue;
    plain_seconds += result.plain_seconds;
    speculative_seconds += result.speculative_seconds;
  }
  const double ratio = speculative_seconds > 0 ? plain_seconds / speculative_seconds : 1;
  if (options.json) {
    json::array tasks;
    for (const TaskResult& result : results) {
      tasks.push_back(json::object{{"task", result.task->name},
                                   {"grounded", result.task->grounded},
                                   {"completion_tokens", result.num_tokens},
                                   {"plain_tokens_per_second", result.plain_rate()},
                                   {"speculative_tokens_per_second", result.speculative_rate()},
                                   {"ratio", result.ratio()},
                                   {"draft_tokens", result.num_draft_tokens},
                                   {"accepted_tokens", result.num_accepted_tokens}});
    }
    fmt::print("{}\n", json::serialize(json::object{{"model", options.model},
                                                    {"isa", isa_name(model->isa())},
                                                    {"threads", model->pool().num_threads()},
                                                    {"repeat", options.repeat},
                                                    {"tasks", std::move(tasks)},
                                                    {"ratio", ratio}}));
    return Status::ok();
  }
  fmt::print("{}, {} threads, {} repeats: decode tokens/s (medians), equal answers with and without drafts\n", isa_name(model->isa()),
             model->pool().num_threads(), options.repeat);
  fmt::print("  {:<10}{:>7}{:>10}{:>13}{:>8}{:>9}{:>10}\n", "task", "tokens", "plain", "speculative", "ratio", "drafted", "accepted");
  for (const TaskResult& result : results) {
    fmt::print("  {:<10}{:>7}{:>10.1f}{:>13.1f}{:>8.2f}{:>9}{:>10}\n", result.task->name, result.num_tokens, result.plain_rate(),
               result.speculative_rate(), result.ratio(), result.num_draft_tokens, result.num_accepted_tokens);
  }
  fmt::print("  all but the open task: {:.2f} times as fast\n", ratio);
  return Status::ok();
}

}  // namespace

void add_bench_speculation(CLI::App& bench, int& exit_status) {
  auto* command = bench.add_subcommand("speculation", "Decoding with and without draft tokens, on tasks whose answers repeat their prompt");
  auto options = std::make_shared<SpeculationBenchOptions>();
  options->speculative_config = "ngram";
  options->temperature = 0;
  add_model_options(*command, *options);
  add_generation_options(*command, *options);
  command->add_option("--new-tokens", options->new_tokens, "Most tokens of an answer")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->add_option("--repeat", options->repeat)->check(CLI::Range(1, 10000))->capture_default_str();
  command->footer("Example:\n  millrace bench speculation model.gguf --repeat 10");
  command->callback([options, &exit_status] {
    if (const Status status = run_bench_speculation(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
