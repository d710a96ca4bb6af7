#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/tokenizer/text_range.h"

// Text <-> token ids, equal to Hugging Face `tokenizers` for every tokenizer.json, and the same pipeline for the
// vocabularies inside GGUF files:
//
//   text -> added tokens cut out -> normalizer -> added tokens again -> pre-tokenizer -> model -> post-processor -> ids
//   ids  -> tokens -> decoder -> text
//
// Time is linear in the text for every model and every built-in split pattern; nothing recurses on the input.
namespace millrace {

struct EncodeOptions {
  bool add_special_tokens = true;  // run the post-processor (BOS and such)
  // Parts that a user wrote, sorted and disjoint: a control token (special, BOS or EOS) is not recognized where it would
  // overlap one, neither as written nor after normalization.
  std::span<const TextRange> plain_ranges = {};
  bool parse_special = true;  // false: the whole text is plain
};

// What a GGUF file holds under tokenizer.ggml.*.
struct GgufVocabulary {
  std::string model;  // "gpt2", "llama", "bert" or "t5"; others are an error naming it
  std::string pre;    // tokenizer.ggml.pre; empty is "default"
  std::vector<std::string> tokens;
  std::vector<float> scores;         // as many as tokens, or none
  std::vector<int32_t> token_types;  // 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; or none
  std::vector<std::string> merges;   // "left right"
  std::optional<int32_t> bos_token_id, eos_token_id, eot_token_id, unknown_token_id, separator_token_id, padding_token_id, cls_token_id,
      mask_token_id;
  std::optional<bool> add_bos_token, add_eos_token, add_space_prefix, remove_extra_whitespaces;
  std::string precompiled_charsmap;  // bytes, of "t5"; may be empty
};

// A text, or two, as an encoder reads it: with what the post-processor puts around and between them.
struct EncodedInput {
  std::vector<int32_t> ids;
  std::vector<int32_t> types;  // token types, of each id
  bool truncated = false;
};

struct TokenizerPipeline;  // pipeline.h

// Immutable: any number of threads may use one at a time. Copies share the vocabulary.
class Tokenizer {
 public:
  // `tokenizer_config_json` names the BOS and EOS tokens; it may be empty. Both texts are untrusted: an error names the field.
  static Result<Tokenizer> from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json);
  static Result<Tokenizer> from_gguf(GgufVocabulary vocabulary);

  // Invalid UTF-8 is an error that names the byte offset.
  Result<std::vector<int32_t>> encode(std::string_view text, const EncodeOptions& options = {}) const;
  // Of a pair `second` is the other text. Cut to `max_tokens` in all where given: the longer text at its end, as Hugging Face's
  // "longest_first" does. Error: so few tokens do not even hold the fixed ones.
  Result<EncodedInput> encode_input(std::string_view text, std::optional<std::string_view> second = {},
                                    std::optional<int64_t> max_tokens = {}) const;
  // Valid UTF-8 always: bytes that are no character become U+FFFD as in Hugging Face's decode. Unknown ids give nothing.
  Result<std::string> decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  int64_t vocab_size() const;  // highest id + 1
  std::optional<int32_t> token_to_id(std::string_view token) const;
  std::string_view id_to_token(int32_t id) const;  // the raw piece ("Ġthe"); empty for unknown ids
  // What the token adds within a text (" the"; at its beginning many decoders drop the space): as text, where bytes that are no whole
  // character are U+FFFD, and as the bytes themselves. Empty for unknown ids.
  std::string token_text(int32_t id) const;
  std::string token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;
  std::optional<int32_t> bos_token_id() const;
  std::optional<int32_t> eos_token_id() const;
  std::string bos_token() const;  // empty where there is none
  std::string eos_token() const;
  std::string description() const;  // "BPE, byte level, 49152 tokens, 17 added"

 private:
  friend class DetokenizerStream;
  explicit Tokenizer(std::shared_ptr<const TokenizerPipeline> pipeline) : pipeline_(std::move(pipeline)) {}
  std::shared_ptr<const TokenizerPipeline> pipeline_;
};

class DecoderChain;  // decoder.h

// Turns ids into text as they come. push() returns the text that has become certain, never half a UTF-8 character;
// all pieces and finish() together equal Tokenizer::decode of all ids, with one exception: a run of byte tokens that is not valid UTF-8 is
// U+FFFD from its first byte on there, and here only behind the characters that were complete and given. One thread at a time.
class DetokenizerStream {
 public:
  DetokenizerStream(const Tokenizer& tokenizer, bool skip_special_tokens);
  DetokenizerStream(DetokenizerStream&&) noexcept;
  DetokenizerStream& operator=(DetokenizerStream&&) noexcept;
  ~DetokenizerStream();

  std::string push(int32_t id);
  std::string finish();  // what was held back; the stream is spent afterwards

 private:
  std::shared_ptr<const TokenizerPipeline> pipeline_;
  std::unique_ptr<DecoderChain> chain_;
  bool skip_special_tokens_;
};

}  // namespace millrace
