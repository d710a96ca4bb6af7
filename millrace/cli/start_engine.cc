// How a command gets a running engine: the executor, the size of the KV cache, the draft model and the disk tier that the options ask for.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "millrace/base/system_memory.h"
#include "millrace/cli/command.h"
#include "millrace/cli/speculative_config.h"
#include "millrace/engine/kv_sizing.h"
#include "millrace/engine/model_drafter.h"

namespace millrace::cli {
namespace {

// Loads the draft model and sees that it goes with the target.
Status load_draft(LoadedModel& model, const ModelOptions& source, const std::string& path, int64_t step_tokens_max,
                  RunningEngine& running) {
  ModelOptions draft;
  draft.model = path;
  draft.no_weight_cache = source.no_weight_cache;
  draft.weight_cache_bytes = source.weight_cache_bytes;
  MR_ASSIGN_OR_RETURN(running.draft, load_model(draft, LoadWeights::kPack, &model.pool()));
  MR_RETURN_IF_ERROR(running.draft->require_decoder());
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, running.draft->tokenizer());
  MR_ASSIGN_OR_RETURN(const Tokenizer* expected, model.tokenizer());
  if (const Status status = check_same_vocabulary(*tokenizer, *expected); !status.is_ok()) return status.with_context(path);
  const CpuExecutorOptions& of_target = running.executor->options();
  MR_ASSIGN_OR_RETURN(running.draft_executor,
                      running.draft->make_executor(of_target.path, of_target.kv_dtype, static_cast<int32_t>(step_tokens_max)));
  return check_draft_model(running.draft_executor->info(), running.executor->info());
}

// Blocks of a draft model's KV cache are as many as the target's largest group has.
int64_t draft_kv_bytes(const RunningEngine& running, const KvSizing& target) {
  if (running.draft_executor == nullptr) return 0;
  int64_t block_bytes = 0;
  for (const KvGroupSpec& group : running.draft_executor->info().kv_groups) block_bytes += group.block_bytes;
  return block_bytes * *std::ranges::max_element(target.num_blocks);
}

// What --kv-bytes says, if the machine has it. Else room for two sequences as long as the context or for as many as may run with
// kUsualTokens each, whichever is more; within limits. Pages are taken from the system when they are first used.
Result<int64_t> choose_kv_bytes(const GenerationOptions& options, const EngineOptions& engine, const RunningEngine& running) {
  constexpr int64_t kUsualTokens = 1024;
  constexpr double kBytesMin = 0x1p28, kBytesMax = 0x1p32;
  const ExecutorInfo& info = running.executor->info();
  const int64_t context = options.max_model_len > 0 ? options.max_model_len : info.max_positions;
  const int64_t available = available_memory_bytes();
  const auto sized = [&](int64_t bytes) {
    return size_kv(info.kv_groups, bytes, context, engine.max_running_sequences, engine.step_tokens_max);
  };
  if (options.kv_bytes > 0) {
    if (options.kv_bytes > available) {
      return Status::resource_exhausted(
          fmt::format("--kv-bytes: {} are asked for, {} are available", format_bytes(options.kv_bytes), format_bytes(available)));
    }
    const auto sizing = sized(options.kv_bytes);
    if (!sizing.is_ok()) return sizing.status().with_context("--kv-bytes");
    if (const int64_t of_draft = draft_kv_bytes(running, *sizing); of_draft > available - options.kv_bytes) {
      return Status::resource_exhausted(
          fmt::format("--kv-bytes: {} are asked for, with {} for the draft model's keys and values beside them; {} are available",
                      format_bytes(options.kv_bytes), format_bytes(of_draft), format_bytes(available)));
    }
    return options.kv_bytes;
  }
  const auto blocks_for = [](int64_t tokens) { return tokens / kKvBlockTokens + 1; };
  const int64_t blocks = std::max(2 * blocks_for(context), engine.max_running_sequences * blocks_for(std::min(context, kUsualTokens)));
  double bytes = 0;  // exact far beyond any machine's memory
  for (const KvGroupSpec& group : info.kv_groups) {
    // States are needed only where a sequence goes on and where a prefix may be taken up again: a few for each sequence.
    const int64_t of_group = group.state_floats > 0 ? std::min(blocks, 8 * engine.max_running_sequences) : blocks;
    bytes += static_cast<double>(of_group) * static_cast<double>(group.block_bytes);
  }
  const auto chosen = std::min(static_cast<int64_t>(std::clamp(bytes, kBytesMin, kBytesMax)), available / 2);
  const auto sizing = sized(chosen);
  if (!sizing.is_ok()) return chosen;  // the engine says what it needs
  const int64_t of_draft = draft_kv_bytes(running, *sizing);
  if (chosen + of_draft <= available / 2) return chosen;
  return static_cast<int64_t>(static_cast<double>(available / 2) * (static_cast<double>(chosen) / static_cast<double>(chosen + of_draft)));
}

}  // namespace

