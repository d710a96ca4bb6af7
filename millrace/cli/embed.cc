#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <future>

#include "millrace/cli/command.h"
#include "millrace/cli/option_values.h"
#include "millrace/cli/progress_bar.h"
#include "millrace/cli/text_file.h"
#include "millrace/engine/class_scores.h"

namespace millrace::cli {
namespace {

struct EmbedOptions : ModelOptions {
  std::vector<std::string> texts;
  std::string file, kv_cache_dtype = "auto";
  bool exact = false, truncate = false;
  int64_t step_tokens = 1024, dimensions = 0;
};

void print_result(std::size_t index, int64_t num_tokens, const std::vector<float>& numbers, bool as_json, const std::string* label) {
  if (!as_json) {
    if (label != nullptr) fmt::print("{}\t", *label);
    for (std::size_t i = 0; i < numbers.size(); ++i) fmt::print("{}{}", i > 0 ? " " : "", numbers[i]);
    fmt::print("\n");
    return;
  }
  fmt::print("{{\"index\":{},\"tokens\":{},", index, num_tokens);
  if (label != nullptr) fmt::print("\"label\":{},", json_text(json::value(*label)));
  fmt::print("\"{}\":[{}]}}\n", label != nullptr ? "probs" : "embedding", fmt::join(numbers, ","));
}

Status run_embed(const EmbedOptions& options) {
  std::vector<std::string> texts = options.texts;
  if (!options.file.empty()) {
    MR_ASSIGN_OR_RETURN(std::vector<std::string> more, read_texts(options.file));
    texts.insert(texts.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  }
  if (texts.empty()) return Status::invalid_argument("no text: give --text or --file");
  MR_RETURN_IF_ERROR(parse_kv_dtype(options.kv_cache_dtype, options.exact).status());
  MR_ASSIGN_OR_RETURN(auto model, load_model(options, LoadWeights::kPack));
  MR_RETURN_IF_ERROR(model->require_encoder());
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model->tokenizer());
  MR_ASSIGN_OR_RETURN(
      RunningEncoder running,
      start_encoder(*model, {.step_tokens = options.step_tokens, .kv_cache_dtype = options.kv_cache_dtype, .exact = options.exact}));
  if (options.dimensions > running.engine->output_size()) {
    return Status::invalid_argument(
        fmt::format("--dimensions: {} of the {} numbers that an embedding has", options.dimensions, running.engine->output_size()));
  }
  if (options.dimensions > 0 && model->network().pooled->classes)
    return Status::invalid_argument(fmt::format("--dimensions: the model is {}", model->kind()));
  std::optional<ClassScores> classes;
  if (model->network().pooled->classes) classes = ClassScores::of(model->checkpoint().config(), running.engine->output_size());

  // Some texts at a time, so that their tokens and results are never all in memory, and enough that every step is full.
  constexpr std::size_t kTextsAtOnce = 1024;
  ProgressBar progress("embed");
  for (std::size_t begin = 0; begin < texts.size(); begin += kTextsAtOnce) {
    const std::size_t end = std::min(texts.size(), begin + kTextsAtOnce);
    std::vector<EncoderInput> inputs;
    std::vector<int64_t> num_tokens;
    for (std::size_t i = begin; i < end; ++i) {
      const std::optional<int64_t> limit = options.truncate ? std::optional(running.engine->max_text_tokens()) : std::nullopt;
      auto encoded = tokenizer->encode_input(texts[i], {}, limit);
      if (!encoded.is_ok()) return encoded.status().with_context(fmt::format("text {}", i));
      if (static_cast<int64_t>(encoded->ids.size()) > running.engine->max_text_tokens()) {
        return Status::invalid_argument(fmt::format("text {} has {} tokens, the model reads at most {} (--truncate cuts longer texts)", i,
                                                    encoded->ids.size(), running.engine->max_text_tokens()));
      }
      num_tokens.push_back(static_cast<int64_t>(encoded->ids.size()));
      inputs.push_back({std::move(encoded->ids), {}});
    }
    std::promise<EncodeResult> promise;
    auto future = promise.get_future();
    MR_RETURN_IF_ERROR(
        running.engine->add(std::move(inputs), [&promise](EncodeResult& result) { promise.set_value(std::move(result)); }).status());
    EncodeResult result = future.get();
    MR_RETURN_IF_ERROR(result.error);
    for (std::size_t i = begin; i < end; ++i) {
      std::vector<float>& numbers = result.outputs[i - begin];
      if (options.dimensions > 0) shorten_embedding(numbers, static_cast<std::size_t>(options.dimensions));
      if (classes) classes->apply(numbers);
      const std::string* label =
          classes ? &classes->labels[static_cast<std::size_t>(std::max_element(numbers.begin(), numbers.end()) - numbers.begin())]
                  : nullptr;
      print_result(i, num_tokens[i - begin], numbers, options.json, label);
    }
    progress.update(static_cast<double>(end) / static_cast<double>(texts.size()));
  }
  return Status::ok();
}

}  // namespace

void register_embed(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("embed", "Embeddings of texts (or, of a classifier, scores)");
  auto options = std::make_shared<EmbedOptions>();
  add_model_options(*command, *options);
  add_quantization_options(*command, *options);
  command->add_option("--text", options->texts, "A text; may be repeated")->allow_extra_args(false);
  command->add_option("--file", options->file, "A text a line, or of .jsonl a JSON text or an object with \"text\" a line")
      ->check(CLI::ExistingFile);
  command->add_flag("--truncate", options->truncate, "Cut longer texts to what the model reads; without it they are an error");
  command->add_option("--dimensions", options->dimensions, "Only the first numbers, made as long as 1: for embeddings trained for it")
      ->check(whole_number(1));
  command->add_option("--max-num-batched-tokens", options->step_tokens, "Most tokens of one step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_flag("--exact", options->exact, "The exact path: weights decoded to f32, f32 keys and values; slow");
  add_kv_dtype_option(*command, options->kv_cache_dtype, "Of keys and values within a step");
  command->footer(
      "One line a text, in order: the numbers, or with --json {\"index\", \"tokens\", \"embedding\"}.\nExamples:\n  millrace embed "
      "./all-MiniLM-L6-v2 --text 'a mill race' --json\n"
      "  millrace embed ./all-MiniLM-L6-v2 --file texts.txt > vectors.txt");
  command->callback([options, &exit_status] {
    if (const Status status = run_embed(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
