#include "millrace/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <utility>

#include "millrace/tokenizer/pipeline.h"

namespace millrace {

Result<Tokenizer> Tokenizer::from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  MR_ASSIGN_OR_RETURN(std::shared_ptr<const TokenizerPipeline> pipeline, read_tokenizer_json(tokenizer_json, tokenizer_config_json));
  return Tokenizer(std::move(pipeline));
}

Result<Tokenizer> Tokenizer::from_gguf(GgufVocabulary vocabulary) {
  MR_ASSIGN_OR_RETURN(std::shared_ptr<const TokenizerPipeline> pipeline, translate_gguf_vocabulary(std::move(vocabulary)));
  return Tokenizer(std::move(pipeline));
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const { return pipeline_->encode(text, options); }

Result<std::string> Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  DetokenizerStream stream(*this, skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) text += stream.push(id);
  return text += stream.finish();
}

int64_t Tokenizer::vocab_size() const { return pipeline_->vocab_size; }

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const std::optional<int32_t> id = pipeline_->added.find(token);
  return id ? id : pipeline_->model->vocabulary().find(token);
}

std::string_view Tokenizer::id_to_token(int32_t id) const { return pipeline_->token(id); }
bool Tokenizer::is_special(int32_t id) const { return id >= 0 && pipeline_->is_special(id); }
std::optional<int32_t> Tokenizer::bos_token_id() const { return pipeline_->bos_token_id; }
std::optional<int32_t> Tokenizer::eos_token_id() const { return pipeline_->eos_token_id; }

std::string Tokenizer::bos_token() const {
  return pipeline_->bos_token_id ? std::string(id_to_token(*pipeline_->bos_token_id)) : std::string();
}

std::string Tokenizer::eos_token() const {
  return pipeline_->eos_token_id ? std::string(id_to_token(*pipeline_->eos_token_id)) : std::string();
}

std::string Tokenizer::description() const {
  const bool byte_level = pipeline_->pre_tokenizer != nullptr && pipeline_->pre_tokenizer->is_byte_level();
  return fmt::format("{}{}, {} tokens, {} added{}", pipeline_->model->name(), byte_level ? ", byte level" : "", vocab_size(),
                     pipeline_->added.num_tokens(), pipeline_->description_tail);
}

DetokenizerStream::DetokenizerStream(const Tokenizer& tokenizer, bool skip_special_tokens)
    : pipeline_(tokenizer.pipeline_), chain_(std::make_unique<DecoderChain>(*pipeline_->decoder)), skip_special_tokens_(skip_special_tokens) {}
DetokenizerStream::DetokenizerStream(DetokenizerStream&&) noexcept = default;
DetokenizerStream& DetokenizerStream::operator=(DetokenizerStream&&) noexcept = default;
DetokenizerStream::~DetokenizerStream() = default;

std::string DetokenizerStream::push(int32_t id) {
  if (!pipeline_->contains(id) || (skip_special_tokens_ && pipeline_->is_special(id))) return {};
  chain_->push_token(pipeline_->decoded_token(id));
  return chain_->take();
}

std::string DetokenizerStream::finish() {
  chain_->finish();
  return chain_->take();
}

}  // namespace millrace
