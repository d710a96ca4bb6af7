#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "millrace/base/mapped_file.h"
#include "millrace/cli/command.h"
#include "millrace/cli/option_values.h"
#include "millrace/cli/progress_bar.h"
#include "millrace/quality/evaluate.h"

namespace millrace::cli {
namespace {

constexpr int64_t kDefaultContext = 512, kStepRows = 1024;

struct EvalOptions : ModelOptions {
  std::string text, against, against_path = "exact", save_logits, logits_format = "f32", kv_cache_dtype = "auto";
  std::optional<int64_t> context, stride, max_tokens;
  int64_t skip_tokens = 0;
  bool exact = false, against_exact = false, as_generated = false;
};

// What the model's predictions are compared with: `reference` needs the other members.
struct OpenReference {
  std::string title;
  std::optional<LogitsFile> file;
  std::unique_ptr<LoadedModel> model;
  std::unique_ptr<CpuExecutor> executor;
  std::unique_ptr<Reference> reference;
};

// The part of the text's tokens that is read.
Result<std::vector<int32_t>> tokens_of(const Tokenizer& tokenizer, const std::string& text, const EvalOptions& options) {
  EncodeOptions encode;
  encode.parse_special = false;  // a text about "<|im_end|>" is no end of a turn
  MR_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, tokenizer.encode(text, encode));
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  tokens.erase(tokens.begin(), tokens.begin() + std::min(options.skip_tokens, num_tokens));
  if (options.max_tokens && *options.max_tokens < static_cast<int64_t>(tokens.size()))
    tokens.resize(static_cast<std::size_t>(*options.max_tokens));
  return tokens;
}

// BOS, where the tokenizer puts it before every text.
Result<std::optional<int32_t>> leading_bos(const Tokenizer& tokenizer) {
  MR_ASSIGN_OR_RETURN(const std::vector<int32_t> empty, tokenizer.encode(""));
  const auto bos = tokenizer.bos_token_id();
  if (bos && !empty.empty() && empty[0] == *bos) return bos;
  return std::optional<int32_t>();
}

Result<CpuExecutor*> open_executor(LoadedModel& model, bool exact, KvDType kv_dtype, int64_t rows_max,
                                   std::unique_ptr<CpuExecutor>& executor) {
  MR_ASSIGN_OR_RETURN(executor, model.make_executor(exact ? GemmPath::kExact : GemmPath::kFast, exact ? KvDType::kF32 : kv_dtype,
                                                    static_cast<int32_t>(rows_max)));
  return executor.get();
}

std::string path_name(bool exact, std::string_view kv_dtype) {
  return exact ? "exact path, f32 KV" : fmt::format("fast path, {} KV", kv_dtype);
}

json::object to_json(const Estimate& estimate) { return {{"mean", estimate.mean}, {"standard_error", estimate.standard_error}}; }

// exp of the mean; its error to first order.
Estimate perplexity(std::span<const double> nll) {
  const Estimate mean = estimate(nll);
  return {std::exp(mean.mean), std::exp(mean.mean) * mean.standard_error};
}

json::array window_means(const TextWindows& text, std::span<const double> values) {
  json::array means;
  std::size_t at = 0;
  for (const auto& window : text.windows) {
    const auto count = static_cast<std::size_t>(window.num_scored());
    means.push_back(estimate(values.subspan(at, count)).mean);
    at += count;
  }
  return means;
}

struct Outcome {
  TextWindows text;
  Evaluation evaluation;
  std::string path, reference_title;
  double seconds = 0;
};

json::object against_json(const Outcome& outcome) {
  const Evaluation& found = outcome.evaluation;
  std::vector<double> sorted = found.kl;
  std::sort(sorted.begin(), sorted.end());
  const double count = static_cast<double>(found.kl.size()), top = static_cast<double>(found.num_same_top) / count;
  const Estimate reference = perplexity(found.reference_nll), kl = estimate(found.kl);
  return {{"reference", outcome.reference_title},
          {"perplexity", reference.mean},
          {"perplexity_standard_error", reference.standard_error},
          {"log_perplexity_ratio", to_json(estimate_difference(found.nll, found.reference_nll))},
          {"kl", json::object{{"mean", kl.mean},
                              {"standard_error", kl.standard_error},
                              {"median", quantile(sorted, 0.5)},
                              {"p99", quantile(sorted, 0.99)},
                              {"max", sorted.back()}}},
          {"top1_agreement", json::object{{"share", top}, {"standard_error", std::sqrt(top * (1 - top) / count)}}},
          {found.log_prob_difference ? "max_logprob_difference" : "max_logit_difference", found.max_difference},
          {"window_kl", window_means(outcome.text, found.kl)},
          {"window_nll", window_means(outcome.text, found.reference_nll)}};
}

void print_text(const EvalOptions& options, LoadedModel& model, const Outcome& outcome, const json::object& found) {
  const TextWindows& text = outcome.text;
  fmt::print("model       {}, {}, {}, {} threads\n", options.model, outcome.path, isa_name(model.isa()), model.pool().num_threads());
  fmt::print("text        {}{} tokens, {} windows of {}{}, {} predictions scored{}\n", options.text.empty() ? "" : options.text + ": ",
             text.tokens.size(), text.windows.size(), text.windows[0].count, text.bos ? " that begin with BOS" : "", text.num_scored(),
             options.stride ? fmt::format(", stride {}", *options.stride) : "");
  fmt::print("perplexity  {:.4f} +- {:.4f}\n", found.at("perplexity").as_double(), found.at("perplexity_standard_error").as_double());
  if (!outcome.reference_title.empty()) {
    const json::object& against = found.at("against").as_object();
    const auto number = [&](std::initializer_list<const char*> path) {
      const json::value* at = &found.at("against");
      for (const char* key : path) at = &at->as_object().at(key);
      return at->as_double();
    };
    fmt::print("against     {}\n", outcome.reference_title);
    fmt::print("  perplexity          {:.4f} +- {:.4f}; ln of the ratio to it {:+.6f} +- {:.6f}\n", number({"perplexity"}),
               number({"perplexity_standard_error"}), number({"log_perplexity_ratio", "mean"}),
               number({"log_perplexity_ratio", "standard_error"}));
    fmt::print("  KL divergence       mean {:.6f} +- {:.6f}   median {:.6f}   99 % {:.6f}   largest {:.6f}\n", number({"kl", "mean"}),
               number({"kl", "standard_error"}), number({"kl", "median"}), number({"kl", "p99"}), number({"kl", "max"}));
    fmt::print("  same likeliest      {:.3f} % +- {:.3f} %\n", 100 * number({"top1_agreement", "share"}),
               100 * number({"top1_agreement", "standard_error"}));
    const char* key = outcome.evaluation.log_prob_difference ? "max_logprob_difference" : "max_logit_difference";
    fmt::print("  largest difference  {:.4f} of a {}\n", against.at(key).as_double(),
               outcome.evaluation.log_prob_difference ? "log-probability" : "logit");
  }
  fmt::print("{:.1f} s, {:.0f} tokens/s\n", outcome.seconds, found.at("tokens_per_second").as_double());
}

json::object to_json(const EvalOptions& options, LoadedModel& model, const Outcome& outcome) {
  const Estimate found = perplexity(outcome.evaluation.nll);
  int64_t num_read = 0;
  for (const auto& window : outcome.text.windows) num_read += window.count;
  json::object object{{"model", options.model},
                      {"path", outcome.path},
                      {"isa", isa_name(model.isa())},
                      {"threads", model.pool().num_threads()},
                      {"context", outcome.text.windows[0].count},
                      {"stride", options.stride ? json::value(*options.stride) : json::value(nullptr)},
                      {"bos", outcome.text.bos ? json::value(*outcome.text.bos) : json::value(nullptr)},
                      {"num_tokens", outcome.text.tokens.size()},
                      {"num_windows", outcome.text.windows.size()},
                      {"num_scored", outcome.evaluation.nll.size()},
                      {"perplexity", found.mean},
                      {"perplexity_standard_error", found.standard_error},
                      {"seconds", outcome.seconds},
                      {"tokens_per_second", static_cast<double>(num_read) / outcome.seconds},
                      {"window_nll", window_means(outcome.text, outcome.evaluation.nll)}};
  if (!outcome.reference_title.empty()) object["against"] = against_json(outcome);
  return object;
}

Status check_options(const EvalOptions& options, bool against_file) {
  if (options.against_exact && !options.against.empty())
    return Status::invalid_argument("--against and --against-exact: only one reference");
  if (options.against_exact && options.exact)
    return Status::invalid_argument("--exact --against-exact compares the exact path with itself");
  if (!against_file && options.text.empty())
    return Status::invalid_argument("--text is missing; only a file of logits given to --against brings its own");
  if (against_file && (options.context || options.stride || options.max_tokens || options.skip_tokens > 0)) {
    return Status::invalid_argument(
        "--context, --stride, --max-tokens and --skip-tokens cannot be given with a file of logits: its windows are fixed");
  }
  if (!options.save_logits.empty() && !options.against.empty()) {
    std::error_code ignored;
    if (std::filesystem::equivalent(options.save_logits, options.against, ignored))
      return Status::invalid_argument("--save-logits would overwrite the reference");
  }
  return Status::ok();
}

// The windows of the text, or the file's; a text given beside a file must be the file's.
Result<TextWindows> choose_windows(const EvalOptions& options, const LoadedModel& model, const std::string& text,
                                   const std::optional<LogitsFile>& file) {
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model.tokenizer());
  MR_ASSIGN_OR_RETURN(const std::optional<int32_t> bos, leading_bos(*tokenizer));
  std::vector<int32_t> tokens;
  if (!options.text.empty()) {
    auto encoded = tokens_of(*tokenizer, text, options);
    if (!encoded.is_ok()) return encoded.status().with_context(options.text);
    tokens = std::move(encoded).value();
  }
  if (!file) {
    auto windows = cut_windows(std::move(tokens), bos, options.context.value_or(kDefaultContext), options.stride);
    if (!windows.is_ok()) return windows.status().with_context(options.text);
    return windows;
  }
  TextWindows windows = file->text();
  if (file->format() == LogitsFormat::kLogProbs) windows.bos = bos;
  if (!options.text.empty()) {
    const bool longer = tokens.size() >= windows.tokens.size();
    if (!longer || !std::equal(windows.tokens.begin(), windows.tokens.end(), tokens.begin())) {
      return Status::invalid_argument(fmt::format(
          "{}: its tokens are not those of {}, which was made from another text or with another tokenizer", options.text, options.against));
    }
  }
  return windows;
}

