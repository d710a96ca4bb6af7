#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "millrace/base/cache_folder.h"
#include "millrace/cli/command.h"
#include "millrace/measure/probe_cache.h"
#include "millrace/measure/profile_svg.h"
#include "millrace/measure/step_timing.h"

namespace millrace::cli {
namespace {

struct BenchOptions : ModelOptions {
  StepTimingOptions steps;
  std::string kv_cache_dtype = "auto", profile_svg;
  std::vector<int> scaling;  // numbers of threads to compare
};

struct Rate {
  double median = 0, best = 0, worst = 0;  // tokens per second
};

Rate rate_of(const std::optional<PhaseResult>& phase) {
  if (!phase) return {};
  const auto tokens = static_cast<double>(phase->tokens);
  return {tokens / phase->median_seconds(), tokens / phase->seconds.front(), tokens / phase->seconds.back()};
}

json::object to_json(const Rate& rate) { return {{"median", rate.median}, {"best", rate.best}, {"worst", rate.worst}}; }

json::object operations_json(const std::array<double, kNumArithmetics>& values) {
  json::object object;
  for (std::size_t a = 0; a < kNumArithmetics; ++a) object[arithmetic_name(static_cast<Arithmetic>(a))] = values[a];
  return object;
}

json::object phase_json(const PhaseResult& phase, const MachineBound& bound) {
  json::object object{{"tokens", phase.tokens},
                      {"seconds_median", phase.median_seconds()},
                      {"weight_bytes", phase.cost.weight_bytes},
                      {"kv_bytes", phase.cost.kv_bytes},
                      {"operations", operations_json(phase.cost.operations)},
                      {"bound_seconds", phase.bound_seconds},
                      {"mbu", mbu(phase, bound)},
                      {"mfu", mfu(phase, bound)},
                      {"share_of_bound", phase.bound_seconds / phase.median_seconds()}};
  if (phase.profile) object["profile"] = profile_json(*phase.profile);
  return object;
}

void print_phase(const char* name, int64_t tokens_each, const PhaseResult& phase, const MachineBound& bound) {
  const Rate rate = rate_of(phase);
  fmt::print("  {:<8}{:>5}  {:>9.1f}  {:<20}  MBU {:>5.1f} %  MFU {:>5.1f} %  of its bound {:>5.1f} %\n", name, tokens_each, rate.median,
             fmt::format("({:.1f} - {:.1f})", rate.worst, rate.best), 100 * mbu(phase, bound), 100 * mfu(phase, bound),
             100 * phase.bound_seconds / phase.median_seconds());
}

Status write_svg(const std::string& path, const std::string& heading, const StepTimingResult& result) {
  std::vector<StepProfile> profiles;
  for (const auto* phase : {&result.prefill, &result.decode}) {
    if (*phase && (*phase)->profile) profiles.push_back(*(*phase)->profile);
  }
  std::ofstream file(path, std::ios::binary);
  file << profile_svg(heading, profiles);
  file.close();
  if (!file) return Status::unavailable(fmt::format("cannot write {}", path));
  return Status::ok();
}

// Rates of the same steps on each number of threads, one after the other.
Status run_scaling(const BenchOptions& options) {
  MR_ASSIGN_OR_RETURN(const KvDType kv_dtype, parse_kv_dtype(options.kv_cache_dtype));
  const StepTimingOptions& steps = options.steps;
  struct Row {
    int threads;
    Rate prefill, decode;
  };
  std::vector<Row> rows;
  std::string isa;
  for (const int threads : options.scaling) {
    ModelOptions with_threads = options;
    with_threads.threads = threads;
    MR_ASSIGN_OR_RETURN(auto model, load_decoder(with_threads));
    MR_ASSIGN_OR_RETURN(auto executor,
                        model->make_executor(GemmPath::kFast, kv_dtype, static_cast<int32_t>(std::max(steps.chunk, steps.batch))));
    const int probed_threads = std::min(threads, usable_cpus());
    MR_ASSIGN_OR_RETURN(const ProbedMachine machine, probe_machine_cached(std::span(&probed_threads, 1), cache_folder(), false));
    MR_ASSIGN_OR_RETURN(const StepTimingResult result,
                        time_steps(*executor, model->pool(), *machine.profile.of_threads(probed_threads), steps));
    isa = isa_name(model->isa());
    rows.push_back({threads, rate_of(result.prefill), rate_of(result.decode)});
  }
  const auto ratio = [](const Rate& rate, const Rate& first) { return first.median > 0 ? rate.median / first.median : 0.0; };
  if (options.json) {
    json::array list;
    for (const Row& row : rows) {
      list.push_back(json::object{{"threads", row.threads},
                                  {"prefill_tokens_per_second", to_json(row.prefill)},
                                  {"decode_tokens_per_second", to_json(row.decode)},
                                  {"prefill_ratio", ratio(row.prefill, rows[0].prefill)},
                                  {"decode_ratio", ratio(row.decode, rows[0].decode)}});
    }
    fmt::print("{}\n", json_text(json::object{{"model", options.model},
                                              {"isa", isa},
                                              {"cpus", usable_cpus()},
                                              {"depth", steps.depth},
                                              {"batch", steps.batch},
                                              {"repeat", steps.repeat},
                                              {"scaling", std::move(list)}}));
    return Status::ok();
  }
  fmt::print("{}, {} CPUs, KV {}, depth {}, {} repeats: median (worst - best) tokens/s, and the ratio to {} thread{}\n", isa, usable_cpus(),
             kv_dtype_name(kv_dtype), steps.depth, steps.repeat, rows[0].threads, rows[0].threads == 1 ? "" : "s");
  const auto column = [&](const Rate& rate, const Rate& first) {
    return fmt::format("{:>9.1f}  {:<20} {:>5.2f}", rate.median, fmt::format("({:.1f} - {:.1f})", rate.worst, rate.best),
                       ratio(rate, first));
  };
  fmt::print("  {:>7}   {:<37}   {}\n", "threads", fmt::format("prefill {}", steps.prompt_tokens),
             fmt::format("decode {}", steps.new_tokens));
  for (const Row& row : rows)
    fmt::print("  {:>7} {}  {}\n", row.threads, column(row.prefill, rows[0].prefill), column(row.decode, rows[0].decode));
  return Status::ok();
}

Status run_bench(const BenchOptions& options) {
  MR_ASSIGN_OR_RETURN(auto model, load_decoder(options));
  MR_ASSIGN_OR_RETURN(const KvDType kv_dtype, parse_kv_dtype(options.kv_cache_dtype));
  StepTimingOptions steps = options.steps;
  steps.profile = steps.profile || steps.profile_layers || !options.profile_svg.empty();
  MR_ASSIGN_OR_RETURN(auto executor,
                      model->make_executor(GemmPath::kFast, kv_dtype, static_cast<int32_t>(std::max(steps.chunk, steps.batch))));
  // More threads than CPUs have no peaks of their own.
  const int threads = model->pool().num_threads(), probed_threads = std::min(threads, usable_cpus());
  const std::string folder = cache_folder();
  if (isatty(STDERR_FILENO) && !read_probe_cache(folder, this_machine()))
    fmt::print(stderr, "measuring what this machine can do (once; see `millrace probe`)\n");
  MR_ASSIGN_OR_RETURN(const ProbedMachine machine, probe_machine_cached(std::span(&probed_threads, 1), folder, false));
  MR_ASSIGN_OR_RETURN(const StepTimingResult result,
                      time_steps(*executor, model->pool(), *machine.profile.of_threads(probed_threads), steps));
  const MachineBound& bound = result.bound;
  if (!options.profile_svg.empty()) {
    MR_RETURN_IF_ERROR(write_svg(options.profile_svg,
                                 fmt::format("{}, {}, {} threads, {}", options.model, isa_name(model->isa()), threads, machine.profile.cpu),
                                 result));
  }
  if (options.json) {
    json::object object{{"model", options.model},
                        {"isa", isa_name(model->isa())},
                        {"threads", threads},
                        {"kv_cache_dtype", kv_dtype_name(kv_dtype)},
                        {"depth", steps.depth},
                        {"batch", steps.batch},
                        {"chunk", steps.chunk},
                        {"prompt_tokens", steps.prompt_tokens},
                        {"new_tokens", steps.new_tokens},
                        {"repeat", steps.repeat},
                        {"prefill_tokens_per_second", to_json(rate_of(result.prefill))},
                        {"decode_tokens_per_second", to_json(rate_of(result.decode))}};
    if (result.prefill) object["prefill"] = phase_json(*result.prefill, bound);
    if (result.decode) object["decode"] = phase_json(*result.decode, bound);
    object["machine"] = json::object{{"cpu", machine.profile.cpu},
                                     {"probed_threads", probed_threads},
                                     {"bytes_per_second", bound.bytes_per_second},
                                     {"bandwidth_source", result.bandwidth_source},
                                     {"memory_bytes_per_second", result.memory_bytes_per_second},
                                     {"step_bytes_per_second", result.step_bytes_per_second},
                                     {"step_bytes", result.step_bytes},
                                     {"operations_per_second", operations_json(bound.operations_per_second)}};
    fmt::print("{}\n", json_text(object));
    return Status::ok();
  }
  fmt::print("{}, {} threads, KV {}, depth {}, {}{} repeats: median (worst - best) tokens/s\n", isa_name(model->isa()), threads,
             kv_dtype_name(kv_dtype), steps.depth, steps.batch > 1 ? fmt::format("{} sequences, ", steps.batch) : "", steps.repeat);
  if (result.prefill) print_phase("prefill", steps.prompt_tokens, *result.prefill, bound);
  if (result.decode) print_phase("decode", steps.new_tokens, *result.decode, bound);
  fmt::print("  of {:.1f} GB/s ({}) and {:.0f} int8, {:.0f} bf16, {:.0f} f32 Gop/s\n", bound.bytes_per_second * 1e-9,
             result.bandwidth_source == "memory" ? "the probe's stream through memory"
             : result.bandwidth_source == "step"
                 ? fmt::format("a stream through {}, as a step reads; through memory {:.1f}", format_bytes(result.step_bytes),
                               result.memory_bytes_per_second * 1e-9)
                 : fmt::format("the fastest decode itself; a stream through {} {:.1f}, through memory {:.1f}",
                               format_bytes(result.step_bytes), result.step_bytes_per_second * 1e-9, result.memory_bytes_per_second * 1e-9),
             bound.operations_per_second[0] * 1e-9, bound.operations_per_second[1] * 1e-9, bound.operations_per_second[2] * 1e-9);
  for (const auto* phase : {&result.prefill, &result.decode}) {
    if (*phase && (*phase)->profile) fmt::print("\n{}", profile_table(*(*phase)->profile));
  }
  return Status::ok();
}

void add_bench_options(CLI::App& command, BenchOptions& options) {
  add_model_options(command, options);
  add_quantization_options(command, options);
  StepTimingOptions& steps = options.steps;
  command.add_option("--prompt-tokens", steps.prompt_tokens, "Tokens to prefill in each sequence; 0: none")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command.add_option("--new-tokens", steps.new_tokens, "Tokens to decode one by one; 0: none")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command.add_option("--batch", steps.batch, "Sequences, which decode in one step")->check(CLI::Range(1, 4096))->capture_default_str();
  command.add_option("--depth", steps.depth, "Tokens of each sequence already in the KV cache")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command.add_option("--chunk", steps.chunk, "Most tokens of one prefill step")->check(CLI::Range(1, 65536))->capture_default_str();
  command.add_option("--repeat", steps.repeat)->check(CLI::Range(1, 10000))->capture_default_str();
  add_kv_dtype_option(command, options.kv_cache_dtype);
  command.add_option("--scaling", options.scaling, "Numbers of threads to compare, for example 1,2,4,8")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 1024));
  command.add_flag("--profile", steps.profile,
                   "Where the time of a step goes, by operation: after the repeats, as many again are timed in parts");
  command.add_flag("--profile-layers", steps.profile_layers, "The same for each layer apart");
  command.add_option("--profile-svg", options.profile_svg, "File for a picture of the profile");
  command.footer(
      "Example:\n  millrace bench step model.gguf --prompt-tokens 512 --new-tokens 128 --repeat 10\n"
      "`millrace bench MODEL` is the same as `millrace bench step MODEL`.");
}

}  // namespace

void register_bench(CLI::App& app, int& exit_status) {
  auto* command =
      app.add_subcommand("bench", "Prefill and decode rates, as llama-bench's pp and tg, and how far they are from this machine's limits");
  auto options = std::make_shared<BenchOptions>();
  add_bench_options(*command, *options);
  auto* step = command->add_subcommand("step", "The same");
  add_bench_options(*step, *options);
  add_bench_speculation(*command, exit_status);
  add_bench_serve(*command, exit_status);
  add_bench_embed(*command, exit_status);
  command->get_option("MODEL")->required(false);
  const auto run = [options, &exit_status] {
    const Status status = options->model.empty()     ? Status::invalid_argument("MODEL is required")
                          : options->scaling.empty() ? run_bench(*options)
                                                     : run_scaling(*options);
    if (!status.is_ok()) exit_status = fail(status);
  };
  step->callback(run);
  command->callback([command, run] {
    if (command->get_subcommands().empty()) run();
  });
}

}  // namespace millrace::cli
