#include "millrace/tokenizer/wordpiece.h"

#include <algorithm>
#include <utility>

#include "millrace/base/utf8.h"

namespace millrace {
namespace {

bool is_character_start(char c) { return !utf8::is_continuation(c); }

}  // namespace

WordPieceModel::WordPieceModel(Vocabulary vocabulary, int32_t unknown_id, std::string continuing_subword_prefix,
                               int64_t max_input_chars_per_word)
    : TokenModel(std::move(vocabulary)),
      unknown_id_(unknown_id),
      prefix_(std::move(continuing_subword_prefix)),
      max_characters_(max_input_chars_per_word) {
  for (int64_t id = 0; id < this->vocabulary().end_id(); ++id) {
    longest_token_bytes_ = std::max(longest_token_bytes_, this->vocabulary().token(static_cast<int32_t>(id)).size());
  }
}

Status WordPieceModel::encode(std::string_view piece, bool allow_control, std::vector<int32_t>& ids) const {
  if (std::count_if(piece.begin(), piece.end(), is_character_start) > max_characters_) {
    ids.push_back(unknown_id_);
    return Status::ok();
  }
  const std::size_t before = ids.size();
  std::string token;
  for (std::size_t begin = 0; begin < piece.size();) {
    std::size_t end = std::min(piece.size(), begin + longest_token_bytes_);
    while (end > begin && end < piece.size() && !is_character_start(piece[end])) --end;
    int32_t found = -1;
    while (end > begin) {
      token = begin > 0 ? prefix_ : std::string();
      token += piece.substr(begin, end - begin);
      const std::optional<int32_t> id = vocabulary().find(token);
      if (id && (allow_control || !is_control(*id))) {
        found = *id;
        break;
      }
      do --end;
      while (end > begin && !is_character_start(piece[end]));
    }
    if (found < 0) {
      ids.resize(before);
      ids.push_back(unknown_id_);
      return Status::ok();
    }
    ids.push_back(found);
    begin = end;
  }
  return Status::ok();
}

Status WordLevelModel::encode(std::string_view piece, bool allow_control, std::vector<int32_t>& ids) const {
  const std::optional<int32_t> id = vocabulary().find(piece);
  ids.push_back(id && (allow_control || !is_control(*id)) ? *id : unknown_id_);
  return Status::ok();
}

}  // namespace millrace
