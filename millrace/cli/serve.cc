#include "millrace/server/server.h"

#include <fmt/format.h>

#include <cstdlib>

#include "millrace/base/mapped_file.h"
#include "millrace/base/process_memory.h"
#include "millrace/cli/command.h"
#include "millrace/cli/option_values.h"
#include "millrace/engine/draft_planner.h"

namespace millrace::cli {
namespace {

struct ServeOptions : ModelOptions, GenerationOptions {
  std::string host = "127.0.0.1";
  int port = 8000;
  std::vector<std::string> names;
  std::string api_key_file, chat_template, scheduling_policy = "fcfs";
  bool allow_open_without_key = false;
  int64_t max_num_seqs = 64, max_num_batched_tokens = 512, max_queued = 1024, max_queued_tokens = 1 << 20;
  int drain_timeout_s = 30, stall_timeout_s = 60, max_connections = 4096;
  bool no_prefix_caching = false;
  double tpot_target_ms = 0;
};

Result<std::vector<ClientKey>> api_keys(const ServeOptions& options) {
  std::vector<ClientKey> keys;
  if (!options.api_key_file.empty()) {
    MR_ASSIGN_OR_RETURN(const std::string text, read_text_file(options.api_key_file, 1 << 16));
    auto parsed = parse_client_keys(text);
    if (!parsed.is_ok()) return parsed.status().with_context(fmt::format("--api-key-file: {}", options.api_key_file));
    keys = std::move(parsed).value();
    if (keys.empty()) return Status::invalid_argument(fmt::format("--api-key-file: {} is empty", options.api_key_file));
  } else if (const char* variable = std::getenv("MILLRACE_API_KEY")) {
    keys.push_back({variable});
    // A script whose secret is missing must not open the server.
    if (keys[0].key.empty()) return Status::invalid_argument("MILLRACE_API_KEY is empty; unset it to serve without a key");
  }
  return keys;
}

Result<RunningEngine> start_decoder(LoadedModel& model, const ServeOptions& options, std::span<const ClientKey> keys) {
  EngineOptions engine_options;
  engine_options.max_running_sequences = options.max_num_seqs;
  engine_options.step_tokens_max = std::max(options.max_num_batched_tokens, options.max_num_seqs);
  engine_options.tpot_target_seconds = options.tpot_target_ms / 1e3;
  engine_options.max_queued_requests = options.max_queued;
  engine_options.max_queued_tokens = options.max_queued_tokens;
  for (const ClientKey& key : keys) {
    engine_options.client_weights.push_back(key.weight);
    engine_options.client_salts.push_back(cache_salt(key));
  }
  engine_options.prefix_cache = !options.no_prefix_caching;
  return start_engine(model, options, options, engine_options);
}

void print_decoder(const LoadedModel& model, const RunningEngine& running, const ServeOptions& options, int64_t num_sequences) {
  fmt::print("  model            {} family, weights {}{}, KV cache up to {} ({}), context {} tokens\n", model.network().family,
             format_bytes(model.weights().bytes()), model.weights_from_cache() ? " from the packed cache" : "",
             format_bytes(running.executor->kv_bytes()), kv_dtype_name(running.executor->options().kv_dtype),
             running.engine->max_request_tokens());
  if (!model.quantization().empty()) fmt::print("  quantization     {}\n", model.quantization());
  if (const auto disk = running.engine->metrics().kv_disk)
    fmt::print("  disk tier        {}, holds {} of {}\n", options.kv_disk_dir, format_bytes(disk->held_bytes),
               format_bytes(options.kv_disk_bytes));
  MemoryPlan memory = model.memory_plan(*running.executor, running.executor->kv_bytes(), num_sequences);
  if (running.draft != nullptr) {
    fmt::print("  draft model      {} family, weights {}, KV cache up to {}\n", running.draft->network().family,
               format_bytes(running.draft->weights().bytes()), format_bytes(running.draft_executor->kv_bytes()));
    memory.include(running.draft->memory_plan(*running.draft_executor, running.draft_executor->kv_bytes(), num_sequences));
  }
  fmt::print("  memory           resident now {}, {} when the KV cache is full\n", format_bytes(process_memory().resident_bytes),
             format_bytes(memory.total_bytes()));
}

void print_encoder(const LoadedModel& model, const RunningEncoder& running, const std::string& address, const std::string& name,
                   const std::string& key) {
  fmt::print("  model            {}, weights {}, texts of up to {} tokens, resident now {}\n", model.kind(),
             format_bytes(model.weights().bytes()), running.engine->max_text_tokens(), format_bytes(process_memory().resident_bytes));
  if (!model.quantization().empty()) fmt::print("  quantization     {}\n", model.quantization());
  const bool classes = model.network().pooled->classes;
  const bool pairs = classes && running.engine->output_size() == 1;
  const std::string body = pairs ? R"("query": "What is a mill race?", "documents": ["A channel of fast water.", "A kind of bread."])"
                                 : R"("input": "A mill race is a channel of fast water.")";
  fmt::print("  try              curl {}{} -H 'Content-Type: application/json' {}-d '{{\"model\": \"{}\", {}}}'\n", address,
             pairs     ? "/v1/rerank"
             : classes ? "/classify"
                       : "/v1/embeddings",
             key, name, body);
}

Status run_serve(const ServeOptions& options) {
  MR_RETURN_IF_ERROR(parse_kv_dtype(options.kv_cache_dtype, options.exact).status());
  ServerOptions server_options;
  server_options.host = options.host;
  server_options.port = static_cast<uint16_t>(options.port);
  MR_ASSIGN_OR_RETURN(server_options.api_keys, api_keys(options));
  server_options.allow_open_without_key = options.allow_open_without_key;
  server_options.drain_timeout = std::chrono::seconds(options.drain_timeout_s);
  server_options.stall_timeout = std::chrono::seconds(options.stall_timeout_s);
  server_options.http.num_connections = options.max_connections;
  server_options.allow_priority = options.scheduling_policy == "priority";

  MR_ASSIGN_OR_RETURN(auto model, load_model(options, LoadWeights::kPack));
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model->tokenizer());
  std::optional<ChatTemplate> given_template;
  if (!options.chat_template.empty()) {
    MR_ASSIGN_OR_RETURN(std::string source, read_text_file(options.chat_template));
    auto compiled = ChatTemplate::compile(std::move(source));
    if (!compiled.is_ok()) return compiled.status().with_context(options.chat_template);
    given_template = std::move(compiled).value();
  }
  RunningEngine running;
  RunningEncoder encoder;
  if (model->network().is_encoder()) {
    if (!options.kv_disk_dir.empty()) {
      return Status::unsupported(
          fmt::format("--kv-disk-dir: {} is {}, which keeps nothing from text to text", options.model, model->kind()));
    }
    MR_ASSIGN_OR_RETURN(encoder, start_encoder(*model, {.step_tokens = std::max<int64_t>(options.max_num_batched_tokens, 1),
                                                        .max_text_tokens = options.max_model_len,
                                                        .max_queued_requests = options.max_queued,
                                                        .kv_cache_dtype = options.kv_cache_dtype,
                                                        .exact = options.exact}));
  } else {
    MR_ASSIGN_OR_RETURN(running, start_decoder(*model, options, server_options.api_keys));
  }

