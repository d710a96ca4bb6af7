#include "millrace/engine/kv_sizing.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "millrace/engine/scheduler.h"

namespace millrace {

Result<KvSizing> size_kv(std::span<const KvGroupSpec> groups, int64_t kv_bytes, int64_t max_context, int64_t max_running_sequences,
                         int64_t step_tokens_max) {
  const int64_t context_blocks = (max_context + kKvBlockTokens - 1) / kKvBlockTokens;
  // Blocks of a group when the groups without a window have `blocks` each. Bounds come first: then no product overflows.
  const auto blocks_of = [&](const KvGroupSpec& group, int64_t blocks) {
    if (!group.window || *group.window >= max_context) return blocks;
    const int64_t one_step = std::min(context_blocks, Scheduler::window_blocks(*group.window, 1));
    const int64_t in_a_step = std::min(context_blocks, Scheduler::window_blocks(*group.window, step_tokens_max));
    return std::clamp(blocks, one_step, std::max(one_step, in_a_step * max_running_sequences));
  };
  const auto bytes_of = [&](int64_t blocks) {
    double bytes = 0;  // exact far beyond any machine's memory
    for (const KvGroupSpec& group : groups) bytes += static_cast<double>(blocks_of(group, blocks)) * static_cast<double>(group.block_bytes);
    return bytes;
  };
  for (const KvGroupSpec& group : groups) {
    if (group.block_bytes <= 0)
      return Status::invalid_argument(fmt::format("a KV group has block_bytes = {}, expected at least 1", group.block_bytes));
  }
  if (bytes_of(1) > static_cast<double>(kv_bytes)) {
    return Status::resource_exhausted(fmt::format("the KV cache needs at least {:.0f} bytes, {} are given", bytes_of(1), kv_bytes));
  }
  int64_t low = 1, high = std::min<int64_t>(context_blocks * max_running_sequences, INT32_MAX);
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (bytes_of(middle) <= static_cast<double>(kv_bytes)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  KvSizing sizing;
  sizing.max_sequence_tokens = max_context;
  for (const KvGroupSpec& group : groups) {
    sizing.num_blocks.push_back(blocks_of(group, low));
    if (!group.window || *group.window >= max_context)
      sizing.max_sequence_tokens = std::min(sizing.max_sequence_tokens, low * kKvBlockTokens);
  }
  return sizing;
}

}  // namespace millrace
