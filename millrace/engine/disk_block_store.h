#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "millrace/engine/block_store.h"
#include "millrace/engine/kv_disk_tier.h"
#include "millrace/engine/recent_median.h"
#include "millrace/model/step_plan.h"

namespace millrace {

// The disk tier behind the blocks of an executor. Used between steps, on the thread that steps.
//
// What is not in memory, be it an earlier prompt or a sequence that was preempted, is read or computed, whichever has taken less: reading
// is timed for each byte, computing for each row of a prompt. A slow disk under a small model is left alone then, and tried again now and
// then.
class DiskBlockStore final : public BlockStore {
 public:
  // All must outlive it. `clock`: seconds.
  DiskBlockStore(Executor& executor, KvDiskTier& tier, const std::function<double()>& clock);

  void offer(int64_t group, const BlockDigest& digest, int32_t block_id) override;
  bool contains(int64_t group, const BlockDigest& digest) override { return reads() && tier_.contains(group, digest); }
  bool load(int64_t group, const BlockDigest& digest, int32_t block_id) override;
  void touch(int64_t group, const BlockDigest& digest) override { tier_.touch(group, digest); }
  void forget(int64_t group, const BlockDigest& digest) override { tier_.forget(group, digest); }

  // A step with rows of prompts took so long.
  void observe_step(int64_t num_decode_rows, int64_t num_prompt_rows, double seconds);
  // Whether reading pays, as far as is known.
  bool reads() const;

 private:
  static constexpr int64_t kKept = 9;

  Executor& executor_;
  KvDiskTier& tier_;
  const std::function<double()>& clock_;
  std::vector<std::byte> scratch_;    // a block of the largest group
  double bytes_of_row_ = 0;           // of all groups
  RecentMedian<kKept> byte_seconds_;  // of reading
  RecentMedian<kKept> row_seconds_;   // of computing
  double last_read_ = 0;
};

}  // namespace millrace
