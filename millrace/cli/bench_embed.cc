#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <numeric>

#include "millrace/cli/command.h"
#include "millrace/cli/option_values.h"
#include "millrace/cli/text_file.h"

namespace millrace::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct EmbedBenchOptions : ModelOptions {
  std::string file, kv_cache_dtype = "auto";
  int64_t batch = 32, step_tokens = 1024;
  double seconds = 2;
  bool exact = false;
};

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// What computes the batches: one after the other, a batch's texts being tokenized when the one before is done.
struct Embedder {
  const Tokenizer* tokenizer = nullptr;
  EncoderEngine* engine = nullptr;
  const std::vector<std::string>* texts = nullptr;

  Result<EncoderInput> encode(std::size_t text) const {
    auto encoded = tokenizer->encode_input((*texts)[text], {}, engine->max_text_tokens());
    if (!encoded.is_ok()) return encoded.status().with_context(fmt::format("text {}", text));
    return EncoderInput{std::move(encoded->ids), {}};
  }

  // Adds the seconds that tokenizing took.
  Status compute(const std::size_t* begin, const std::size_t* end, double& tokenize_seconds) const {
    const auto start = Clock::now();
    std::vector<EncoderInput> inputs;
    for (const std::size_t* text = begin; text != end; ++text) {
      MR_ASSIGN_OR_RETURN(EncoderInput input, encode(*text));
      inputs.push_back(std::move(input));
    }
    tokenize_seconds += seconds_since(start);
    std::promise<EncodeResult> promise;
    auto future = promise.get_future();
    MR_RETURN_IF_ERROR(engine->add(std::move(inputs), [&promise](EncodeResult& result) { promise.set_value(std::move(result)); }).status());
    return future.get().error;
  }
};

// Passes over all texts in one order.
struct Passes {
  std::vector<double> seconds;  // of each pass, tokenizing included
  double tokenize_seconds = 0;  // of all passes

  double median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

Result<Passes> measure(const Embedder& embedder, const std::vector<std::size_t>& order, const EmbedBenchOptions& options) {
  Passes passes;
  const auto start = Clock::now();
  do {
    const auto pass_start = Clock::now();
    for (std::size_t begin = 0; begin < order.size(); begin += static_cast<std::size_t>(options.batch)) {
      const std::size_t end = std::min(order.size(), begin + static_cast<std::size_t>(options.batch));
      MR_RETURN_IF_ERROR(embedder.compute(order.data() + begin, order.data() + end, passes.tokenize_seconds));
    }
    passes.seconds.push_back(seconds_since(pass_start));
  } while (seconds_since(start) < options.seconds);
  return passes;
}

Status run_bench_embed(const EmbedBenchOptions& options) {
  MR_ASSIGN_OR_RETURN(const std::vector<std::string> texts, read_texts(options.file));
  if (texts.empty()) return Status::invalid_argument(fmt::format("{} holds no text", options.file));
  MR_RETURN_IF_ERROR(parse_kv_dtype(options.kv_cache_dtype, options.exact).status());
  MR_ASSIGN_OR_RETURN(auto model, load_model(options, LoadWeights::kPack));
  MR_RETURN_IF_ERROR(model->require_encoder());
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model->tokenizer());
  MR_ASSIGN_OR_RETURN(
      RunningEncoder running,
      start_encoder(*model, {.step_tokens = options.step_tokens, .kv_cache_dtype = options.kv_cache_dtype, .exact = options.exact}));
  const Embedder embedder{tokenizer, running.engine.get(), &texts};

  std::vector<std::size_t> arrival(texts.size()), num_tokens(texts.size());
  std::iota(arrival.begin(), arrival.end(), std::size_t{0});
  for (const std::size_t text : arrival) {
    MR_ASSIGN_OR_RETURN(const EncoderInput input, embedder.encode(text));
    num_tokens[text] = input.tokens.size();
  }
  std::vector<std::size_t> sorted = arrival;
  std::stable_sort(sorted.begin(), sorted.end(), [&](std::size_t a, std::size_t b) { return num_tokens[a] < num_tokens[b]; });
  const auto total = static_cast<double>(std::accumulate(num_tokens.begin(), num_tokens.end(), std::size_t{0}));

  double unused = 0;  // the batch that warms up: the longest texts
  const auto warm_up = std::min<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(options.batch), std::ssize(sorted));
  MR_RETURN_IF_ERROR(embedder.compute(sorted.data() + (std::ssize(sorted) - warm_up), sorted.data() + sorted.size(), unused));

  json::object orders;
  if (!options.json) {
    fmt::print("{}, {} threads, {} texts, {:.0f} tokens, batches of {}, tokenizing included\n", isa_name(model->isa()),
               model->pool().num_threads(), texts.size(), total, options.batch);
  }
  for (const auto& [name, order] : {std::pair{"arrival", &arrival}, std::pair{"sorted", &sorted}}) {
    MR_ASSIGN_OR_RETURN(const Passes passes, measure(embedder, *order, options));
    const double rate = total / passes.median();
    const double tokenize_share = passes.tokenize_seconds / std::accumulate(passes.seconds.begin(), passes.seconds.end(), 0.0);
    if (options.json) {
      orders[name] = json::object{{"tokens_per_second", rate}, {"passes", passes.seconds.size()}, {"tokenize_share", tokenize_share}};
    } else {
      fmt::print("  {:<8}{:>9.0f} tokens/s {:>8.1f} texts/s, {:.1f} % of the time tokenizing, median of {} passes\n", name, rate,
                 static_cast<double>(texts.size()) / passes.median(), 100 * tokenize_share, passes.seconds.size());
    }
  }
  if (options.json) {
    fmt::print("{}\n", json::serialize(json::object{{"model", options.model},
                                                    {"isa", isa_name(model->isa())},
                                                    {"threads", model->pool().num_threads()},
                                                    {"batch", options.batch},
                                                    {"texts", texts.size()},
                                                    {"tokens", static_cast<int64_t>(total)},
                                                    {"tokens_longest", num_tokens[sorted.back()]},
                                                    {"tokens_shortest", num_tokens[sorted.front()]},
                                                    {"orders", std::move(orders)}}));
  }
  return Status::ok();
}

}  // namespace

void add_bench_embed(CLI::App& bench, int& exit_status) {
  auto* command =
      bench.add_subcommand("embed", "Embeddings of the texts of a file, in their order and sorted by length: tokens and texts a second");
  auto options = std::make_shared<EmbedBenchOptions>();
  add_model_options(*command, *options);
  add_quantization_options(*command, *options);
  command
      ->add_option("--file", options->file,
                   "A text a line, or of .jsonl a JSON text or an object with \"text\" a line; longer ones are cut")
      ->required()
      ->check(CLI::ExistingFile);
  command->add_option("--batch", options->batch, "Texts of one request; the next is sent when it is answered")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--seconds", options->seconds, "Passes over the file are made until this time is over, at least one")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  command->add_option("--max-num-batched-tokens", options->step_tokens, "Most tokens of one step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_flag("--exact", options->exact, "The exact path: weights decoded to f32, f32 keys and values; slow");
  add_kv_dtype_option(*command, options->kv_cache_dtype, "Of keys and values within a step");
  command->footer("Example:\n  millrace bench embed ./all-MiniLM-L6-v2 --file texts.txt --batch 32");
  command->callback([options, &exit_status] {
    if (const Status status = run_bench_embed(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
