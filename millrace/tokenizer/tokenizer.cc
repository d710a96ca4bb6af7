#include "millrace/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/byte_level.h"
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

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  return pipeline_->encode(text, options);
}

namespace {

void push_token(const TokenizerPipeline& pipeline, int32_t id, bool skip_special_tokens, DecoderChain& chain) {
  if (!pipeline.contains(id) || (skip_special_tokens && pipeline.is_special(id))) return;
  chain.push_token(pipeline.decoded_token(id));
}

}  // namespace

Result<EncodedInput> Tokenizer::encode_input(std::string_view text, std::optional<std::string_view> second,
                                             std::optional<int64_t> max_tokens) const {
  const EncodeOptions bare{.add_special_tokens = false};
  MR_ASSIGN_OR_RETURN(std::vector<int32_t> first_ids, pipeline_->encode(text, bare));
  std::vector<int32_t> second_ids;
  if (second) {
    MR_ASSIGN_OR_RETURN(second_ids, pipeline_->encode(*second, bare));
  }
  EncodedInput input;
  if (max_tokens) {
    const int64_t room = *max_tokens - pipeline_->post_processor.num_added(second.has_value());
    if (room < 0)
      return Status::invalid_argument(fmt::format("{} tokens do not hold the {} that the tokenizer adds", *max_tokens, *max_tokens - room));
    auto a = static_cast<int64_t>(first_ids.size()), b = static_cast<int64_t>(second_ids.size());
    if (a + b > room) {
      input.truncated = true;
      // The longer one gives way; where both are longer than half of the room they share it.
      if (a > b) {
        b = std::min(b, room / 2);
        a = room - b;
      } else {
        a = std::min(a, room / 2);
        b = room - a;
      }
      first_ids.resize(static_cast<std::size_t>(a));
      second_ids.resize(static_cast<std::size_t>(b));
    }
  }
  pipeline_->post_processor.join(first_ids, second ? &second_ids : nullptr, input.ids, input.types);
  return input;
}

Result<std::string> Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  DecoderChain chain(*pipeline_->decoder, ByteRuns::kWhole);
  for (const int32_t id : ids) push_token(*pipeline_, id, skip_special_tokens, chain);
  chain.finish();
  return chain.take();
}

int64_t Tokenizer::vocab_size() const { return pipeline_->vocab_size; }

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const std::optional<int32_t> id = pipeline_->added.find(token);
  return id ? id : pipeline_->model->vocabulary().find(token);
}

std::string_view Tokenizer::id_to_token(int32_t id) const { return pipeline_->token(id); }

std::string Tokenizer::token_text(int32_t id) const {
  DetokenizerStream stream(*this, false);
  // The text of the token twice, less that of the token once.
  std::string text = stream.push(id);
  text += stream.push(id);
  text += stream.finish();
  DetokenizerStream alone(*this, false);
  std::string once = alone.push(id);
  once += alone.finish();
  return text.starts_with(once) && text.size() > once.size() ? text.substr(once.size()) : once;
}

std::string Tokenizer::token_bytes(int32_t id) const {
  std::string text = token_text(id);
  if (text.find(utf8::kReplacement) == std::string::npos || pipeline_->added.contains(id)) return text;
  const std::string_view piece = id_to_token(id);
  unsigned byte = 0;
  if (piece.size() == 6 && piece.starts_with("<0x") && piece[5] == '>' &&
      std::from_chars(piece.data() + 3, piece.data() + 5, byte, 16).ptr == piece.data() + 5) {
    return {static_cast<char>(byte)};
  }
  std::string bytes;
  for (std::size_t at = 0; at < piece.size();) {
    const std::optional<unsigned char> level = byte_of_level_character(utf8::decode(piece, at));
    if (!level) return text;
    bytes += static_cast<char>(*level);
  }
  return bytes;
}

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
    : pipeline_(tokenizer.pipeline_),
      chain_(std::make_unique<DecoderChain>(*pipeline_->decoder, ByteRuns::kAsCompleted)),
      skip_special_tokens_(skip_special_tokens) {}
DetokenizerStream::DetokenizerStream(DetokenizerStream&&) noexcept = default;
DetokenizerStream& DetokenizerStream::operator=(DetokenizerStream&&) noexcept = default;
DetokenizerStream::~DetokenizerStream() = default;

std::string DetokenizerStream::push(int32_t id) {
  push_token(*pipeline_, id, skip_special_tokens_, *chain_);
  return chain_->take();
}

std::string DetokenizerStream::finish() {
  chain_->finish();
  return chain_->take();
}

}  // namespace millrace
