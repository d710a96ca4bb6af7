#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "millrace/base/status.h"
#include "millrace/tokenizer/token_model.h"

namespace millrace {

// BERT's greedy longest match from the left (Wu et al. 2016, arXiv:1609.08144). A word with a part that is no token is one
// unknown token.
class WordPieceModel final : public TokenModel {
 public:
  WordPieceModel(Vocabulary vocabulary, int32_t unknown_id, std::string continuing_subword_prefix, int64_t max_input_chars_per_word);
  Status encode(std::string_view piece, bool allow_control, std::vector<int32_t>& ids) const override;
  std::string_view name() const override { return "WordPiece"; }

 private:
  int32_t unknown_id_;
  std::string prefix_;
  int64_t max_characters_;
  std::size_t longest_token_bytes_ = 0;
};

// Whole words only.
class WordLevelModel final : public TokenModel {
 public:
  WordLevelModel(Vocabulary vocabulary, int32_t unknown_id) : TokenModel(std::move(vocabulary)), unknown_id_(unknown_id) {}
  Status encode(std::string_view piece, bool allow_control, std::vector<int32_t>& ids) const override;
  std::string_view name() const override { return "WordLevel"; }

 private:
  int32_t unknown_id_;
};

}  // namespace millrace
