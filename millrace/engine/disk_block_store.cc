#include "millrace/engine/disk_block_store.h"

#include <algorithm>
#include <span>

namespace millrace {

DiskBlockStore::DiskBlockStore(Executor& executor, KvDiskTier& tier, const std::function<double()>& clock)
    : executor_(executor), tier_(tier), clock_(clock) {
  int64_t largest = 0;
  for (const KvGroupSpec& group : executor.info().kv_groups) {
    largest = std::max(largest, group.block_bytes);
    bytes_of_row_ += static_cast<double>(group.block_bytes) / kKvBlockTokens;
  }
  scratch_.resize(static_cast<std::size_t>(largest));
}

void DiskBlockStore::offer(int64_t group, const BlockDigest& digest, int32_t block_id) {
  tier_.write(group, digest, [&](std::span<std::byte> copy) { executor_.save_block(group, block_id, copy); });
}

bool DiskBlockStore::load(int64_t group, const BlockDigest& digest, int32_t block_id) {
  const int64_t num_bytes = executor_.info().kv_groups[static_cast<std::size_t>(group)].block_bytes;
  const std::span<std::byte> block = std::span(scratch_).first(static_cast<std::size_t>(num_bytes));
  const double begun = clock_();
  const bool found = tier_.read(group, digest, block);
  if (found) executor_.load_block(group, block_id, block);
  last_read_ = clock_();
  byte_seconds_.observe((last_read_ - begun) / static_cast<double>(num_bytes));
  return found;
}

void DiskBlockStore::observe_step(int64_t num_decode_rows, int64_t num_prompt_rows, double seconds) {
  // Rows that decode cost more than rows of prompts: a step full of them tells nothing about these.
  if (num_prompt_rows <= num_decode_rows) return;
  row_seconds_.observe(seconds / static_cast<double>(num_decode_rows + num_prompt_rows));
}

bool DiskBlockStore::reads() const {
  constexpr double kTriedAgainSeconds = 30;
  if (byte_seconds_.count() < kKept || row_seconds_.count() < kKept) return true;
  if (byte_seconds_.value() * bytes_of_row_ <= row_seconds_.value()) return true;
  return clock_() - last_read_ > kTriedAgainSeconds;
}

}  // namespace millrace