  ServedModel served;
  const std::string name = options.names.empty() ? model_name(options.model) : options.names[0];
  served.name = name;
  if (options.names.size() > 1) served.aliases.assign(options.names.begin() + 1, options.names.end());
  served.engine = running.engine.get();
  served.encoder = encoder.engine.get();
  served.kind = model->kind();
  if (model->network().is_encoder() && model->network().pooled->classes)
    served.classes = ClassScores::of(model->checkpoint().config(), encoder.engine->output_size());
  served.tokenizer = tokenizer;
  const auto own_template = model->chat_template();
  if (given_template) {
    served.chat_template = &*given_template;
  } else if (own_template.is_ok()) {
    served.chat_template = *own_template;
  } else {
    served.chat_template_error = own_template.status().message();
  }
  served.bos_token = model->bos_token();
  served.eos_token = model->eos_token();
  MR_ASSIGN_OR_RETURN(served.default_sampling, sampling_params(*model, *tokenizer, options));
  served.facts = {
      {"isa", std::string(isa_name(model->isa()))},
      {"threads", std::to_string(model->pool().num_threads())},
      {"family", model->network().family},
      {"version", MILLRACE_VERSION},
      {"kv_cache_dtype", std::string(kv_dtype_name((running.executor ? running.executor : encoder.executor)->options().kv_dtype))}};

