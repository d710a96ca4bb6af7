#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/tokenizer/vocabulary.h"

namespace millrace {

// The step from a pre-token to ids: BPE, Unigram, WordPiece or WordLevel.
class TokenModel {
 public:
  explicit TokenModel(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}
  virtual ~TokenModel() = default;

  // Appends the ids of one pre-token: valid UTF-8, not empty. Without `allow_control` no control token is made, however the
  // text reads: it holds something that a user wrote.
  virtual Status encode(std::string_view piece, bool allow_control, std::vector<int32_t>& ids) const = 0;
  virtual std::string_view name() const = 0;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  void set_control_ids(std::vector<bool> control) { control_ = std::move(control); }

 protected:
  bool is_control(int32_t id) const { return static_cast<std::size_t>(id) < control_.size() && control_[static_cast<std::size_t>(id)]; }

 private:
  Vocabulary vocabulary_;
  std::vector<bool> control_;  // by id; may be shorter than the vocabulary
};

}  // namespace millrace
