#include "millrace/tokenizer/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>
#include <unordered_map>

#include "millrace/base/utf8.h"

namespace millrace {

void MergeTable::reserve(std::size_t num_merges) {
  std::size_t size = 16;
  while (size < num_merges * 2) size *= 2;
  if (size > slots_.size()) resize(size);
}

void MergeTable::resize(std::size_t size) {
  std::vector<Slot> old(size);
  old.swap(slots_);
  mask_ = size - 1;
  num_used_ = 0;
  for (const Slot& slot : old) {
    if (slot.left >= 0) set(slot.left, slot.right, slot.merge);
  }
}

void MergeTable::set(int32_t left, int32_t right, Merge merge) {
  if ((num_used_ + 1) * 2 > slots_.size()) resize(slots_.size() * 2);
  std::size_t slot = hash(left, right) & mask_;
  while (slots_[slot].left >= 0 && (slots_[slot].left != left || slots_[slot].right != right)) slot = (slot + 1) & mask_;
  if (slots_[slot].left < 0) ++num_used_;
  slots_[slot] = {left, right, merge};
}

namespace {

// Up to here the quadratic scan wins over the queue: most pre-tokens are a word long.
constexpr std::size_t kShortMax = 48;
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
constexpr uint32_t kNowhere = std::numeric_limits<uint32_t>::max();

// Positions waiting to be merged, by rank. A piece of one repeated character has millions of positions but few ranks, so
// that a heap of ranks, each with the list of its positions, is linear where a heap of positions is not.
class RankQueue {
 public:
  void push(uint32_t rank, uint32_t position) {
    // Neighbours often wait for the same rank, and a map's values stay where they are.
    if (last_ == nullptr || last_rank_ != rank) {
      last_ = &buckets_[rank];
      last_rank_ = rank;
    }
    Bucket& bucket = *last_;
    if (!bucket.queued) {
      bucket.queued = true;
      ranks_.push(rank);
    }
    if (!bucket.positions.empty() && position < bucket.positions.back()) bucket.sorted = false;
    bucket.positions.push_back(position);
  }

  // The leftmost position of the lowest rank.
  bool pop(uint32_t& rank, uint32_t& position) {
    while (!ranks_.empty()) {
      rank = ranks_.top();
      if (current_ == nullptr || rank != current_rank_) {
        current_ = &buckets_[rank];
        current_rank_ = rank;
      }
      Bucket& bucket = *current_;
      if (bucket.next < bucket.positions.size()) {
        if (!bucket.sorted) {
          std::sort(bucket.positions.begin() + static_cast<std::ptrdiff_t>(bucket.next), bucket.positions.end());
          bucket.sorted = true;
        }
        position = bucket.positions[bucket.next++];
        return true;
      }
      ranks_.pop();
      buckets_.erase(rank);
      current_ = nullptr;
      if (last_rank_ == rank) last_ = nullptr;
    }
    return false;
  }