  const Status status = serve(std::move(served), server_options, [&](uint16_t port) {
    const std::string address =
        fmt::format("http://{}:{}", options.host.find(':') == std::string::npos ? options.host : "[" + options.host + "]", port);
    fmt::print("millrace {} serves {} on {}\n", MILLRACE_VERSION, name, address);
    fmt::print("  instruction set  {}, {} threads\n", isa_name(model->isa()), model->pool().num_threads());
    const std::string key = server_options.api_keys.empty() ? "" : "-H \"Authorization: Bearer $MILLRACE_API_KEY\" ";
    keep_weights(*model);
    if (encoder.engine != nullptr) {
      print_encoder(*model, encoder, address, name, key);
      std::fflush(stdout);
      return;
    }
    // Every row whose token is wanted needs room for its logits: of each sequence one, and those of drafts.
    print_decoder(*model, running, options,
                  options.max_num_seqs + (options.speculative_config == "off" ? 0 : DraftPlanner::kDraftTokensMax));
    if (!own_template.is_ok() && !given_template) fmt::print("  chat             refused: {}\n", own_template.status().message());
    fmt::print(
        "  chat page        {}/\n  try              curl {}/v1/chat/completions -H 'Content-Type: application/json' {}-d '{{\"model\": "
        "\"{}\", \"temperature\": 0, \"messages\": [{{\"role\": \"user\", \"content\": \"Explain gravity in one sentence.\"}}]}}'\n",
        address, address, key, name);
    std::fflush(stdout);
  });
  if (running.engine != nullptr) running.engine->stop();
  if (encoder.engine != nullptr) encoder.engine->stop();
  return status;
}

}  // namespace

void register_serve(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("serve", "OpenAI-compatible server with a chat page");
  auto options = std::make_shared<ServeOptions>();
  add_model_options(*command, *options);
  add_quantization_options(*command, *options);
  command->add_option("--host", options->host, "Address to listen on")->capture_default_str();
  command->add_option("--port", options->port, "Port to listen on; 0: any free one")->check(CLI::Range(0, 65535))->capture_default_str();
  command->add_option("--served-model-name", options->names, "Name in the API; may be repeated; default: the file's or directory's name")
      ->allow_extra_args(false);
  command
      ->add_option("--api-key-file", options->api_key_file,
                   "File with the keys that clients must send, one a line, each with \"weight=N\" behind it where its share is not 1 "
                   "(or one key in the variable MILLRACE_API_KEY)")
      ->check(CLI::ExistingFile);
  command->add_flag("--allow-open-without-key", options->allow_open_without_key, "Listen beyond this machine though no key is asked for");
  command->add_option("--chat-template", options->chat_template, "Jinja file to use instead of the model's own")->check(CLI::ExistingFile);
  command->add_option("--max-num-seqs", options->max_num_seqs, "Most sequences computed together")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--max-num-batched-tokens", options->max_num_batched_tokens, "Most tokens of one step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command
      ->add_option("--tpot-target-ms", options->tpot_target_ms,
                   "Prompts take no more of a step than lets a token come so often to everybody else; 0: no limit")
      ->check(number_within(0, 1e6))
      ->capture_default_str();
  command->add_option("--max-num-queued-reqs", options->max_queued, "Most requests waiting; further ones get 429")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--max-num-queued-tokens", options->max_queued_tokens,
                   "Most prompt tokens of the requests that wait; further ones get 429")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  command
      ->add_option("--scheduling-policy", options->scheduling_policy, "fcfs: in order of arrival; priority: requests may name a priority")
      ->check(CLI::IsMember({"fcfs", "priority"}))
      ->capture_default_str();
  command->add_flag("--no-enable-prefix-caching", options->no_prefix_caching, "Compute equal prompt beginnings anew");
  command->add_option("--shutdown-timeout", options->drain_timeout_s, "Seconds that running requests get after SIGTERM")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  command->add_option("--stall-timeout", options->stall_timeout_s, "Seconds that a step may take before /health says 503")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  command->add_option("--max-connections", options->max_connections, "Most client connections")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  add_generation_options(*command, *options);
  command->footer(
      "The sampling options are the defaults of requests that leave them out.\n"
      "Examples:\n  millrace serve model.gguf\n  MILLRACE_API_KEY=secret millrace serve ./Qwen3-0.6B --host 0.0.0.0 --port 9000\n"
      "  millrace serve ./Qwen3-0.6B --quantization int8");
  command->callback([options, &exit_status] {
    if (const Status status = run_serve(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
