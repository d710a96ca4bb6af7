#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "millrace/cli/command.h"
#include "millrace/model/sequence_runner.h"

namespace millrace::cli {
namespace {

struct BenchOptions : ModelOptions {
  int64_t prompt_tokens = 512, new_tokens = 128, depth = 0, chunk = 512;
  int repeat = 5;
  std::string kv_cache_dtype = "auto";
};

struct Rate {
  double median = 0, best = 0, worst = 0;  // tokens per second
};

Rate rate_of(std::vector<double> seconds, int64_t tokens) {
  if (seconds.empty()) return {};
  std::sort(seconds.begin(), seconds.end());
  const auto per_second = [&](double time) { return static_cast<double>(tokens) / time; };
  return {per_second(seconds[seconds.size() / 2]), per_second(seconds.front()), per_second(seconds.back())};
}

json::object to_json(const Rate& rate) { return {{"median", rate.median}, {"best", rate.best}, {"worst", rate.worst}}; }

// As llama-bench's pp and tg: prefill of P tokens at the given depth, then N single-token steps, without sampling. Each repeat starts
// from an empty cache; one more before them warms up and is not counted.
Status run_bench(const BenchOptions& options) {
  MR_ASSIGN_OR_RETURN(auto model, load_model(options, true));
  MR_ASSIGN_OR_RETURN(const KvDType kv_dtype, parse_kv_dtype(options.kv_cache_dtype));
  MR_ASSIGN_OR_RETURN(auto executor, model->make_executor(GemmPath::kFast, kv_dtype, static_cast<int32_t>(options.chunk)));
  const int64_t longest = options.depth + std::max(options.prompt_tokens, options.new_tokens);
  if (longest > model->network().max_positions) {
    return Status::invalid_argument(fmt::format("depth and tokens come to {}, the model's context is {}", longest, model->network().max_positions));
  }
  MR_ASSIGN_OR_RETURN(auto runner, SequenceRunner::create(*executor, longest));
  std::vector<int32_t> tokens(static_cast<std::size_t>(longest));
  // Arbitrary ids, the same in every run: what is computed does not depend on them.
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<std::size_t>(model->network().vocab_size));
  const auto ignore = [](int64_t, std::span<const float>) {};
  const auto timed = [&](auto&& body) -> Result<double> {
    const auto start = std::chrono::steady_clock::now();
    MR_RETURN_IF_ERROR(body());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::vector<double> prefill, decode;
  for (int i = 0; i <= options.repeat; ++i) {
    for (const bool is_decode : {false, true}) {
      const int64_t count = is_decode ? options.new_tokens : options.prompt_tokens;
      if (count == 0) continue;
      runner.reset(longest);
      if (options.depth > 0) MR_RETURN_IF_ERROR(runner.append({tokens.data(), static_cast<std::size_t>(options.depth)}, options.chunk, false, ignore));
      const std::span<const int32_t> work{tokens.data() + options.depth, static_cast<std::size_t>(count)};
      MR_ASSIGN_OR_RETURN(const double seconds, timed([&] { return runner.append(work, is_decode ? 1 : options.chunk, is_decode, ignore); }));
      if (i > 0) (is_decode ? decode : prefill).push_back(seconds);
    }
  }
  const Rate prefill_rate = rate_of(prefill, options.prompt_tokens), decode_rate = rate_of(decode, options.new_tokens);
  if (options.json) {
    fmt::print("{}\n", json::serialize(json::object{{"model", options.model},
                                                    {"isa", isa_name(model->isa())},
                                                    {"threads", model->pool().num_threads()},
                                                    {"kv_cache_dtype", kv_dtype_name(kv_dtype)},
                                                    {"depth", options.depth},
                                                    {"prompt_tokens", options.prompt_tokens},
                                                    {"new_tokens", options.new_tokens},
                                                    {"repeat", options.repeat},
                                                    {"prefill_tokens_per_second", to_json(prefill_rate)},
                                                    {"decode_tokens_per_second", to_json(decode_rate)}}));
    return Status::ok();
  }
  fmt::print("{}, {} threads, KV {}, depth {}, {} repeats: median (worst - best) tokens/s\n", isa_name(model->isa()), model->pool().num_threads(), kv_dtype_name(kv_dtype), options.depth,
             options.repeat);
  if (options.prompt_tokens > 0) fmt::print("  prefill {:>5}  {:>9.1f}  ({:.1f} - {:.1f})\n", options.prompt_tokens, prefill_rate.median, prefill_rate.worst, prefill_rate.best);
  if (options.new_tokens > 0) fmt::print("  decode  {:>5}  {:>9.1f}  ({:.1f} - {:.1f})\n", options.new_tokens, decode_rate.median, decode_rate.worst, decode_rate.best);
  return Status::ok();
}

}  // namespace

void register_bench(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("bench", "Prefill and decode rates, as llama-bench's pp and tg");
  auto options = std::make_shared<BenchOptions>();
  add_model_options(*command, *options);
  command->add_option("--prompt-tokens", options->prompt_tokens, "Tokens to prefill; 0: none")->check(CLI::Range(0, 1 << 24))->capture_default_str();
  command->add_option("--new-tokens", options->new_tokens, "Tokens to decode one by one; 0: none")->check(CLI::Range(0, 1 << 24))->capture_default_str();
  command->add_option("--depth", options->depth, "Tokens already in the KV cache")->check(CLI::Range(0, 1 << 24))->capture_default_str();
  command->add_option("--chunk", options->chunk, "Most tokens of one step")->check(CLI::Range(1, 65536))->capture_default_str();
  command->add_option("--repeat", options->repeat)->check(CLI::Range(1, 10000))->capture_default_str();
  command->add_option("--kv-cache-dtype", options->kv_cache_dtype, "auto (bf16), f32, bf16 or int8")->check(CLI::IsMember({"auto", "f32", "bf16", "int8"}));
  command->footer("Example:\n  millrace bench model.gguf --prompt-tokens 512 --new-tokens 128 --repeat 10");
  command->callback([options, &exit_status] {
    if (const Status status = run_bench(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
