#include "millrace/tokenizer/vocabulary.h"

#include <functional>

#include "millrace/base/check.h"

namespace millrace {

void Vocabulary::reserve(std::size_t num_tokens, std::size_t num_bytes) {
  bytes_.reserve(num_bytes);
  entries_.reserve(num_tokens);
  std::size_t size = 16;
  while (size < num_tokens * 2) size *= 2;
  if (size > slots_.size()) {
    slots_.assign(size, -1);
    num_slots_used_ = 0;
    for (int64_t id = 0; id < end_id(); ++id) {
      if (contains(static_cast<int32_t>(id))) slots_[slot_of(token(static_cast<int32_t>(id)))] = static_cast<int32_t>(id);
    }
  }
}

// The slot that holds `token`, or the free one where it belongs.
std::size_t Vocabulary::slot_of(std::string_view token) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = std::hash<std::string_view>{}(token)&mask;
  while (slots_[slot] >= 0) {
    const Entry& entry = entries_[static_cast<std::size_t>(slots_[slot])];
    if (entry.size == token.size() && std::string_view(bytes_).substr(entry.offset, entry.size) == token) break;
    slot = (slot + 1) & mask;
  }
  return slot;
}

void Vocabulary::grow() {
  std::vector<int32_t> old(slots_.empty() ? 16 : slots_.size() * 2, -1);
  old.swap(slots_);
  for (const int32_t id : old) {
    if (id >= 0) slots_[slot_of(token(id))] = id;
  }
}

void Vocabulary::add(std::string_view token, int32_t id) {
  MR_CHECK(id >= 0 && id < kMaxId, "token id out of range");
  const auto index = static_cast<std::size_t>(id);
  if (index >= entries_.size()) entries_.resize(index + 1);
  if (slots_.empty() || (num_slots_used_ + 1) * 2 > slots_.size()) grow();
  if (!entries_[index].used) ++num_tokens_;
  const std::size_t offset = bytes_.size();
  bytes_.append(token);
  const std::size_t slot = slot_of(token);
  if (slots_[slot] < 0) ++num_slots_used_;
  entries_[index] = {offset, static_cast<uint32_t>(token.size()), true};
  slots_[slot] = id;
}

std::optional<int32_t> Vocabulary::find(std::string_view token) const {
  if (slots_.empty()) return std::nullopt;
  const int32_t id = slots_[slot_of(token)];
  if (id < 0) return std::nullopt;
  return id;
}

std::string_view Vocabulary::token(int32_t id) const {
  if (!contains(id)) return {};
  const Entry& entry = entries_[static_cast<std::size_t>(id)];
  return std::string_view(bytes_).substr(entry.offset, entry.size);
}

bool Vocabulary::contains(int32_t id) const {
  return id >= 0 && static_cast<std::size_t>(id) < entries_.size() && entries_[static_cast<std::size_t>(id)].used;
}

}  // namespace millrace
