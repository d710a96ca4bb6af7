#pragma once

#include <string_view>

namespace millrace {

// What a value of tokenizer.ggml.pre stands for, in the language of tokenizer.json.
struct GgufPreTokenizer {
  std::string_view name;
  std::string_view normalizer;     // JSON; empty: none
  std::string_view pre_tokenizer;  // JSON of the parts before the byte-level mapping
  bool ignore_merges = false;
  bool add_bos = false;  // where the file does not say
};

// Null for an unknown name. An empty name is "default".
const GgufPreTokenizer* find_gguf_pre_tokenizer(std::string_view name);

}  // namespace millrace
