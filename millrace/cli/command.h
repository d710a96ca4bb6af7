#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>

#include "millrace/base/json_text.h"
#include "millrace/engine/encoder_engine.h"
#include "millrace/engine/engine.h"
#include "millrace/engine/loaded_model.h"

// The commands of the one executable. Each registers itself with its options, help and examples, and runs when it was chosen.
namespace millrace::cli {

// Exit statuses: 0 done, 1 a check the user asked for failed (verify), 2 it could not be done (the message says why).
inline constexpr int kDone = 0, kCheckFailed = 1, kError = 2;

// What every command that opens a model takes.
struct ModelOptions {
  std::string model;      // directory, GGUF file or org/name
  std::string gguf_file;  // which file of a hub repository
  std::string family;     // --family file.json
  int threads = 0;
  bool json = false;
  std::optional<std::string> quantization;  // --quantization, of commands that compute with the weights
  std::optional<int64_t> quantization_group_size;
  std::vector<std::string> quantization_exclude;
  bool quantization_symmetric = false;
  bool no_weight_cache = false;
  int64_t weight_cache_bytes = WeightCacheOptions{}.max_bytes;
};
void add_model_options(CLI::App& command, ModelOptions& options);
// Of these only MODEL, --gguf-file, --family and --json: for commands that compute nothing.
void add_source_options(CLI::App& command, ModelOptions& options);
// --quantization and what belongs to it: for commands that load the weights, or say what they take.
void add_quantization_options(CLI::App& command, ModelOptions& options);

// Resolves the name (downloading if need be, with a progress bar on a terminal), and loads. Weights may come from the packed cache; a cache
// file that is not believed is a warning.
// `pool`: another model's, which outlives this one; null: a pool of its own.
Result<std::unique_ptr<LoadedModel>> load_model(const ModelOptions& options, LoadWeights weights, ThreadPool* pool = nullptr);

// Writes the packed cache in the background; a failure is a warning. For commands that a user starts again and again.
void keep_weights(LoadedModel& model);

// The same, for commands that need a model which writes text: an encoder is refused with what it is for.
Result<std::unique_ptr<LoadedModel>> load_decoder(const ModelOptions& options);

// What generate and run take besides.
struct GenerationOptions {
  std::optional<double> temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<double> typical_p, top_n_sigma, xtc_probability, xtc_threshold, dry_multiplier, dry_base, mirostat_tau, mirostat_eta;
  std::optional<int> top_k, dry_allowed_length, dry_penalty_last_n, mirostat;
  std::vector<std::string> dry_sequence_breakers;  // empty: the usual ones
  std::optional<int64_t> max_tokens;
  int64_t min_tokens = 0;
  bool ignore_eos = false;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop, bad_words;
  bool exact = false;  // the exact path, with an f32 KV cache
  std::string kv_cache_dtype = "auto";
  int64_t kv_bytes = 0;     // 0: chosen from the context length
  std::string kv_disk_dir;  // empty: no disk tier of the prefix cache
  int64_t kv_disk_bytes = KvDiskOptions{}.max_bytes;
  int64_t max_model_len = 0;               // 0: what the network was made for
  std::string generation_config = "auto";  // "auto": the model's sampling defaults; "vllm": neutral ones
  std::string speculative_config = "off";  // parse_speculation()
};
void add_generation_options(CLI::App& command, GenerationOptions& options);
// --max-tokens, --seed, --stop and such: of an answer made here; a served request brings its own.
void add_answer_options(CLI::App& command, GenerationOptions& options);
// The prompt with these and the sampling parameters.
GenerationRequest answer_request(std::vector<int32_t> prompt_tokens, SamplingParams sampling, uint64_t seed,
                                 const GenerationOptions& options);
Result<SamplingParams> sampling_params(const LoadedModel& model, const Tokenizer& tokenizer, const GenerationOptions& options);

// An engine over the model, with its executor, running. Of `engine_options` the KV budget, context, EOS ids and speculation are set here;
// of `source`, what the model was loaded by, a draft model has the weight cache.
struct RunningEngine {
  std::unique_ptr<LoadedModel> draft;  // of --speculative-config, or null
  std::unique_ptr<CpuExecutor> draft_executor;
  std::unique_ptr<CpuExecutor> executor;
  std::unique_ptr<Engine> engine;  // goes first
};
Result<RunningEngine> start_engine(LoadedModel& model, const ModelOptions& source, const GenerationOptions& options,
                                   EngineOptions engine_options);

// The same for an encoder.
struct EncoderOptions {
  int64_t step_tokens = 1024;   // most tokens of one step
  int64_t max_text_tokens = 0;  // 0: what the model says
  int64_t max_queued_requests = 1024;
  std::string kv_cache_dtype = "auto";  // of keys and values within a step
  bool exact = false;
};
struct RunningEncoder {
  std::unique_ptr<CpuExecutor> executor;
  std::unique_ptr<EncoderEngine> engine;  // goes first
};
Result<RunningEncoder> start_encoder(LoadedModel& model, const EncoderOptions& options);

// --kv-cache-dtype; `of_what` is said before the choices. vLLM's names fp8 and fp8_e4m3 stand for fp8-e4m3.
void add_kv_dtype_option(CLI::App& command, std::string& kv_cache_dtype, std::string_view of_what = "");
// The exact path's is f32, and another one beside --exact is an error.
Result<KvDType> parse_kv_dtype(const std::string& name, bool exact = false);
std::string_view kv_dtype_name(KvDType dtype);

// What MODEL is called where it is served: "SmolLM2-135M-Instruct.Q4_1" of a path; org/name stays as it is.
std::string model_name(const std::string& model);

// "98.4 MB"
std::string format_bytes(int64_t bytes);

// Prints "millrace: message" to stderr and gives kError.
int fail(const Status& status);

// Registered in main.cc. `exit_status` is set when the command ran.
void register_serve(CLI::App& app, int& exit_status);
void register_run(CLI::App& app, int& exit_status);
void register_generate(CLI::App& app, int& exit_status);
void register_inspect(CLI::App& app, int& exit_status);
void register_tokenize(CLI::App& app, int& exit_status);
void register_template(CLI::App& app, int& exit_status);
void register_logits(CLI::App& app, int& exit_status);
void register_embed(CLI::App& app, int& exit_status);
void register_verify(CLI::App& app, int& exit_status);
void register_bench(CLI::App& app, int& exit_status);
void add_bench_speculation(CLI::App& bench, int& exit_status);  // below bench
void add_bench_serve(CLI::App& bench, int& exit_status);        // below bench
void add_bench_embed(CLI::App& bench, int& exit_status);        // below bench
void register_eval(CLI::App& app, int& exit_status);
void register_probe(CLI::App& app, int& exit_status);

}  // namespace millrace::cli
