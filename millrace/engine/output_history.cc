#include "millrace/engine/output_history.h"

#include <algorithm>

namespace millrace {

OutputHistory::OutputHistory(const Options& options) : options_(options), forest_(options.depth_max, options.num_tokens_max) {}

void OutputHistory::add(const DraftOwner& owner, std::span<const int32_t> output) {
  output = output.last(std::min(output.size(), static_cast<std::size_t>(options_.num_tokens_max)));
  if (output.empty() || options_.num_outputs_max < 1) return;
  while (num_outputs() >= options_.num_outputs_max || num_tokens() + static_cast<int64_t>(output.size()) > options_.num_tokens_max)
    remove_oldest();
  auto root = roots_.find(owner);
  if (root == roots_.end()) root = roots_.emplace(owner, forest_.plant()).first;
  forest_.add(root->second, output);
  order_.push_back(root);
}

void OutputHistory::remove_oldest() {
  const Roots::iterator root = order_.front();
  order_.pop_front();
  forest_.remove_oldest();
  if (forest_.num_runs(root->second) > 0) return;
  forest_.cut(root->second);
  roots_.erase(root);
}

std::optional<int32_t> OutputHistory::tree_of(const DraftOwner& owner) const {
  const auto root = roots_.find(owner);
  if (root == roots_.end()) return std::nullopt;
  return root->second;
}

}  // namespace millrace