Status open_reference(const EvalOptions& options, LoadedModel& model, const std::string& text, const TextWindows& windows, int64_t rows_max,
                      OpenReference& open) {
  if (options.against_exact) {
    open.title = "the exact path of the same model";
    MR_ASSIGN_OR_RETURN(CpuExecutor * executor, open_executor(model, true, KvDType::kF32, rows_max, open.executor));
    open.reference = reference_from(*executor);
  } else if (open.file) {
    open.title = options.against;
    open.reference = reference_from(*open.file);
  } else if (!options.against.empty()) {
    ModelOptions other = options;
    other.model = options.against;
    other.gguf_file = other.family = "";
    other.quantization.reset();  // the reference is what the other model says, as it is stored
    auto loaded = load_decoder(other);
    if (!loaded.is_ok()) return loaded.status().with_context("--against");
    open.model = std::move(loaded).value();
    const bool exact = options.against_path == "exact";
    open.title = fmt::format("{}, {}", options.against, path_name(exact, "bf16"));
    if (const auto tokenizer = open.model->tokenizer(); tokenizer.is_ok()) {
      MR_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, tokens_of(**tokenizer, text, options));
      if (tokens != windows.tokens)
        return Status::invalid_argument(
            fmt::format("--against: {} has another tokenizer: it makes other tokens of the text", options.against));
    }
    MR_ASSIGN_OR_RETURN(CpuExecutor * executor, open_executor(*open.model, exact, KvDType::kBf16, rows_max, open.executor));
    open.reference = reference_from(*executor);
  }
  return Status::ok();
}

