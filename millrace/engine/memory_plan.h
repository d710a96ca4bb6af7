#pragma once

#include <cstdint>

namespace millrace {

// What a process that serves a model holds in memory of its own, and of the packed cache where its weights are mapped from there. Pages of
// the model's files that the system keeps as long as nobody else needs them, and of the program itself, are not counted.
struct MemoryPlan {
  // Libraries' data, threads' stacks, what the allocator holds beyond what was asked for, huge pages that are used in part.
  static constexpr int64_t kProgramBytes = int64_t{6} << 20;

  int64_t weights_bytes = 0;     // the one packed copy
  int64_t kv_bytes = 0;          // all of the KV cache: the system gives it page by page when first used
  int64_t activation_bytes = 0;  // of one step, of the largest size
  int64_t tables_bytes = 0;      // tokenizer, template, network and program

  // Also what a draft model takes that was loaded after this one. What its loading found in tables holds this one's.
  void include(const MemoryPlan& draft) {
    weights_bytes += draft.weights_bytes;
    kv_bytes += draft.kv_bytes;
    activation_bytes += draft.activation_bytes;
    tables_bytes = tables_bytes > draft.tables_bytes ? tables_bytes : draft.tables_bytes;
  }
  int64_t total_bytes() const { return weights_bytes + kv_bytes + activation_bytes + tables_bytes + kProgramBytes; }
};

}  // namespace millrace
