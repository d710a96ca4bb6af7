#pragma once

#include <fmt/format.h>

#include <string>

#include "millrace/base/check.h"
#include "millrace/tokenizer/tokenizer.h"

// For tests: token id = byte value, and one special token, "<|end|>", with id 256.
namespace millrace {

inline constexpr int32_t kByteTokenizerEnd = 256;

inline Tokenizer make_byte_tokenizer() {
  // A byte's stand-in in a byte-level vocabulary: itself where it is printable Latin-1, else the next code point from 256 on (GPT-2).
  std::string vocabulary;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const int code_point = printable ? byte : next++;
    vocabulary += fmt::format("{}\"\\u{:04x}\": {}", byte == 0 ? "" : ", ", code_point, byte);
  }
  auto tokenizer = Tokenizer::from_json(
      fmt::format(R"({{"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{{"id": 256, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}}],
        "pre_tokenizer": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}},
        "decoder": {{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}},
        "model": {{"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
          "fuse_unk": false, "byte_fallback": false, "vocab": {{{}}}, "merges": []}}}})",
                  vocabulary),
      "");
  MR_CHECK(tokenizer.is_ok(), tokenizer.status().message());
  return std::move(tokenizer).value();
}

}  // namespace millrace
