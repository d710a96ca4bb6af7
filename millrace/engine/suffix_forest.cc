#include "millrace/engine/suffix_forest.h"

#include <algorithm>
#include <bit>
#include <tuple>

#include "millrace/base/check.h"

namespace millrace {

SuffixForest::SuffixForest(int64_t depth_max, int64_t num_tokens_max)
    : depth_max_(depth_max), tokens_(std::bit_ceil(static_cast<std::size_t>(num_tokens_max))), children_(4 * tokens_.size(), kNone) {
  MR_CHECK(depth_max >= 2 && num_tokens_max >= 1, "a text and what comes after it");
  nodes_.reserve(2 * static_cast<std::size_t>(num_tokens_max));
}

int64_t SuffixForest::memory_bytes() const {
  return static_cast<int64_t>(nodes_.capacity() * sizeof(Node) + runs_.size() * sizeof(Run) +
                              (tokens_.size() + free_nodes_.capacity() + children_.size()) * sizeof(int32_t));
}

int32_t SuffixForest::plant() { return make_node(); }

void SuffixForest::cut(int32_t root) {
  MR_CHECK(node(root).count == 0 && node(root).first_child == kNone, "a tree without runs");
  free_nodes_.push_back(root);
  --num_nodes_;
}

int64_t SuffixForest::suffix_length(int64_t begin, int64_t run_end) const { return std::min(depth_max_, run_end - begin); }

void SuffixForest::add(int32_t root, std::span<const int32_t> run) {
  MR_CHECK(!run.empty() && num_tokens() + static_cast<int64_t>(run.size()) <= static_cast<int64_t>(tokens_.size()), "a run that fits");
  int64_t begin = end_;
  for (const int32_t token : run) tokens_[static_cast<std::size_t>(end_++) & (tokens_.size() - 1)] = token;
  runs_.push_back({root, static_cast<int32_t>(run.size())});
  ++node(root).count;
  for (; begin < end_; ++begin) insert_suffix(root, begin, suffix_length(begin, end_));
}

int32_t SuffixForest::remove_oldest() {
  MR_CHECK(!runs_.empty(), "a run to remove");
  const Run run = runs_.front();
  runs_.pop_front();
  --node(run.root).count;
  for (const int64_t end = begin_ + run.length; begin_ < end; ++begin_) remove_suffix(run.root, begin_, suffix_length(begin_, end));
  return run.root;
}

// Every node on the way has one more occurrence, and this is its last one.
void SuffixForest::insert_suffix(int32_t root, int64_t begin, int64_t length) {
  int32_t at = root;
  for (int64_t depth = 0; depth < length;) {
    int32_t child = child_of(at, token_at(begin + depth));
    if (child == kNone) {
      child = make_node();
      node(child).start = begin + depth;
      node(child).length = static_cast<int32_t>(length - depth);
      link(child, at, token_at(begin + depth));
    } else {
      const int64_t longest = std::min<int64_t>(node(child).length, length - depth);
      int32_t same = 1;
      while (same < longest && token_at(node(child).start + same) == token_at(begin + depth + same)) ++same;
      if (same < node(child).length) child = split(child, same);
      node(child).start = begin + depth;
    }
    ++node(child).count;
    const int32_t best = node(at).best_child;
    if (best == kNone || (best != kUnknown && node(child).count >= node(best).count)) node(at).best_child = child;
    depth += node(child).length;
    at = child;
  }
}

void SuffixForest::remove_suffix(int32_t root, int64_t begin, int64_t length) {
  path_.clear();
  int32_t at = root;
  for (int64_t depth = 0; depth < length; depth += node(at).length) {
    at = child_of(at, token_at(begin + depth));
    MR_CHECK(at != kNone && depth + node(at).length <= length, "a suffix ends at a node");
    --node(at).count;
    path_.push_back(at);
  }
  for (auto id = path_.rbegin(); id != path_.rend(); ++id) {
    const int32_t parent = node(*id).parent;
    const bool was_best = node(parent).best_child == *id;
    if (node(*id).count == 0) {
      unlink(*id);
      free_nodes_.push_back(*id);
      --num_nodes_;
    } else if (const int32_t child = node(*id).first_child;
               child != kNone && node(child).older == kNone && node(child).count == node(*id).count) {
      merge_into_child(*id);
    }
    if (was_best) node(parent).best_child = node(parent).first_child == kNone ? kNone : kUnknown;
  }
}

// The first `length` tokens of the node's edge get a node of their own, which is returned.
int32_t SuffixForest::split(int32_t id, int32_t length) {
  const int32_t upper = make_node();
  leave(id);
  node(upper).start = node(id).start;
  node(upper).length = length;
  node(upper).count = node(id).count;
  node(upper).token = node(id).token;
  replace(id, upper);
  node(id).start += length;
  node(id).length -= length;
  enter(upper);
  link(id, upper, token_at(node(id).start));
  node(upper).best_child = id;
  return upper;
}

// Wherever the node's text stands its only child's comes next: one edge.
void SuffixForest::merge_into_child(int32_t id) {
  const int32_t child = node(id).first_child;
  leave(child);
  leave(id);
  node(child).start -= node(id).length;
  node(child).length += node(id).length;
  node(child).token = node(id).token;
  replace(id, child);
  enter(child);
  free_nodes_.push_back(id);
  --num_nodes_;
}

int32_t SuffixForest::best_child(int32_t id) {
  if (node(id).best_child != kUnknown) return node(id).best_child;
  int32_t best = kNone;
  for (int32_t child = node(id).first_child; child != kNone; child = node(child).older) {
    if (best == kNone || std::tie(node(best).count, node(best).start) < std::tie(node(child).count, node(child).start)) best = child;
  }
  return node(id).best_child = best;
}

int32_t SuffixForest::make_node() {
  ++num_nodes_;
  if (!free_nodes_.empty()) {
    const int32_t id = free_nodes_.back();
    free_nodes_.pop_back();
    node(id) = Node();
    return id;
  }
  nodes_.emplace_back();
  return static_cast<int32_t>(nodes_.size()) - 1;
}

void SuffixForest::link(int32_t id, int32_t parent, int32_t token) {
  const int32_t first = node(parent).first_child;
  node(id).parent = parent;
  node(id).token = token;
  node(id).older = first;
  node(id).newer = kNone;
  if (first != kNone) node(first).newer = id;
  node(parent).first_child = id;
  enter(id);
}

void SuffixForest::unlink(int32_t id) {
  const Node& gone = node(id);
  if (gone.older != kNone) node(gone.older).newer = gone.newer;
  (gone.newer != kNone ? node(gone.newer).older : node(gone.parent).first_child) = gone.older;
  leave(id);
}

// `by` takes the node's place among its parent's children; not in the table.
void SuffixForest::replace(int32_t id, int32_t by) {
  const Node& old = node(id);
  node(by).parent = old.parent;
  node(by).older = old.older;
  node(by).newer = old.newer;
  if (old.older != kNone) node(old.older).newer = by;
  (old.newer != kNone ? node(old.newer).older : node(old.parent).first_child) = by;
  if (node(old.parent).best_child == id) node(old.parent).best_child = by;
}

std::size_t SuffixForest::home_of(int32_t parent, int32_t token) const {
  uint64_t hash = (static_cast<uint64_t>(static_cast<uint32_t>(parent)) << 32 | static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15ULL;
  hash = (hash ^ (hash >> 32)) * 0xBF58476D1CE4E5B9ULL;
  return static_cast<std::size_t>(hash >> 32) & (children_.size() - 1);
}

int32_t SuffixForest::child_of(int32_t parent, int32_t token) const {
  for (std::size_t slot = home_of(parent, token);; slot = (slot + 1) & (children_.size() - 1)) {
    const int32_t id = children_[slot];
    if (id == kNone || (node(id).parent == parent && node(id).token == token)) return id;
  }
}

void SuffixForest::enter(int32_t id) {
  std::size_t slot = home_of(node(id).parent, node(id).token);
  while (children_[slot] != kNone) slot = (slot + 1) & (children_.size() - 1);
  children_[slot] = id;
}

// Those behind it move up where that brings them nearer to their home, so that a search never meets a hole before what it looks for.
void SuffixForest::leave(int32_t id) {
  const std::size_t mask = children_.size() - 1;
  std::size_t hole = home_of(node(id).parent, node(id).token);
  while (children_[hole] != id) hole = (hole + 1) & mask;
  for (std::size_t slot = (hole + 1) & mask; children_[slot] != kNone; slot = (slot + 1) & mask) {
    const std::size_t home = home_of(node(children_[slot]).parent, node(children_[slot]).token);
    if (((slot - home) & mask) < ((slot - hole) & mask)) continue;
    children_[hole] = children_[slot];
    hole = slot;
  }
  children_[hole] = kNone;
}

std::optional<SuffixForest::Place> SuffixForest::find(int32_t root, std::span<const int32_t> text) const {
  MR_CHECK(!text.empty(), "a text of some tokens");
  Place place{root, 0};
  for (const int32_t token : text) {
    const Node& here = node(place.node);
    if (place.offset < here.length) {
      if (token_at(here.start + place.offset) != token) return std::nullopt;
      ++place.offset;
    } else {
      const int32_t child = child_of(place.node, token);
      if (child == kNone) return std::nullopt;
      place = {child, 1};
    }
  }
  return place;
}

std::optional<SuffixForest::Next> SuffixForest::next(Place place) {
  const Node& here = node(place.node);
  if (place.offset < here.length) return Next{token_at(here.start + place.offset), here.count, here.count, {place.node, place.offset + 1}};
  const int32_t best = best_child(place.node);
  if (best == kNone) return std::nullopt;
  return Next{node(best).token, node(best).count, here.count, {best, 1}};
}

}  // namespace millrace
