#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/tokenizer/byte_trie.h"
#include "millrace/tokenizer/function_ref.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character is beside it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space behind it
  bool normalized = true;    // found in the normalized text, written as the normalizer leaves it
  bool special = false;      // left out of decoded text on request
};

// Finds tokens that are cut out of the text before the model sees it: the leftmost, and of those the longest.
class AddedTokenMatcher {
 public:
  // `patterns[i]` is what `tokens[i]` looks like in the text.
  struct Pattern {
    std::string text;
    AddedToken token;
    bool control = false;  // never found in a user's words
  };
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(std::vector<Pattern> patterns);

  bool empty() const { return trie_.empty(); }

  // Which bytes of the text at hand a user wrote; null: none.
  using IsPlain = FunctionRef<bool(std::size_t begin, std::size_t end)>;
  // on_text(begin, end) and on_token(begin, end, id), in order and covering the text but for stripped spaces.
  using OnText = FunctionRef<Status(std::size_t begin, std::size_t end)>;
  using OnToken = FunctionRef<Status(int32_t id)>;
  Status split(std::string_view text, const IsPlain* is_plain, OnText on_text, OnToken on_token) const;

 private:
  std::vector<Pattern> patterns_;
  ByteTrie trie_;
};

}  // namespace millrace
