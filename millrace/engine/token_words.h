#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/tokenizer/tokenizer.h"

// Words that a request names in its sampling parameters, as tokens.
namespace millrace {

// SamplingParams::bad_words of these words: each as it is spelled at the beginning of a text and after a space, as in vLLM. A word that a
// completion spells in other tokens is not recognized. Error: a word that is empty, or no UTF-8.
Result<std::vector<std::vector<int32_t>>> bad_word_tokens(const Tokenizer& tokenizer, std::span<const std::string> words);

// SamplingParams::dry_breakers of these texts: every token whose text has one of them in it, and of a text of several tokens the last.
// Reads the whole vocabulary, so what the last few lists gave is remembered. Any thread.
class DryBreakers {
 public:
  using Ids = std::shared_ptr<const std::vector<int32_t>>;

  explicit DryBreakers(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}  // copies share the vocabulary
  Result<Ids> ids_of(const std::vector<std::string>& texts);

  static const std::vector<std::string>& default_texts();  // llama.cpp's: newline, colon, quote, asterisk

 private:
  const Tokenizer tokenizer_;
  std::mutex mutex_;
  std::vector<std::pair<std::vector<std::string>, Ids>> remembered_;  // the latest last
};

}  // namespace millrace