Result<RunningEngine> start_engine(LoadedModel& model, const ModelOptions& source, const GenerationOptions& options,
                                   EngineOptions engine_options) {
  MR_RETURN_IF_ERROR(model.require_writer());
  MR_ASSIGN_OR_RETURN(const KvDType kv_dtype, parse_kv_dtype(options.kv_cache_dtype, options.exact));
  RunningEngine running;
  MR_ASSIGN_OR_RETURN(running.executor, model.make_executor(options.exact ? GemmPath::kExact : GemmPath::kFast, kv_dtype,
                                                            static_cast<int32_t>(engine_options.step_tokens_max)));
  MR_ASSIGN_OR_RETURN(const SpeculativeConfig speculation, parse_speculation(options.speculative_config));
  engine_options.speculation = speculation.options;
  if (speculation.options.method == SpeculationMethod::kDraftModel) {
    const Status loaded = load_draft(model, source, speculation.draft_model, engine_options.step_tokens_max, running);
    if (!loaded.is_ok()) return loaded.with_context("--speculative-config");
    engine_options.speculation.draft_executor = running.draft_executor.get();
  }
  engine_options.eos_token_ids = model.eos_token_ids();
  const ExecutorInfo& info = running.executor->info();
  if (options.max_model_len > info.max_positions) {
    return Status::invalid_argument(
        fmt::format("--max-model-len: {}, the model was made for {}", options.max_model_len, info.max_positions));
  }
  engine_options.max_context = options.max_model_len;
  MR_ASSIGN_OR_RETURN(engine_options.kv_bytes, choose_kv_bytes(options, engine_options, running));
  if (!options.kv_disk_dir.empty()) {
    engine_options.kv_disk.folder = options.kv_disk_dir;
    engine_options.kv_disk.max_bytes = options.kv_disk_bytes;
    engine_options.kv_disk.fingerprint = model.kv_fingerprint(*running.executor);
    engine_options.kv_disk.on_warning = [](const std::string& message) {
      fmt::print(stderr, "millrace: warning: --kv-disk-dir: {}\n", message);
    };
    MR_RETURN_IF_ERROR(check_kv_disk(engine_options, info).with_context("--kv-disk-dir"));
  }
  const auto tokenizer = model.tokenizer();
  if (!tokenizer.is_ok()) return tokenizer.status();
  MR_ASSIGN_OR_RETURN(running.engine, Engine::create(*running.executor, *tokenizer, engine_options));
  running.engine->start();
  if (running.draft != nullptr) keep_weights(*running.draft);
  return running;
}

Result<RunningEncoder> start_encoder(LoadedModel& model, const EncoderOptions& options) {
  MR_RETURN_IF_ERROR(model.require_encoder());
  MR_ASSIGN_OR_RETURN(const KvDType kv_dtype, parse_kv_dtype(options.kv_cache_dtype, options.exact));
  EncoderEngineOptions engine;
  engine.step_tokens_max = options.step_tokens;
  engine.max_text_tokens = model.max_text_tokens();
  if (options.max_text_tokens > 0) {
    if (options.max_text_tokens > model.network().max_positions) {
      return Status::invalid_argument(
          fmt::format("--max-model-len: {}, the model was made for {}", options.max_text_tokens, model.network().max_positions));
    }
    engine.max_text_tokens = options.max_text_tokens;
  }
  engine.max_queued_requests = options.max_queued_requests;
  RunningEncoder running;
  const int64_t rows = EncoderEngine::rows_needed(engine, model.network().max_positions);
  MR_ASSIGN_OR_RETURN(running.executor,
                      model.make_executor(options.exact ? GemmPath::kExact : GemmPath::kFast, kv_dtype, static_cast<int32_t>(rows)));
  MR_ASSIGN_OR_RETURN(running.engine, EncoderEngine::create(*running.executor, engine));
  running.engine->start();
  return running;
}

}  // namespace millrace::cli
