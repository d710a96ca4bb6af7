#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/tokenizer/token_model.h"

namespace millrace {

// Which two tokens join into which, and in what order: (left id, right id) -> (rank, merged id).
class MergeTable {
 public:
  struct Merge {
    uint32_t rank;
    int32_t merged_id;
  };
  void reserve(std::size_t num_merges);
  void set(int32_t left, int32_t right, Merge merge);  // replaces an earlier entry of the pair
  const Merge* find(int32_t left, int32_t right) const {
    std::size_t slot = hash(left, right) & mask_;
    while (slots_[slot].left >= 0) {
      if (slots_[slot].left == left && slots_[slot].right == right) return &slots_[slot].merge;
      slot = (slot + 1) & mask_;
    }
    return nullptr;
  }

 private:
  struct Slot {
    int32_t left = -1, right = -1;
    Merge merge{};
  };
  static std::size_t hash(int32_t left, int32_t right) {
    const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15U) >> 29);
  }
  void resize(std::size_t size);

  std::vector<Slot> slots_ = std::vector<Slot>(16);
  std::size_t mask_ = 15, num_used_ = 0;
};

struct BpeOptions {
  std::optional<int32_t> unknown_id;      // what a character outside the vocabulary becomes; without it, nothing
  std::string continuing_subword_prefix;  // put before every character but the first of a word
  std::string end_of_word_suffix;         // put behind the last
  bool fuse_unknown = false;              // neighbouring unknown characters are one token
  bool byte_fallback = false;             // unknown characters become <0xNN> tokens, where all of them exist
  bool ignore_merges = false;             // a word that is a token is that token
};

// Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909): the pair of lowest rank joins first, the leftmost of equals.
class BpeModel final : public TokenModel {
 public:
  BpeModel(Vocabulary vocabulary, MergeTable merges, BpeOptions options);
  Status encode(std::string_view piece, bool allow_control, std::vector<int32_t>& ids) const override;
  std::string_view name() const override { return "BPE"; }

 private:
  void add_characters(std::string_view piece, bool allow_control, std::vector<int32_t>& ids) const;
  const MergeTable::Merge* find_merge(int32_t left, int32_t right, bool allow_control) const;
  std::size_t merge_short(std::span<int32_t> ids, bool allow_control) const;
  std::size_t merge_long(std::span<int32_t> ids, bool allow_control) const;

  MergeTable merges_;
  BpeOptions options_;
  std::vector<int32_t> character_ids_;  // [0x10000] token of the character alone, -1 where there is none
  std::array<int32_t, 256> byte_ids_;   // <0xNN>, -1 where there is none
};

}  // namespace millrace