Status run_eval(const EvalOptions& options) {
  const bool against_file = !options.against.empty() && is_logits_file(options.against);
  MR_RETURN_IF_ERROR(check_options(options, against_file));
  MR_ASSIGN_OR_RETURN(const KvDType kv_dtype, parse_kv_dtype(options.kv_cache_dtype, options.exact));
  std::string source;
  if (!options.text.empty()) {
    MR_ASSIGN_OR_RETURN(source, read_text_file(options.text));
  }
  std::optional<LogitsFile> file;
  if (against_file) {
    MR_ASSIGN_OR_RETURN(file, LogitsFile::open(options.against));
  }
  MR_ASSIGN_OR_RETURN(auto model, load_decoder(options));
  Outcome outcome;
  MR_ASSIGN_OR_RETURN(outcome.text, choose_windows(options, *model, source, file));
  std::unique_ptr<CpuExecutor> executor;
  MR_RETURN_IF_ERROR(open_executor(*model, options.exact, kv_dtype, kStepRows, executor).status());
  OpenReference open;  // goes before the model, on whose threads it may compute
  open.file = std::move(file);
  MR_RETURN_IF_ERROR(open_reference(options, *model, source, outcome.text, kStepRows, open));
  EvaluateOptions evaluation{.rows_max = kStepRows, .as_generated = options.as_generated, .reference = open.reference.get()};
  std::optional<LogitsWriter> writer;
  if (!options.save_logits.empty()) {
    MR_ASSIGN_OR_RETURN(const LogitsFormat format, parse_logits_format(options.logits_format));
    MR_ASSIGN_OR_RETURN(writer, LogitsWriter::create(options.save_logits, format, outcome.text, executor->info().vocab_size));
    evaluation.writer = &*writer;
  }
  const auto start = std::chrono::steady_clock::now();
  {
    ProgressBar bar("evaluating");
    evaluation.on_progress = [&](double share) { bar.update(share); };
    MR_ASSIGN_OR_RETURN(outcome.evaluation, evaluate(*executor, outcome.text, model->pool(), evaluation));
  }
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  outcome.path = path_name(options.exact, kv_dtype_name(kv_dtype)) +
                 (executor->info().prompt_differs ? options.as_generated ? ", as generated" : ", as a prompt" : "");
  outcome.reference_title = open.title;
  const json::object found = to_json(options, *model, outcome);
  if (options.json) {
    fmt::print("{}\n", json_text(found));
  } else {
    print_text(options, *model, outcome, found);
  }
  return Status::ok();
}

}  // namespace

