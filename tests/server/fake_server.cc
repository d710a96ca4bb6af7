// The real server and engine over an executor that computes no network: a token's successor comes from a hash of it and its
// position. The HTTP tests then need no weights and no time, and say what tokens cost (--step-ms).
//
//   fake_server --tokenizer tests/golden/models/llama --port 8000 --step-ms 2 --context 4096
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

#include "millrace/base/json.h"
#include "millrace/server/server.h"

namespace millrace {
namespace {

uint64_t mix(uint64_t x) {  // splitmix64's finalizer
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

class HashExecutor final : public Executor {
 public:
  HashExecutor(int64_t vocab_size, int64_t context, int step_ms, std::optional<int32_t> eos_token_id, std::vector<bool> special)
      : step_ms_(step_ms), eos_token_id_(eos_token_id), special_(std::move(special)) {
    info_.vocab_size = info_.sampled_vocab_size = vocab_size;
    info_.max_positions = context;
    KvGroupSpec group;
    group.num_layers = group.num_kv_heads = group.head_dim = 1;
    group.block_bytes = kKvBlockTokens * 8;
    info_.kv_groups.push_back(group);
  }

  const ExecutorInfo& info() const override { return info_; }
  Status allocate_kv(std::span<const int64_t>) override { return Status::ok(); }

  void enqueue(const StepPlan& plan) override {
    if (step_ms_ > 0) std::this_thread::sleep_for(std::chrono::milliseconds(step_ms_));
    std::vector<int32_t> tokens = plan.tokens;
    for (int32_t& token : tokens) {
      if (token < 0) token = output_.tokens[static_cast<std::size_t>(~token)].id;
    }
    std::vector<int32_t> positions(tokens.size());
    for (const StepPlan::Sequence& sequence : plan.sequences) {
      for (int32_t row = sequence.row_begin; row < sequence.row_end; ++row) {
        positions[static_cast<std::size_t>(row)] = sequence.first_position + row - sequence.row_begin;
      }
    }
    const auto vocab_size = static_cast<std::size_t>(info_.vocab_size);
    logits_.assign(plan.outputs.size() * vocab_size, 0);
    std::vector<SampledToken> sampled(plan.outputs.size());
    for (std::size_t i = 0; i < plan.outputs.size(); ++i) {
      const auto row = static_cast<std::size_t>(plan.outputs[i].row);
      const std::span<float> logits(logits_.data() + i * vocab_size, vocab_size);
      const uint64_t state = mix(static_cast<uint64_t>(tokens[row]) * 1'000'003 + static_cast<uint64_t>(positions[row]));
      for (std::size_t id = 0; id < vocab_size; ++id) {
        logits[id] = special_[id] ? -20.0f : static_cast<float>(mix(state + id) % 1024) / 64.0f;
      }
      if (eos_token_id_ && state % 97 == 0) logits[static_cast<std::size_t>(*eos_token_id_)] = 30.0f;
      if (plan.outputs[i].sampling != nullptr) sample(logits, *plan.outputs[i].sampling, scratch_, sampled[i]);
    }
    output_.tokens = std::move(sampled);
    output_.logits = logits_;
    output_.logits_stride = info_.vocab_size;
  }
  const StepOutput& wait() override { return output_; }

 private:
  ExecutorInfo info_;
  const int step_ms_;
  const std::optional<int32_t> eos_token_id_;  // absent: no answer ends by itself
  const std::vector<bool> special_;
  std::vector<float> logits_;
  SamplingScratch scratch_;
  StepOutput output_;
};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Status run(int argc, char** argv) {
  CLI::App app("Serves random text, for tests of the HTTP side");
  std::string tokenizer_dir, host = "127.0.0.1", name = "fake", scheduling_policy = "fcfs";
  uint16_t port = 0;
  int step_ms = 0;
  int64_t context = 4096, kv_blocks = 4096, max_queued = 1024, max_queued_tokens = 1 << 20, max_running = 64, num_connections = 4096,
          per_address = 1024;
  double drain_timeout = 30, stall_timeout = 60;
  bool endless = false;
  app.add_option("--tokenizer", tokenizer_dir, "directory with tokenizer.json and tokenizer_config.json")->required();
  app.add_option("--host", host);
  app.add_option("--port", port);
  app.add_option("--step-ms", step_ms, "time of one step");
  app.add_flag("--endless", endless, "no answer ends before its token limit");
  app.add_option("--max-model-len", context);
  app.add_option("--kv-blocks", kv_blocks);
  app.add_option("--max-num-queued-reqs", max_queued);
  app.add_option("--max-num-queued-tokens", max_queued_tokens);
  app.add_option("--max-num-seqs", max_running);
  app.add_option("--max-connections", num_connections);
  app.add_option("--max-connections-per-address", per_address);
  app.add_option("--scheduling-policy", scheduling_policy);
  app.add_option("--served-model-name", name);
  app.add_option("--shutdown-timeout", drain_timeout, "seconds");
  app.add_option("--stall-timeout", stall_timeout, "seconds");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return Status::invalid_argument(error.what());
  }

  const std::string config = read_file(tokenizer_dir + "/tokenizer_config.json");
  MR_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::from_json(read_file(tokenizer_dir + "/tokenizer.json"), config));
  MR_ASSIGN_OR_RETURN(const json::value parsed, parse_json(config));
  MR_ASSIGN_OR_RETURN(const ChatTemplate chat_template, ChatTemplate::compile(std::string(parsed.at("chat_template").as_string())));

  std::vector<bool> special;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) special.push_back(tokenizer.is_special(id));
  HashExecutor executor(tokenizer.vocab_size(), context, step_ms, endless ? std::nullopt : tokenizer.eos_token_id(), special);
  EngineOptions engine_options;
  engine_options.kv_bytes = kv_blocks * executor.info().kv_groups[0].block_bytes;
  engine_options.max_running_sequences = max_running;
  engine_options.max_queued_requests = max_queued;
  engine_options.max_queued_tokens = max_queued_tokens;
  if (const auto eos_token_id = tokenizer.eos_token_id()) engine_options.eos_token_ids = {*eos_token_id};
  MR_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::create(executor, &tokenizer, engine_options));
  engine->start();

  ServedModel model;
  model.name = name;
  model.engine = engine.get();
  model.tokenizer = &tokenizer;
  model.chat_template = &chat_template;
  model.bos_token = tokenizer.bos_token();
  model.eos_token = tokenizer.eos_token();
  model.facts = {{"executor", "hash"}};
  ServerOptions options;
  options.host = host;
  options.port = port;
  options.drain_timeout = std::chrono::milliseconds(static_cast<int64_t>(drain_timeout * 1000));
  options.stall_timeout = std::chrono::milliseconds(static_cast<int64_t>(stall_timeout * 1000));
  options.http.num_connections = num_connections;
  options.http.num_connections_per_address = per_address;
  options.allow_priority = scheduling_policy == "priority";
  if (const char* keys = std::getenv("MILLRACE_API_KEY")) {
    MR_ASSIGN_OR_RETURN(options.api_keys, parse_client_keys(keys));
  }
  return serve(std::move(model), std::move(options), [](uint16_t bound) { fmt::print(stderr, "listening on {}\n", bound); });
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  const millrace::Status status = millrace::run(argc, argv);
  if (status.is_ok()) return 0;
  fmt::print(stderr, "fake_server: {}\n", status.message());
  return 2;
}
