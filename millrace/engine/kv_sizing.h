#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/model/step_plan.h"

namespace millrace {

struct KvSizing {
  std::vector<int64_t> num_blocks;  // [num_groups]
  int64_t max_sequence_tokens = 0;  // what one sequence can hold at most: the context or less
};

// Divides `kv_bytes` over the groups so that each can hold the same number of tokens. A windowed group needs no more than its windows
// for max_running_sequences sequences, and no group more than their whole contexts. kResourceExhausted where a sequence could not even
// take its first step: the message says how many bytes that needs.
Result<KvSizing> size_kv(std::span<const KvGroupSpec> groups, int64_t kv_bytes, int64_t max_context, int64_t max_running_sequences,
                         int64_t step_tokens_max);

}  // namespace millrace
