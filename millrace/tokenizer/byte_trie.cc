#include "millrace/tokenizer/byte_trie.h"

#include <algorithm>
#include <cstddef>

namespace millrace {

// Level by level over the sorted keys: each queued part is the keys below one node.
ByteTrie::ByteTrie(std::vector<std::pair<std::string_view, int32_t>> entries) {
  root_.fill(kNone);
  std::erase_if(entries, [](const auto& entry) { return entry.first.empty(); });
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  struct Part {
    std::size_t begin, end, depth;
    uint32_t parent;
  };
  std::vector<Part> parts{{0, entries.size(), 0, kNone}};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Part part = parts[i];
    if (part.parent != kNone) nodes_[part.parent].first_child = static_cast<uint32_t>(nodes_.size());
    for (std::size_t begin = part.begin; begin < part.end;) {
      const auto label = static_cast<unsigned char>(entries[begin].first[part.depth]);
      std::size_t end = begin;
      while (end < part.end && static_cast<unsigned char>(entries[end].first[part.depth]) == label) ++end;
      const auto node = static_cast<uint32_t>(nodes_.size());
      nodes_.emplace_back();
      labels_.push_back(label);
      if (part.parent == kNone) {
        root_[label] = node;
      } else {
        ++nodes_[part.parent].num_children;
      }
      std::size_t rest = begin;  // keys that end here sort before longer ones
      while (rest < end && entries[rest].first.size() == part.depth + 1) nodes_[node].value = entries[rest++].second;
      if (rest < end) parts.push_back({rest, end, part.depth + 1, node});
      begin = end;
    }
  }
}

}  // namespace millrace
