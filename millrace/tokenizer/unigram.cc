#include "millrace/tokenizer/unigram.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {
namespace {

// How much worse than the worst token an unknown character is; SentencePiece's constant.
constexpr double kUnknownPenalty = 10.0;

}  // namespace

UnigramModel::UnigramModel(Vocabulary vocabulary, std::vector<double> scores, UnigramOptions options)
    : TokenModel(std::move(vocabulary)), scores_(std::move(scores)), options_(options) {
  std::vector<std::pair<std::string_view, int32_t>> entries;
  double lowest = 0;
  for (int64_t id = 0; id < this->vocabulary().end_id(); ++id) {
    const auto token_id = static_cast<int32_t>(id);
    if (!this->vocabulary().contains(token_id)) continue;
    entries.emplace_back(this->vocabulary().token(token_id), token_id);
    lowest = entries.size() == 1 ? scores_[static_cast<std::size_t>(id)] : std::min(lowest, scores_[static_cast<std::size_t>(id)]);
  }
  trie_ = ByteTrie(std::move(entries));
  unknown_score_ = lowest - kUnknownPenalty;
  for (int byte = 0; byte < 256; ++byte) {
    byte_ids_[static_cast<std::size_t>(byte)] = this->vocabulary().find(fmt::format("<0x{:02X}>", byte)).value_or(-1);
  }
}

Status UnigramModel::encode(std::string_view piece, bool allow_control, std::vector<int32_t>& ids) const {
  struct Node {
    double score = 0;
    int32_t id = -1;    // of the token that ends here on the best path
    uint32_t size = 0;  // its bytes; 0: not reached
  };
  std::vector<Node> nodes(piece.size() + 1);
  for (std::size_t begin = 0; begin < piece.size();) {
    std::size_t next = begin;
    utf8::decode(piece, next);
    const double score = nodes[begin].score;
    bool has_single = false;
    const auto offer = [&](std::size_t size, double candidate, int32_t id) {
      Node& node = nodes[begin + size];
      if (node.size == 0 || candidate > node.score) node = {candidate, id, static_cast<uint32_t>(size)};
    };
    trie_.for_each_prefix(piece.substr(begin), [&](std::size_t size, int32_t id) {
      if (!allow_control && is_control(id)) return;
      offer(size, score + scores_[static_cast<std::size_t>(id)], id);
      has_single = has_single || size == next - begin;
    });
    if (!has_single) {
      if (!options_.unknown_id)
        return Status::invalid_argument("the text has a character outside the vocabulary, and the model has no unk_id");
      offer(next - begin, score + unknown_score_, *options_.unknown_id);
    }
    begin = next;
  }
  // Neighbouring unknown characters are one token, or the bytes of all of them.
  std::vector<TextRange> tokens;
  bool fusing = false;
  for (std::size_t end = piece.size(); end > 0;) {
    const Node& node = nodes[end];
    const std::size_t begin = end - node.size;
    const bool unknown = options_.unknown_id && node.id == *options_.unknown_id;
    if (unknown && fusing) {
      tokens.back().begin = begin;
    } else {
      tokens.push_back({begin, end});
    }
    fusing = unknown;
    end = begin;
  }
  for (auto range = tokens.rbegin(); range != tokens.rend(); ++range) {
    MR_RETURN_IF_ERROR(add_token(piece.substr(range->begin, range->end - range->begin), allow_control, ids));
  }
  return Status::ok();
}

Status UnigramModel::add_token(std::string_view text, bool allow_control, std::vector<int32_t>& ids) const {
  const std::optional<int32_t> id = vocabulary().find(text);
  if (id && (allow_control || !is_control(*id))) {
    ids.push_back(*id);
    return Status::ok();
  }
  if (options_.byte_fallback) {
    const auto byte_id = [&](char byte) { return byte_ids_[static_cast<unsigned char>(byte)]; };
    if (std::all_of(text.begin(), text.end(), [&](char byte) { return byte_id(byte) >= 0; })) {
      for (const char byte : text) ids.push_back(byte_id(byte));
      return Status::ok();
    }
  }
  if (!options_.unknown_id) return Status::invalid_argument("the text has a character outside the vocabulary, and the model has no unk_id");
  ids.push_back(*options_.unknown_id);
  return Status::ok();
}

}  // namespace millrace