void register_eval(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("eval", "Perplexity of a text, and the KL divergence from a reference");
  auto options = std::make_shared<EvalOptions>();
  add_model_options(*command, *options);
  add_quantization_options(*command, *options);
  command->add_option("--text", options->text, "Text file to predict; special tokens in it are ordinary text")->check(CLI::ExistingFile);
  command->add_option("--context", options->context, "Tokens of a window; default 512")->check(CLI::Range(4, 1 << 24));
  command
      ->add_option("--stride", options->stride,
                   "Begin a window every so many tokens and score what no earlier one did; default: windows side by side, the second half "
                   "of each is scored")
      ->check(whole_number(1));
  command->add_option("--max-tokens", options->max_tokens, "Read no more than so many tokens of the text")->check(whole_number(1));
  command->add_option("--skip-tokens", options->skip_tokens, "Leave out the first N tokens of the text")->check(whole_number(0));
  command->add_flag("--exact", options->exact, "The exact path: weights decoded to f32, f32 KV cache; slow");
  add_kv_dtype_option(*command, options->kv_cache_dtype, "Of the fast path");
  command->add_flag("--as-generated", options->as_generated,
                    "Computes the text as if the model had generated it; differs from a prompt on CPUs with AMX");
  command->add_option("--against", options->against,
                      "Reference: another model, or a file of logits (--save-logits, or llama.cpp's --kl-divergence-base)");
  command->add_flag("--against-exact", options->against_exact, "Reference: the exact path of this model");
  command->add_option("--against-path", options->against_path, "How the model of --against is computed: exact, or fast as it is served")
      ->check(CLI::IsMember({"exact", "fast"}));
  command->add_option("--save-logits", options->save_logits, "Writes the model's predictions to this file, to be a reference");
  command
      ->add_option("--logits-format", options->logits_format, "Of that file: f32, or llama.cpp (16 bits, readable by its perplexity tool)")
      ->check(CLI::IsMember({"f32", "llama.cpp"}));
  command->footer(
      "Examples:\n  millrace eval model.gguf --text book.txt\n  millrace eval model-q4.gguf --text book.txt --against model-bf16.gguf\n"
      "  millrace eval model.gguf --text book.txt --against-exact --max-tokens 8192\n"
      "  millrace eval ./model --quantization int4 --text book.txt --against ./model");
  command->callback([options, &exit_status] {
    if (const Status status = run_eval(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
