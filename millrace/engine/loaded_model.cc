#include "millrace/engine/loaded_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "millrace/base/process_memory.h"
#include "millrace/base/system_memory.h"

namespace millrace {
namespace {

GgufVocabulary gguf_vocabulary(const GgufFile& gguf) {
  const auto strings = [&](const char* key) {
    std::vector<std::string> out;
    if (const auto views = gguf.strings(key)) out.assign(views->begin(), views->end());
    return out;
  };
  const auto id = [&](const char* key) -> std::optional<int32_t> {
    const auto value = gguf.integer(key);
    if (!value || *value < 0 || *value > INT32_MAX) return std::nullopt;
    return static_cast<int32_t>(*value);
  };
  GgufVocabulary v;
  v.model = gguf.string("tokenizer.ggml.model").value_or("");
  v.pre = gguf.string("tokenizer.ggml.pre").value_or("");
  v.tokens = strings("tokenizer.ggml.tokens");
  v.scores = gguf.floats("tokenizer.ggml.scores").value_or(std::vector<float>());
  if (const auto types = gguf.integers("tokenizer.ggml.token_type")) v.token_types.assign(types->begin(), types->end());
  v.merges = strings("tokenizer.ggml.merges");
  if (const auto bytes = gguf.integers("tokenizer.ggml.precompiled_charsmap")) {
    for (int64_t byte : *bytes) v.precompiled_charsmap.push_back(static_cast<char>(byte));
  }
  v.bos_token_id = id("tokenizer.ggml.bos_token_id");
  v.eos_token_id = id("tokenizer.ggml.eos_token_id");
  v.eot_token_id = id("tokenizer.ggml.eot_token_id");
  v.unknown_token_id = id("tokenizer.ggml.unknown_token_id");
  v.separator_token_id = id("tokenizer.ggml.seperator_token_id");  // the format's own spelling
  v.padding_token_id = id("tokenizer.ggml.padding_token_id");
  v.cls_token_id = id("tokenizer.ggml.cls_token_id");
  v.mask_token_id = id("tokenizer.ggml.mask_token_id");
  v.add_bos_token = gguf.boolean("tokenizer.ggml.add_bos_token");
  v.add_eos_token = gguf.boolean("tokenizer.ggml.add_eos_token");
  v.add_space_prefix = gguf.boolean("tokenizer.ggml.add_space_prefix");
  v.remove_extra_whitespaces = gguf.boolean("tokenizer.ggml.remove_extra_whitespaces");
  return v;
}

Result<Tokenizer> load_tokenizer(const Checkpoint& checkpoint) {
  if (const GgufFile* gguf = checkpoint.gguf()) {
    if (gguf->find("tokenizer.ggml.model") == nullptr)
      return Status::not_found(checkpoint.path() + ": has no tokenizer.ggml.model, so no tokenizer");
    return Tokenizer::from_gguf(gguf_vocabulary(*gguf));
  }
  if (!checkpoint.tokenizer_json()) return Status::not_found(checkpoint.path() + ": has no tokenizer.json");
  return Tokenizer::from_json(*checkpoint.tokenizer_json(), checkpoint.tokenizer_config_json().value_or(""));
}

constexpr int64_t kSourceTokensMax = int64_t{1} << 13;

// A number or a list of numbers, as generation_config.json and config.json write eos_token_id.
void append_ids(const json::object& object, std::vector<int32_t>& ids) {
  const auto append = [&](const json::value& value) {
    if (value.is_int64() && value.as_int64() >= 0 && value.as_int64() <= INT32_MAX) ids.push_back(static_cast<int32_t>(value.as_int64()));
  };
  const json::value* value = object.if_contains("eos_token_id");
  if (value == nullptr) return;
  if (value->is_array()) {
    for (const json::value& item : value->as_array()) append(item);
  } else {
    append(*value);
  }
}

// Token sequences that an answer must not have: Marian's padding, for one. What is not written as lists of numbers is left out.
std::vector<std::vector<int32_t>> bad_words_of(const json::object& object) {
  std::vector<std::vector<int32_t>> words;
  const json::value* list = object.if_contains("bad_words_ids");
  if (list == nullptr || !list->is_array()) return words;
  for (const json::value& item : list->as_array()) {
    std::vector<int32_t> word;
    if (!item.is_array() || item.as_array().empty()) continue;
    for (const json::value& id : item.as_array())
      word.push_back(id.is_int64() ? static_cast<int32_t>(std::clamp<int64_t>(id.as_int64(), -1, INT32_MAX)) : -1);
    words.push_back(std::move(word));
  }
  return words;
}

}  // namespace

Result<std::unique_ptr<LoadedModel>> LoadedModel::load(const std::string& path, const LoadOptions& options) {
  MR_ASSIGN_OR_RETURN(Isa isa, choose_isa());
  MR_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(path));
  std::unique_ptr<LoadedModel> model(new LoadedModel(std::move(checkpoint)));
  model->isa_ = isa;

