#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

// Tokens by id and ids by token. Ids may have holes; of equal tokens the last one added is found.
class Vocabulary {
 public:
  // Ids from tokenizer files are refused above this, so that a file of a few bytes cannot make a table of gigabytes.
  static constexpr int64_t kMaxId = int64_t{1} << 22;

  void reserve(std::size_t num_tokens, std::size_t num_bytes);
  void add(std::string_view token, int32_t id);  // 0 <= id < kMaxId; the token's size < 2^32

  std::optional<int32_t> find(std::string_view token) const;
  std::string_view token(int32_t id) const;  // empty for an unknown id
  bool contains(int32_t id) const;
  int64_t end_id() const { return static_cast<int64_t>(entries_.size()); }  // highest id + 1
  int64_t num_tokens() const { return num_tokens_; }

 private:
  struct Entry {
    std::size_t offset = 0;
    uint32_t size = 0;
    bool used = false;
  };
  void grow();
  std::size_t slot_of(std::string_view token) const;

  std::string bytes_;
  std::vector<Entry> entries_;  // [end_id]
  std::vector<int32_t> slots_;  // open addressing over a power of two; -1 is free
  std::size_t num_slots_used_ = 0;
  int64_t num_tokens_ = 0;
};

}  // namespace millrace
