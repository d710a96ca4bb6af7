#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/tokenizer/byte_trie.h"
#include "millrace/tokenizer/token_model.h"

namespace millrace {

struct UnigramOptions {
  std::optional<int32_t> unknown_id;
  bool byte_fallback = false;  // unknown characters become <0xNN> tokens, where all of them exist
};

// The most likely segmentation (Kudo 2018, arXiv:1804.10959), by Viterbi over the bytes: time is linear in the text, times
// the length of the longest token.
class UnigramModel final : public TokenModel {
 public:
  UnigramModel(Vocabulary vocabulary, std::vector<double> scores, UnigramOptions options);  // scores: [end_id]
  Status encode(std::string_view piece, bool allow_control, std::vector<int32_t>& ids) const override;
  std::string_view name() const override { return "Unigram"; }

 private:
  Status add_token(std::string_view text, bool allow_control, std::vector<int32_t>& ids) const;

  std::vector<double> scores_;
  UnigramOptions options_;
  ByteTrie trie_;
  double unknown_score_;
  std::array<int32_t, 256> byte_ids_;
};

}  // namespace millrace
