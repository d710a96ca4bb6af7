#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace millrace {

// Strings with values, for finding every stored prefix of a text in one walk.
class ByteTrie {
 public:
  ByteTrie() { root_.fill(kNone); }
  // Of equal keys the last one counts; empty keys are left out. Keys are bounded by the caller: 2^32 bytes together.
  explicit ByteTrie(std::vector<std::pair<std::string_view, int32_t>> entries);

  bool empty() const { return nodes_.empty(); }
  bool may_start_with(unsigned char byte) const { return root_[byte] != kNone; }

  // on_match(size, value) for each key that is a prefix of `text`, shortest first.
  template <class OnMatch>
  void for_each_prefix(std::string_view text, OnMatch&& on_match) const {
    if (text.empty()) return;
    uint32_t node = root_[static_cast<unsigned char>(text[0])];
    for (std::size_t size = 1; node != kNone; ++size) {
      if (nodes_[node].value >= 0) on_match(size, nodes_[node].value);
      if (size == text.size()) return;
      node = child(nodes_[node], static_cast<unsigned char>(text[size]));
    }
  }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  struct Node {
    uint32_t first_child = 0;
    uint16_t num_children = 0;
    int32_t value = -1;
  };
  uint32_t child(const Node& node, unsigned char label) const {
    uint32_t low = node.first_child, high = low + node.num_children;
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      if (labels_[middle] < label) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low < node.first_child + node.num_children && labels_[low] == label ? low : kNone;
  }

  std::array<uint32_t, 256> root_;
  std::vector<Node> nodes_;      // the children of a node lie together, in the order of their labels
  std::vector<uint8_t> labels_;  // of the byte that leads to each node
};

}  // namespace millrace
