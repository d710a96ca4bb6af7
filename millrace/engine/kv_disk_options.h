#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace millrace {

// The disk tier of the prefix cache (kv_disk_tier.h).
struct KvDiskOptions {
  std::string folder;                    // made where it does not exist; empty: no disk tier
  int64_t max_bytes = int64_t{8} << 30;  // of all files together; those longest unused make room
  int64_t queue_bytes =
      int64_t{64} << 20;  // of memory for copies of blocks that wait to be written; a block that finds no room is not kept
  // All that keys and values follow from but for their tokens: model, build, arithmetic, dtype (LoadedModel::kv_fingerprint). Files of
  // another fingerprint are never read.
  std::string fingerprint;
  // What went wrong, as a sentence without the word "warning". Called on the engine's and on the writing thread; at most a few times.
  // Empty: nobody is told.
  std::function<void(const std::string&)> on_warning;
};

}  // namespace millrace
