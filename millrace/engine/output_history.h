#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>

#include "millrace/engine/drafter.h"
#include "millrace/engine/suffix_forest.h"

namespace millrace {

// The latest completions, each owner's in a suffix tree of its own. Bounded: the oldest ones go, whosever they are.
class OutputHistory {
 public:
  struct Options {
    int64_t num_outputs_max = 10000;
    int64_t num_tokens_max = int64_t{1} << 18;  // of all together, at least 1; about 100 bytes each
    int64_t depth_max = 64;                     // SuffixForest
  };
  explicit OutputHistory(const Options& options);

  // Of an output with more than num_tokens_max tokens the end.
  void add(const DraftOwner& owner, std::span<const int32_t> output);
  std::optional<int32_t> tree_of(const DraftOwner& owner) const;  // its root; absent: nothing is known. Valid until the next add()
  SuffixForest& forest() { return forest_; }

  const Options& options() const { return options_; }
  int64_t num_outputs() const { return static_cast<int64_t>(order_.size()); }
  int64_t num_tokens() const { return forest_.num_tokens(); }
  int64_t num_owners() const { return static_cast<int64_t>(roots_.size()); }

 private:
  using Roots = std::map<DraftOwner, int32_t>;
  void remove_oldest();

  Options options_;
  SuffixForest forest_;
  Roots roots_;                        // of owners with outputs
  std::deque<Roots::iterator> order_;  // the owner of each output, the oldest first
};

}  // namespace millrace