  Status status;
  {
    // The texts and the numbers have nothing to do with each other: a large vocabulary takes as long as a small model's weights.
    const std::jthread texts([&] { model->load_texts(); });
    status = model->load_weights(options);
  }
  MR_RETURN_IF_ERROR(status);
  if (model->weights_ != nullptr) {
    model->checkpoint_.drop_all_pages();
    release_freed_memory();
    model->tables_bytes_ = allocated_bytes();
  }
  return model;
}

void LoadedModel::load_texts() {
  if (auto tokenizer = load_tokenizer(checkpoint_); tokenizer.is_ok()) {
    tokenizer_ = std::move(tokenizer).value();
  } else {
    tokenizer_error_ = tokenizer.status();
  }
  if (const auto& source = checkpoint_.chat_template()) {
    if (auto compiled = ChatTemplate::compile(*source); compiled.is_ok()) {
      chat_template_ = std::move(compiled).value();
    } else {
      chat_template_error_ = compiled.status().with_context("chat template");
    }
  } else {
    chat_template_error_ = Status::not_found("the model has no chat template");
  }
}

Status LoadedModel::load_weights(const LoadOptions& options) {
  MR_ASSIGN_OR_RETURN(Family family, choose_family(checkpoint_, options.family_file));
  MR_ASSIGN_OR_RETURN(network_, bind_network(family, checkpoint_));
  family_description_ = json::serialize(family.description());
  if (options.quantization) {
    MR_ASSIGN_OR_RETURN(quantization_, quantize_network(checkpoint_, *options.quantization, network_));
  }
  pool_ = options.pool;
  if (pool_ == nullptr) {
    own_pool_ = std::make_unique<ThreadPool>(options.num_threads > 0 ? options.num_threads : usable_cpus());
    pool_ = own_pool_.get();
  }
  if (options.weights == LoadWeights::kNone) return Status::ok();
  MR_ASSIGN_OR_RETURN(Weights weights, Weights::plan(network_, *pool_));
  if (options.weights == LoadWeights::kPack) {
    WeightCacheOptions cache = options.weight_cache;
    cache.variant = quantization_;
    weight_cache_.emplace(network_, checkpoint_, weights, std::move(cache));
    if (weight_cache_->is_wanted()) {
      const Status mapped = weight_cache_->map(weights, *pool_);
      weights_from_cache_ = mapped.is_ok();
      if (mapped.code() != StatusCode::kNotFound) cache_error_ = mapped;
    }
    if (!weights_from_cache_) {
      const int64_t available = available_memory_bytes();
      if (weights.bytes() > available) {
        return Status::resource_exhausted(fmt::format("{}: its weights need {} MB of memory, {} MB are available", checkpoint_.path(),
                                                      weights.bytes() >> 20, available >> 20));
      }
      MR_RETURN_IF_ERROR(weights.pack_planned(checkpoint_, *pool_));
    }
  }
  weights_ = std::make_shared<const Weights>(std::move(weights));
  return Status::ok();
}

void LoadedModel::keep_weights(std::function<void(const Status&)> on_failure) {
  if (!weight_cache_ || !weight_cache_->is_wanted() || weights_from_cache_ || cache_writer_ != nullptr) return;
  cache_writer_ = std::make_unique<WeightCacheWriter>(*weight_cache_, weights_, std::move(on_failure));
}

void LoadedModel::wait_for_cache() {
  if (cache_writer_ != nullptr) cache_writer_->wait();
}

MemoryPlan LoadedModel::memory_plan(const CpuExecutor& executor, int64_t kv_bytes, int64_t num_outputs) const {
  return {.weights_bytes = weights_->bytes(),
          .kv_bytes = kv_bytes,
          .activation_bytes = executor.activation_bytes() + num_outputs * executor.output_row_bytes(),
          .tables_bytes = tables_bytes_};
}

Result<const Tokenizer*> LoadedModel::tokenizer() const {
  if (!tokenizer_) return tokenizer_error_;
  return &*tokenizer_;
}

Result<const ChatTemplate*> LoadedModel::chat_template() const {
  if (!chat_template_) return chat_template_error_;
  return &*chat_template_;
}

std::string LoadedModel::kind() const {
  if (network_.encoder != nullptr) return fmt::format("an encoder-decoder that answers a text with another ({} family)", network_.family);
  if (!network_.is_encoder()) return fmt::format("a decoder that writes text ({} family)", network_.family);
  if (network_.pooled->classes)
    return fmt::format("an encoder that scores texts for {} class{} ({} family)", network_.pooled->size,
                       network_.pooled->size == 1 ? "" : "es", network_.family);
  return fmt::format("an encoder that makes embeddings of {} numbers ({} family)", network_.pooled->size, network_.family);
}

Status LoadedModel::require_decoder() const {
  if (network_.encoder != nullptr) {
    return Status::unsupported(fmt::format(
        "{} is {}, expected a decoder that continues its own text: generate and serve answer with this one", checkpoint_.path(), kind()));
  }
  return require_writer();
}

Status LoadedModel::require_writer() const {
  if (!network_.is_encoder()) return Status::ok();
  return Status::unsupported(fmt::format("{} is {}, expected a decoder: it writes no text", checkpoint_.path(), kind()));
}

