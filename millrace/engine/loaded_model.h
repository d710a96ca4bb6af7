#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "millrace/base/cpu_features.h"
#include "millrace/base/thread_pool.h"
#include "millrace/engine/memory_plan.h"
#include "millrace/formats/checkpoint.h"
#include "millrace/model/cpu_executor.h"
#include "millrace/model/family.h"
#include "millrace/model/quantize.h"
#include "millrace/model/weight_cache.h"
#include "millrace/sampling/sampling.h"
#include "millrace/tokenizer/chat_template.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {

// kNone: tokenizer, template and network only. kPlan: and what the weights will be, enough to lower the network and say what it takes.
enum class LoadWeights { kNone, kPlan, kPack };

struct LoadOptions {
  std::optional<std::string> family_file;  // --family
  int num_threads = 0;                     // 0: every usable CPU
  ThreadPool* pool = nullptr;              // another model's, which outlives this one; null: one of its own, of num_threads
  LoadWeights weights = LoadWeights::kPack;
  std::optional<QuantizationOptions> quantization;  // of a model whose weights are stored plainly, while they are packed
  WeightCacheOptions weight_cache{};                // without a folder: the weights are packed
};

// A published model, opened and ready to compute: what serve, run, generate, inspect, verify and logits all begin with.
class LoadedModel {
 public:
  // `path` is a directory or GGUF file (resolve hub names first). Errors name the file and what is wrong with it. A missing or broken
  // tokenizer or chat template is no error here: it is kept, and reported by who needs the thing.
  static Result<std::unique_ptr<LoadedModel>> load(const std::string& path, const LoadOptions& options);

  const Checkpoint& checkpoint() const { return checkpoint_; }
  const Network& network() const { return network_; }
  const Weights& weights() const { return *weights_; }
  Result<const Tokenizer*> tokenizer() const;
  Result<const ChatTemplate*> chat_template() const;
  ThreadPool& pool() { return *pool_; }
  Isa isa() const { return isa_; }

  // "an encoder that makes embeddings of 384 numbers (bert family)", "a decoder that writes text (llama family)"
  std::string kind() const;
  // Errors say what the model is and what would serve it.
  Status require_decoder() const;  // that continues its own text: of an encoder-decoder an error, too
  Status require_writer() const;   // a decoder, or an encoder-decoder
  Status require_encoder() const;

  // Of an encoder: the longest text, as sentence_bert_config.json limits it, else what the network was made for.
  int64_t max_text_tokens() const;
  // Whether the weights are those of an earlier start, mapped from the packed cache. Else cache_error() may say why they are not.
  bool weights_from_cache() const { return weights_from_cache_; }
  const Status& cache_error() const { return cache_error_; }
  // What load-time quantization made of the weights, in words; empty: they are as they were stored.
  const std::string& quantization() const { return quantization_; }
  // Writes the packed weights to the cache where they are wanted there and not from there, in the background; given up when the model goes.
  // `on_failure` is called on the writing thread, unless another process writes the same or it was given up.
  void keep_weights(std::function<void(const Status&)> on_failure = {});
  void wait_for_cache();  // until keep_weights() is done

  // What the process holds when the KV cache is full and `num_outputs` sequences have had their next token computed together
  // (docs/memory.md).
  MemoryPlan memory_plan(const CpuExecutor& executor, int64_t kv_bytes, int64_t num_outputs) const;

  // Lowered and fused for the path, over the one packed copy of the weights.
  Result<std::unique_ptr<CpuExecutor>> make_executor(GemmPath path, KvDType kv_dtype, int32_t max_rows);

  // All that the executor's keys and values follow from but for their tokens: this program, the model's files, family and quantization, the
  // instruction set, path and KV dtype. KvDiskOptions::fingerprint.
  std::string kv_fingerprint(const CpuExecutor& executor) const;

  // What ends an answer, ascending: generation_config.json's ids (else config.json's), the tokenizer's EOS, and a GGUF's end-of-turn
  // tokens.
  std::vector<int32_t> eos_token_ids() const;
  // The model's own sampling defaults (generation_config.json), as in vLLM.
  SamplingParams default_sampling() const;
  // BOS and EOS as text, for the chat template.
  std::string bos_token() const, eos_token() const;

 private:
  explicit LoadedModel(Checkpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}
  void load_texts();
  Status load_weights(const LoadOptions& options);

  Checkpoint checkpoint_;
  Network network_;
  std::unique_ptr<ThreadPool> own_pool_;
  ThreadPool* pool_ = nullptr;
  Isa isa_ = Isa::kScalar;
  std::shared_ptr<const Weights> weights_;
  std::optional<WeightCache> weight_cache_;
  std::unique_ptr<WeightCacheWriter> cache_writer_;
  bool weights_from_cache_ = false;
  Status cache_error_;
  std::string quantization_;
  std::string family_description_;  // JSON
  int64_t tables_bytes_ = 0;
  std::optional<Tokenizer> tokenizer_;
  Status tokenizer_error_;
  std::optional<ChatTemplate> chat_template_;
  Status chat_template_error_;
};

}  // namespace millrace
