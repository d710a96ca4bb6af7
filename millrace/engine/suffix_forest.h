#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

// How token sequences went on. Suffix trees over runs of tokens: every text of at most depth_max tokens that stands in a run of a tree is a
// path from its root, and each node knows how often its text stands there. A text's most frequent continuation takes one look.
//
// Paths without branches are one edge, so a run takes at most two nodes for each of its tokens, whatever the depth. An edge's tokens are
// not stored: they are read where they stood last. Runs leave in the order in which they came, so what still has an occurrence has its last
// one in a run that is still there, and no edge ever points to tokens that are gone. Trees have the memory in common and nothing else.
// (Suffix trees: Weiner 1973; of a sliding window: Larsson 1996. Drafts from a tree of past outputs, with counts: SuffixDecoding, Oliaro et
// al. 2024, arXiv:2411.04975.)
namespace millrace {

class SuffixForest {
 public:
  // Texts of at most `depth_max` tokens, at least 2. Memory for runs of so many tokens together is set aside, and touched when it is used:
  // about 100 bytes a token.
  SuffixForest(int64_t depth_max, int64_t num_tokens_max);

  int32_t plant();         // a tree without runs; its root
  void cut(int32_t root);  // likewise without
  // At least one token, and at most num_tokens_max with those that are there. At most depth_max steps for each token.
  void add(int32_t root, std::span<const int32_t> run);
  int32_t remove_oldest();  // of all trees' runs; likewise. The root of the tree that had it

  // A text that stands in the runs. Valid until they change.
  struct Place {
    int32_t node = 0, offset = 0;  // so many tokens of the edge that leads to the node
  };
  // The most frequent token after it, the latest of equal ones: it comes `count` times, of the `of` times that the text stands there.
  struct Next {
    int32_t token = -1;
    int32_t count = 0, of = 0;
    Place place;  // of the text with the token
  };
  std::optional<Place> find(int32_t root, std::span<const int32_t> text) const;  // of at least one token; longer than depth_max: absent
  std::optional<Next> next(Place place);  // absent where the text only ends runs, or has depth_max tokens
  int64_t depth_max() const { return depth_max_; }

  int64_t num_runs(int32_t root) const { return node(root).count; }
  int64_t num_tokens() const { return end_ - begin_; }  // of all runs
  int64_t num_nodes() const { return num_nodes_; }      // at most twice num_tokens(), and the roots
  int64_t memory_bytes() const;

 private:
  static constexpr int32_t kNone = -1;
  static constexpr int32_t kUnknown = -2;  // of best_child: one whose count fell was the best; who asks looks through them all
  struct Node {
    int64_t start = 0;                      // where the edge's tokens stood last: a position in the endless stream of runs
    int32_t length = 0, count = 0;          // of a root: 0, and its runs
    int32_t token = kNone, parent = kNone;  // the edge's first; the key among children_
    int32_t first_child = kNone, best_child = kNone;
    int32_t older = kNone, newer = kNone;  // siblings
  };

  int32_t token_at(int64_t position) const { return tokens_[static_cast<std::size_t>(position) & (tokens_.size() - 1)]; }
  Node& node(int32_t id) { return nodes_[static_cast<std::size_t>(id)]; }
  const Node& node(int32_t id) const { return nodes_[static_cast<std::size_t>(id)]; }
  int64_t suffix_length(int64_t begin, int64_t run_end) const;
  void insert_suffix(int32_t root, int64_t begin, int64_t length);
  void remove_suffix(int32_t root, int64_t begin, int64_t length);
  int32_t split(int32_t id, int32_t length);
  void merge_into_child(int32_t id);
  int32_t best_child(int32_t id);
  int32_t make_node();
  void link(int32_t id, int32_t parent, int32_t token);
  void unlink(int32_t id);
  void replace(int32_t id, int32_t by);
  // The table of children, by parent and token.
  std::size_t home_of(int32_t parent, int32_t token) const;
  int32_t child_of(int32_t parent, int32_t token) const;
  void enter(int32_t id);
  void leave(int32_t id);

  int64_t depth_max_;
  std::vector<int32_t> tokens_;  // [power of two] the stream's positions [begin_, end_), at their remainder
  int64_t begin_ = 0, end_ = 0;
  struct Run {
    int32_t root, length;
  };
  std::deque<Run> runs_;
  std::vector<Node> nodes_;
  std::vector<int32_t> free_nodes_;
  int64_t num_nodes_ = 0;
  std::vector<int32_t> children_;  // [power of two] node ids, open addressing
  std::vector<int32_t> path_;      // of remove_suffix
};

}  // namespace millrace