Status LoadedModel::require_encoder() const {
  if (network_.is_encoder()) return Status::ok();
  return Status::unsupported(fmt::format("{} is {}, expected an encoder: it makes no embeddings", checkpoint_.path(), kind()));
}

int64_t LoadedModel::max_text_tokens() const {
  const json::value* limit = checkpoint_.sentence_config().if_contains("max_seq_length");
  if (limit == nullptr || !limit->is_int64() || limit->as_int64() < 1) return network_.max_positions;
  return std::min(limit->as_int64(), network_.max_positions);
}

Result<std::unique_ptr<CpuExecutor>> LoadedModel::make_executor(GemmPath path, KvDType kv_dtype, int32_t max_rows) {
  MR_CHECK(weights_ != nullptr, "the model was loaded without its weights");
  Program program = lower_network(network_, *weights_, isa_, path);
  fuse(program);
  MR_ASSIGN_OR_RETURN(auto executor, CpuExecutor::create(network_, weights_, std::move(program), *pool_,
                                                         {isa_, path, kv_dtype, max_rows, tokenizer_ ? tokenizer_->vocab_size() : 0}));
  if (network_.encoder == nullptr) return executor;
  // A source text is read whole, so there are rows for the longest. Memory is taken from the system as far as it was ever used.
  Program encoder = lower_encoder(network_, *weights_, isa_, path);
  fuse(encoder);
  const int64_t rows = std::min<int64_t>(network_.encoder->max_positions, kSourceTokensMax);
  MR_ASSIGN_OR_RETURN(auto reader, CpuExecutor::create(*network_.encoder, weights_, std::move(encoder), *pool_,
                                                       {isa_, path, kv_dtype, static_cast<int32_t>(rows), 0}));
  executor->take_encoder(std::move(reader));
  return executor;
}

std::string LoadedModel::kv_fingerprint(const CpuExecutor& executor) const {
  const std::array<uint8_t, 32> key = packed_weights_key(checkpoint_, *weights_, quantization_);
  const CpuExecutorOptions& options = executor.options();
  return std::string(reinterpret_cast<const char*>(key.data()), key.size()) +
         fmt::format("{} {} {} {}", isa_name(options.isa), static_cast<int>(options.path), static_cast<int>(options.kv_dtype),
                     family_description_);
}

std::vector<int32_t> LoadedModel::eos_token_ids() const {
  std::vector<int32_t> ids;
  append_ids(checkpoint_.generation_config(), ids);
  if (ids.empty()) append_ids(checkpoint_.config(), ids);
  if (tokenizer_) {
    // A chat tune often ends its turns with the tokenizer's EOS while config.json still names the base model's.
    if (const auto eos = tokenizer_->eos_token_id()) ids.push_back(*eos);
    if (const GgufFile* gguf = checkpoint_.gguf()) {
      if (const auto eot = gguf->integer("tokenizer.ggml.eot_token_id"); eot && *eot >= 0 && *eot < network_.vocab_size)
        ids.push_back(static_cast<int32_t>(*eot));
      // Published files often lack that key though the chat template ends turns with one of these.
      for (const char* turn_end : {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endofturn|>"}) {
        if (const auto id = tokenizer_->token_to_id(turn_end); id && tokenizer_->is_special(*id)) ids.push_back(*id);
      }
    }
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  std::erase_if(ids, [&](int32_t id) { return id >= network_.vocab_size; });
  return ids;
}

SamplingParams LoadedModel::default_sampling() const {
  SamplingParams params;
  const json::object& config = checkpoint_.generation_config();
  const auto number = [&](const char* key, float low, float high) -> std::optional<float> {
    const json::value* value = config.if_contains(key);
    if (value == nullptr || !value->is_number()) return std::nullopt;
    const double found = value->to_number<double>();
    if (!(found >= low && found <= high)) return std::nullopt;
    return static_cast<float>(found);
  };
  params.temperature = number("temperature", 0.0f, 100.0f).value_or(params.temperature);
  params.top_p = number("top_p", 1e-6f, 1.0f).value_or(params.top_p);
  params.top_k = static_cast<int32_t>(number("top_k", 0.0f, 1e6f).value_or(static_cast<float>(params.top_k)));
  params.min_p = number("min_p", 0.0f, 1.0f).value_or(params.min_p);
  params.repetition_penalty = number("repetition_penalty", 1e-3f, 100.0f).value_or(params.repetition_penalty);
  params.bad_words = bad_words_of(config);
  if (params.bad_words.empty()) params.bad_words = bad_words_of(checkpoint_.config());
  std::erase_if(params.bad_words, [&](const std::vector<int32_t>& word) {
    return std::any_of(word.begin(), word.end(), [&](int32_t id) { return id < 0 || id >= network_.vocab_size; });
  });
  return params;
}

std::string LoadedModel::bos_token() const { return tokenizer_ ? tokenizer_->bos_token() : ""; }
std::string LoadedModel::eos_token() const { return tokenizer_ ? tokenizer_->eos_token() : ""; }

}  // namespace millrace
