#include "millrace/engine/token_words.h"

#include <fmt/format.h>

#include <algorithm>

namespace millrace {
namespace {

constexpr EncodeOptions kBare{.add_special_tokens = false};

}  // namespace

Result<std::vector<std::vector<int32_t>>> bad_word_tokens(const Tokenizer& tokenizer, std::span<const std::string> words) {
  std::vector<std::vector<int32_t>> sequences;
  for (const std::string& word : words) {
    const std::size_t first = word.find_first_not_of(' ');
    if (first == std::string::npos) return Status::invalid_argument("bad_words has a word that is empty or all spaces");
    for (const char* before : {"", " "}) {
      Result<std::vector<int32_t>> tokens = tokenizer.encode(before + word.substr(first), kBare);
      if (!tokens.is_ok()) return tokens.status().with_context("bad_words");
      if (tokens->empty())
        return Status::invalid_argument(fmt::format("bad_words has \"{}\", of which the tokenizer makes no token", word));
      if (*before == '\0' || *tokens != sequences.back()) sequences.push_back(std::move(tokens).value());
    }
  }
  return sequences;
}

const std::vector<std::string>& DryBreakers::default_texts() {
  static const std::vector<std::string> texts = {"\n", ":", "\"", "*"};
  return texts;
}

Result<DryBreakers::Ids> DryBreakers::ids_of(const std::vector<std::string>& texts) {
  constexpr std::size_t kRemembered = 8;
  const std::lock_guard lock(mutex_);
  const auto known = std::find_if(remembered_.begin(), remembered_.end(), [&](const auto& entry) { return entry.first == texts; });
  if (known != remembered_.end()) {
    std::rotate(known, known + 1, remembered_.end());
    return remembered_.back().second;
  }
  std::vector<int32_t> ids;
  for (const std::string& text : texts) {
    if (text.empty()) return Status::invalid_argument("dry_sequence_breakers has an empty text");
    // Behind a letter, so that the tokenizer does not take it for the beginning of a text.
    MR_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, tokenizer_.encode("a" + text, kBare));
    if (!tokens.empty() && tokenizer_.token_text(tokens.back()) != "a") ids.push_back(tokens.back());
  }
  for (int32_t id = 0; id < tokenizer_.vocab_size(); ++id) {
    const std::string token = tokenizer_.token_text(id);
    if (std::any_of(texts.begin(), texts.end(), [&](const std::string& text) { return token.find(text) != std::string::npos; }))
      ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  if (remembered_.size() == kRemembered) remembered_.erase(remembered_.begin());
  remembered_.emplace_back(texts, std::make_shared<const std::vector<int32_t>>(std::move(ids)));
  return remembered_.back().second;
}

}  // namespace millrace
