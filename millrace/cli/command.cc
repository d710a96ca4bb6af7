#include "millrace/cli/command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "millrace/base/cache_folder.h"
#include "millrace/cli/option_values.h"
#include "millrace/cli/speculative_config.h"
#include "millrace/engine/token_words.h"
#include "millrace/formats/hub.h"

namespace millrace::cli {
namespace {

struct KvDtypeName {
  std::string_view name;
  KvDType dtype;
};
// Of several names the first is ours.
constexpr KvDtypeName kKvDtypeNames[] = {{"f32", KvDType::kF32},          {"bf16", KvDType::kBf16},        {"int8", KvDType::kInt8},
                                         {"fp8-e4m3", KvDType::kFp8E4M3}, {"fp8_e4m3", KvDType::kFp8E4M3}, {"fp8", KvDType::kFp8E4M3},
                                         {"int4", KvDType::kInt4}};

}  // namespace

void add_source_options(CLI::App& command, ModelOptions& options) {
  command.add_option("MODEL", options.model, "Hugging Face directory, GGUF file, or org/name on the hub")->required();
  command.add_option("--gguf-file", options.gguf_file, "Which GGUF file of a hub repository");
  command.add_option("--family", options.family, "JSON file that describes the model's family (docs/add-a-model.md)")
      ->check(CLI::ExistingFile);
  command.add_flag("--json", options.json, "Answer in JSON");
}

void add_model_options(CLI::App& command, ModelOptions& options) {
  add_source_options(command, options);
  command.add_option("--threads", options.threads, "Threads that compute; default: every usable CPU")->check(CLI::Range(1, 1024));
  command.add_flag("--no-weight-cache", options.no_weight_cache, "Pack the weights anew and keep no file of them (docs/memory.md)");
  command
      .add_option("--weight-cache-size", options.weight_cache_bytes, "Most bytes of all files of packed weights, e.g. 8GB; default: 32GB")
      ->transform(size_in_bytes(0));
}

void add_quantization_options(CLI::App& command, ModelOptions& options) {
  auto* type =
      command
          .add_option("-q,--quantization", options.quantization,
                      "Quantizes a model of f32, f16 or bf16 weights while it is loaded: int8, int4, nf4 or fp8 (docs/formats.md)\n"
                      "e.g. --quantization int4 --quantization-group-size 64 --quantization-exclude lm_head")
          ->check(CLI::IsMember({"int8", "int4", "nf4", "fp8"}));
  command
      .add_option("--quantization-group-size", options.quantization_group_size,
                  "Weights that share a scale: 32, 64, 128 ..., or -1: all of a row; default: 128 of int4, 64 of nf4, -1 of int8 and fp8")
      ->needs(type);
  command
      .add_option("--quantization-exclude", options.quantization_exclude,
                  "Leaves these matrices as stored: a name or a part of it between dots, with * for any characters; may be repeated")
      ->needs(type)
      ->allow_extra_args(false);
  command.add_flag("--quantization-symmetric", options.quantization_symmetric, "int4 without zero points")->needs(type);
}

namespace {

Result<QuantizationOptions> quantization_of(const ModelOptions& options) {
  QuantizationOptions quantization;
  MR_ASSIGN_OR_RETURN(quantization.type, parse_quantization(*options.quantization));
  quantization.group_size = options.quantization_group_size;
  quantization.symmetric = options.quantization_symmetric;
  quantization.exclude = options.quantization_exclude;
  return quantization;
}

bool print_progress(const HubProgress& progress) {
  if (!isatty(STDERR_FILENO)) return true;
  const double share = progress.total_bytes > 0 ? static_cast<double>(progress.done_bytes) / static_cast<double>(progress.total_bytes) : 0;
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(share * kWidth);
  fmt::print(stderr, "\r{} [{}{}] {} of {} ", progress.file, std::string(static_cast<std::size_t>(filled), '='),
             std::string(static_cast<std::size_t>(kWidth - filled), ' '), format_bytes(progress.done_bytes),
             format_bytes(progress.total_bytes));
  if (progress.done_bytes >= progress.total_bytes) fmt::print(stderr, "\n");
  std::fflush(stderr);
  return true;
}

}  // namespace

Result<std::unique_ptr<LoadedModel>> load_model(const ModelOptions& options, LoadWeights weights, ThreadPool* pool) {
  HubOptions hub = HubOptions::from_environment();
  hub.gguf_file = options.gguf_file;
  hub.progress = print_progress;
  MR_ASSIGN_OR_RETURN(const std::string path, resolve_model(options.model, hub));
  LoadOptions load;
  if (!options.family.empty()) load.family_file = options.family;
  load.num_threads = options.threads;
  load.pool = pool;
  load.weights = weights;
  if (options.quantization) {
    MR_ASSIGN_OR_RETURN(load.quantization, quantization_of(options));
  }
  if (const std::string folder = cache_folder(); !folder.empty() && !options.no_weight_cache) {
    load.weight_cache.folder = folder + "/weights";
    load.weight_cache.max_bytes = options.weight_cache_bytes;
  }
  auto model = LoadedModel::load(path, load);
  if (model.is_ok() && !(*model)->cache_error().is_ok()) {
    fmt::print(stderr, "millrace: warning: packed cache: {}; the weights were packed anew\n", (*model)->cache_error().message());
  }
  return model;
}

void keep_weights(LoadedModel& model) {
  model.keep_weights([](const Status& status) {
    fmt::print(stderr, "millrace: warning: packed cache: {}; the next start packs the weights again\n", status.message());
  });
}

Result<std::unique_ptr<LoadedModel>> load_decoder(const ModelOptions& options) {
  MR_ASSIGN_OR_RETURN(auto model, load_model(options, LoadWeights::kPack));
  MR_RETURN_IF_ERROR(model->require_decoder());
  return model;
}

void add_generation_options(CLI::App& command, GenerationOptions& options) {
  command.add_option("--temperature", options.temperature, "0: always the likeliest token")->check(number_within(0, 100));
  command.add_option("--top-p", options.top_p)->check(number_within(1e-6, 1));
  command.add_option("--top-k", options.top_k, "0: all")->check(CLI::Range(0, 1 << 24));
  command.add_option("--min-p", options.min_p)->check(number_within(0, 1));
  command.add_option("--typical-p", options.typical_p, "Tokens as informative as can be expected; 1: off")->check(number_within(1e-06, 1));
  command.add_option("--top-n-sigma", options.top_n_sigma, "Logits within so many standard deviations of the largest; 0: off")
      ->check(number_within(-1, 100));
  command.add_option("--xtc-probability", options.xtc_probability, "How often top choices are excluded but for one; 0: never")
      ->check(number_within(0, 1));
  command.add_option("--xtc-threshold", options.xtc_threshold, "Probability of a top choice (0.1)")->check(number_within(0, 1));
  command.add_option("--dry-multiplier", options.dry_multiplier, "Penalty of repeated sequences; 0: off")->check(number_within(0, 100));
  command.add_option("--dry-base", options.dry_base, "Its growth with a repetition's length (1.75)")->check(number_within(1, 100));
  command.add_option("--dry-allowed-length", options.dry_allowed_length, "Tokens that may repeat (2)")->check(whole_number(1));
  command.add_option("--dry-penalty-last-n", options.dry_penalty_last_n, "Tokens looked back at; -1: all")->check(CLI::Range(-1, 1 << 30));
  command
      .add_option("--dry-sequence-breaker", options.dry_sequence_breakers,
                  "Text across which nothing repeats; may be repeated (newline, colon, quote, asterisk)")
      ->allow_extra_args(false);
  command.add_option("--mirostat", options.mirostat, "2: Mirostat 2.0 in the place of the other limits; 0: off")
      ->check(CLI::IsMember({0, 2}));
  command.add_option("--mirostat-tau", options.mirostat_tau, "Surprise aimed at, in bits (5)")->check(number_within(0, 100));
  command.add_option("--mirostat-eta", options.mirostat_eta, "How fast it gets there (0.1)")->check(number_within(0, 1));
  command.add_option("--repetition-penalty", options.repetition_penalty)->check(number_within(0.001, 100));
  command.add_option("--presence-penalty", options.presence_penalty)->check(number_within(-2, 2));
  command.add_option("--frequency-penalty", options.frequency_penalty)->check(number_within(-2, 2));
  command.add_flag("--exact", options.exact, "The exact path: weights decoded to f32, f32 KV cache; slow");
  add_kv_dtype_option(command, options.kv_cache_dtype);
  command
      .add_option("--kv-bytes", options.kv_bytes,
                  "Memory for the KV cache, e.g. 512MB; default: chosen from the context length and the number of sequences")
      ->transform(size_in_bytes(1));
  auto* disk = command.add_option("--kv-disk-dir", options.kv_disk_dir,
                                  "Folder of the prefix cache's disk tier: computed prompts are kept over restarts");
  command.add_option("--kv-disk-bytes", options.kv_disk_bytes, "Its size, e.g. 20GB; what was unused longest makes room (8GB)")
      ->transform(size_in_bytes(1))
      ->needs(disk);
  command.add_option("--max-model-len", options.max_model_len, "Longest prompt + answer in tokens")->check(whole_number(2));
  command
      .add_option("--speculative-config", options.speculative_config,
                  "Draft tokens, the text stays the same: off, ngram (what the answer repeats of its prompt), suffix (and of earlier "
                  "answers), or JSON such as {\"method\": \"suffix\", \"num_speculative_tokens\": 8}; of a smaller model of the same "
                  "vocabulary: {\"method\": \"draft_model\", \"model\": \"PATH\"}")
      ->capture_default_str()
      ->check([](const std::string& text) {
        const auto parsed = parse_speculation(text);
        return parsed.is_ok() ? std::string() : std::string(parsed.status().message());
      });
  command.add_option("--generation-config", options.generation_config, "auto: the model's own sampling defaults; vllm: neutral ones")
      ->check(CLI::IsMember({"auto", "vllm"}));
}

void add_answer_options(CLI::App& command, GenerationOptions& options) {
  command
      .add_option("--max-tokens", options.max_tokens,
                  "Most tokens to make; default: to the end of the context; 0: only the prompt is computed")
      ->check(whole_number(0));
  command.add_option("--min-tokens", options.min_tokens, "Nothing ends the answer before so many tokens")->check(whole_number(0));
  command.add_flag("--ignore-eos", options.ignore_eos, "The model's end of text does not end the answer");
  command.add_option("--bad-word", options.bad_words, "Text that the answer must not contain; may be repeated")->allow_extra_args(false);
  command.add_option("--seed", options.seed, "The same seed gives the same text");
  command.add_option("--stop", options.stop, "Text that ends the answer; may be repeated")->allow_extra_args(false);
}

std::string model_name(const std::string& model) {
  const std::filesystem::path path(model);
  if (!std::filesystem::exists(path)) return model.substr(0, model.find('@'));
  const std::string file = std::filesystem::weakly_canonical(path).filename().string();
  return file.ends_with(".gguf") ? file.substr(0, file.size() - 5) : file;
}

GenerationRequest answer_request(std::vector<int32_t> prompt_tokens, SamplingParams sampling, uint64_t seed,
                                 const GenerationOptions& options) {
  GenerationRequest request;
  request.prompt_tokens = std::move(prompt_tokens);
  request.sampling = std::move(sampling);
  request.seed = seed;
  request.max_tokens = options.max_tokens;
  request.min_tokens = options.min_tokens;
  request.ignore_eos = options.ignore_eos;
  request.stop = options.stop;
  return request;
}

Result<SamplingParams> sampling_params(const LoadedModel& model, const Tokenizer& tokenizer, const GenerationOptions& options) {
  SamplingParams params = options.generation_config == "auto" ? model.default_sampling() : SamplingParams{};
  const auto set = [](float& to, const std::optional<double>& from) {
    if (from) to = static_cast<float>(*from);
  };
  set(params.temperature, options.temperature);
  set(params.top_p, options.top_p);
  set(params.min_p, options.min_p);
  set(params.repetition_penalty, options.repetition_penalty);
  set(params.presence_penalty, options.presence_penalty);
  set(params.frequency_penalty, options.frequency_penalty);
  set(params.typical_p, options.typical_p);
  set(params.top_n_sigma, options.top_n_sigma);
  set(params.xtc_probability, options.xtc_probability);
  set(params.xtc_threshold, options.xtc_threshold);
  set(params.dry_multiplier, options.dry_multiplier);
  set(params.dry_base, options.dry_base);
  set(params.mirostat_tau, options.mirostat_tau);
  set(params.mirostat_eta, options.mirostat_eta);
  params.top_k = options.top_k.value_or(params.top_k);
  params.dry_allowed_length = options.dry_allowed_length.value_or(params.dry_allowed_length);
  params.dry_penalty_last_n = options.dry_penalty_last_n.value_or(params.dry_penalty_last_n);
  params.mirostat = options.mirostat.value_or(params.mirostat);
  if (params.dry_multiplier > 0 || !options.dry_sequence_breakers.empty()) {
    DryBreakers breakers(tokenizer);
    MR_ASSIGN_OR_RETURN(params.dry_breakers, breakers.ids_of(options.dry_sequence_breakers.empty() ? DryBreakers::default_texts()
                                                                                                   : options.dry_sequence_breakers));
  }
  MR_ASSIGN_OR_RETURN(const auto bad_words, bad_word_tokens(tokenizer, options.bad_words));
  params.bad_words.insert(params.bad_words.end(), bad_words.begin(), bad_words.end());
  return params;
}

void add_kv_dtype_option(CLI::App& command, std::string& kv_cache_dtype, std::string_view of_what) {
  std::vector<std::string> choices{"auto"};
  for (const KvDtypeName& entry : kKvDtypeNames) choices.emplace_back(entry.name);
  command
      .add_option("--kv-cache-dtype", kv_cache_dtype,
                  fmt::format("{}{}auto (bf16), f32, bf16, int8, fp8-e4m3 or int4", of_what, of_what.empty() ? "" : ": "))
      ->check(CLI::IsMember(std::move(choices)));
}

Result<KvDType> parse_kv_dtype(const std::string& name, bool exact) {
  if (exact && name != "auto" && name != "f32") {
    return Status::invalid_argument(fmt::format("--exact caches keys and values in f32, --kv-cache-dtype says {}: leave one out", name));
  }
  if (exact) return KvDType::kF32;
  if (name == "auto") return KvDType::kBf16;
  for (const KvDtypeName& entry : kKvDtypeNames) {
    if (entry.name == name) return entry.dtype;
  }
  return Status::invalid_argument(fmt::format("unknown KV cache dtype \"{}\"; see --help", name));
}

std::string_view kv_dtype_name(KvDType dtype) { return std::ranges::find(kKvDtypeNames, dtype, &KvDtypeName::dtype)->name; }

std::string format_bytes(int64_t bytes) {
  if (bytes >= 1'000'000'000) return fmt::format("{:.2f} GB", static_cast<double>(bytes) * 1e-9);
  if (bytes >= 1'000'000) return fmt::format("{:.1f} MB", static_cast<double>(bytes) * 1e-6);
  return fmt::format("{:.1f} kB", static_cast<double>(bytes) * 1e-3);
}

int fail(const Status& status) {
  fmt::print(stderr, "millrace: {}\n", status.message());
  return kError;
}

}  // namespace millrace::cli