 private:
  struct Bucket {
    std::vector<uint32_t> positions;
    std::size_t next = 0;
    bool sorted = true, queued = false;
  };
  std::unordered_map<uint32_t, Bucket> buckets_;
  std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> ranks_;
  Bucket* current_ = nullptr;  // of the last pop
  Bucket* last_ = nullptr;     // of the last push
  uint32_t current_rank_ = 0, last_rank_ = 0;
};

}  // namespace

BpeModel::BpeModel(Vocabulary vocabulary, MergeTable merges, BpeOptions options)
    : TokenModel(std::move(vocabulary)), merges_(std::move(merges)), options_(std::move(options)), character_ids_(0x10000, -1) {
  std::string token;
  for (char32_t c = 0; c < 0x10000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    token.clear();
    utf8::append(token, c);
    character_ids_[c] = this->vocabulary().find(token).value_or(-1);
  }
  for (int byte = 0; byte < 256; ++byte) {
    byte_ids_[static_cast<std::size_t>(byte)] = this->vocabulary().find(fmt::format("<0x{:02X}>", byte)).value_or(-1);
  }
}

const MergeTable::Merge* BpeModel::find_merge(int32_t left, int32_t right, bool allow_control) const {
  const MergeTable::Merge* merge = merges_.find(left, right);
  return merge != nullptr && !allow_control && is_control(merge->merged_id) ? nullptr : merge;
}

// A pending unknown token is not flushed by byte fallback, only by a known character: as in the reference, where it can
// matter only for a vocabulary that has some of the byte tokens but not all.
void BpeModel::add_characters(std::string_view piece, bool allow_control, std::vector<int32_t>& ids) const {
  const bool decorated = !options_.continuing_subword_prefix.empty() || !options_.end_of_word_suffix.empty();
  bool unknown_pending = false;
  std::string token;
  for (std::size_t at = 0; at < piece.size();) {
    const std::size_t begin = at;
    const char32_t c = utf8::decode(piece, at);
    std::string_view text = piece.substr(begin, at - begin);
    int32_t id = -1;
    if (decorated) {
      token.clear();
      if (begin > 0) token += options_.continuing_subword_prefix;
      token += text;
      if (at == piece.size()) token += options_.end_of_word_suffix;
      text = token;
      id = vocabulary().find(text).value_or(-1);
    } else {
      id = c < 0x10000 ? character_ids_[c] : vocabulary().find(text).value_or(-1);
    }
    if (id >= 0 && !allow_control && is_control(id)) id = -1;
    if (id >= 0) {
      if (unknown_pending) ids.push_back(*options_.unknown_id);
      unknown_pending = false;
      ids.push_back(id);
      continue;
    }
    if (options_.byte_fallback) {
      const auto byte_id = [&](char byte) { return byte_ids_[static_cast<unsigned char>(byte)]; };
      if (std::all_of(text.begin(), text.end(), [&](char byte) { return byte_id(byte) >= 0; })) {
        for (const char byte : text) ids.push_back(byte_id(byte));
        continue;
      }
    }
    if (!options_.unknown_id) continue;
    if (unknown_pending && !options_.fuse_unknown) ids.push_back(*options_.unknown_id);
    unknown_pending = true;
  }
  if (unknown_pending) ids.push_back(*options_.unknown_id);
}

std::size_t BpeModel::merge_short(std::span<int32_t> ids, bool allow_control) const {
  std::array<MergeTable::Merge, kShortMax> pending;  // of the pair that begins here
  std::size_t size = ids.size();
  const auto look_up = [&](std::size_t i) {
    const MergeTable::Merge* merge = i + 1 < size ? find_merge(ids[i], ids[i + 1], allow_control) : nullptr;
    pending[i] = merge != nullptr ? *merge : MergeTable::Merge{kNoRank, -1};
  };
  for (std::size_t i = 0; i < size; ++i) look_up(i);
  while (size > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < size; ++i) {
      if (pending[i].rank < pending[best].rank) best = i;
    }
    if (pending[best].rank == kNoRank) break;
    ids[best] = pending[best].merged_id;
    std::copy(ids.begin() + static_cast<std::ptrdiff_t>(best) + 2, ids.begin() + static_cast<std::ptrdiff_t>(size),
              ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    std::copy(pending.begin() + best + 2, pending.begin() + size, pending.begin() + best + 1);
    --size;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  return size;
}

std::size_t BpeModel::merge_long(std::span<int32_t> ids, bool allow_control) const {
  const auto size = static_cast<uint32_t>(ids.size());
  std::vector<uint32_t> previous(size), next(size);
  RankQueue queue;
  const auto look_up = [&](uint32_t i) {
    if (next[i] == kNowhere) return;
    const MergeTable::Merge* merge = find_merge(ids[i], ids[next[i]], allow_control);
    if (merge != nullptr) queue.push(merge->rank, i);
  };
  for (uint32_t i = 0; i < size; ++i) {
    previous[i] = i == 0 ? kNowhere : i - 1;
    next[i] = i + 1 == size ? kNowhere : i + 1;
  }
  for (uint32_t i = 0; i < size; ++i) look_up(i);
  uint32_t rank = 0, at = 0;
  while (queue.pop(rank, at)) {
    if (ids[at] < 0 || next[at] == kNowhere) continue;
    const uint32_t right = next[at];
    // The pair may have changed since it was queued.
    const MergeTable::Merge* merge = find_merge(ids[at], ids[right], allow_control);
    if (merge == nullptr || merge->rank != rank) continue;
    ids[at] = merge->merged_id;
    ids[right] = -1;
    next[at] = next[right];
    if (next[at] != kNowhere) previous[next[at]] = at;
    look_up(at);
    if (previous[at] != kNowhere) look_up(previous[at]);
  }
  return static_cast<std::size_t>(std::remove(ids.begin(), ids.end(), -1) - ids.begin());
}

Status BpeModel::encode(std::string_view piece, bool allow_control, std::vector<int32_t>& ids) const {
  if (piece.size() >= kNowhere) return Status::resource_exhausted("a text of 4 GB or more cannot be tokenized at once");
  if (options_.ignore_merges) {
    const std::optional<int32_t> id = vocabulary().find(piece);
    if (id && (allow_control || !is_control(*id))) {
      ids.push_back(*id);
      return Status::ok();
    }
  }
  const std::size_t begin = ids.size();
  add_characters(piece, allow_control, ids);
  const std::span<int32_t> word = std::span(ids).subspan(begin);
  if (word.size() < 2) return Status::ok();
  ids.resize(begin + (word.size() <= kShortMax ? merge_short(word, allow_control) : merge_long(word, allow_control)));
  return Status::ok();
}

}  // namespace millrace
