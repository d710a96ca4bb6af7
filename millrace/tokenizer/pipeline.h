#pragma once

#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/tokenizer/added_tokens.h"
#include "millrace/tokenizer/decoder.h"
#include "millrace/tokenizer/normalizer.h"
#include "millrace/tokenizer/post_processor.h"
#include "millrace/tokenizer/pre_tokenizer.h"
#include "millrace/tokenizer/token_model.h"

namespace millrace {

// The parts of a tokenizer, however it was read. finish() makes the tables that depend on all of them.
struct TokenizerPipeline {
  std::unique_ptr<Normalizer> normalizer;       // may be null
  std::unique_ptr<PreTokenizer> pre_tokenizer;  // null: the text is one piece
  std::unique_ptr<TokenModel> model;
  PostProcessor post_processor;
  std::unique_ptr<Decoder> decoder;
  std::vector<AddedToken> added_tokens;  // ids settled, contents distinct
  std::optional<int32_t> bos_token_id, eos_token_id;
  std::vector<int32_t> other_control_ids;  // besides special added tokens, BOS and EOS
  std::string description_tail;            // "" or how it came here, for description()

  Status finish();
  Result<std::vector<int32_t>> encode(std::string_view text, const EncodeOptions& options) const;
  std::string_view token(int32_t id) const;
  std::string_view decoded_token(int32_t id) const;  // a normalized added token decodes to its normalized text
  bool contains(int32_t id) const;
  bool is_special(int32_t id) const { return static_cast<std::size_t>(id) < special.size() && special[static_cast<std::size_t>(id)]; }

  // Made by finish().
  Vocabulary added;                    // added tokens by content and id
  std::vector<bool> special, control;  // by id
  Vocabulary added_normalized;         // text by id, of the added tokens that the normalizer changes
  AddedTokenMatcher raw_matcher, normalized_matcher;
  int64_t vocab_size = 0;

 private:
  struct Plain;
  Status encode_text(std::string_view text, std::size_t begin, std::size_t end, const Plain& plain, std::vector<int32_t>& ids) const;
  Status encode_piece(std::string_view piece, bool at_start, bool allow_control, std::vector<int32_t>& ids) const;
};

// Reads tokenizer.json and tokenizer_config.json.
Result<std::shared_ptr<const TokenizerPipeline>> read_tokenizer_json(std::string_view tokenizer_json,
                                                                     std::string_view tokenizer_config_json);
// Translates what a GGUF file holds into the same parts.
Result<std::shared_ptr<const TokenizerPipeline>> translate_gguf_vocabulary(GgufVocabulary vocabulary);

}  // namespace millrace
