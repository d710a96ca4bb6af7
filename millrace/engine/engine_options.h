#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/engine/kv_disk_options.h"
#include "millrace/engine/speculation_options.h"
#include "millrace/model/step_plan.h"

namespace millrace {

struct EngineOptions {
  int64_t kv_bytes = int64_t{1} << 30;  // KV cache of all groups together; allocated when the engine is made, never exceeded
  int64_t max_context = 0;              // prompt + completion tokens of a sequence; 0: what the network was made for
  int64_t max_running_sequences = 64;   // at most step_tokens_max
  int64_t step_tokens_max = 512;        // rows of one step, prefill and decode together. Higher: throughput; lower: inter-token latency
  int64_t prefill_chunk_max = 256;      // rows of one prompt in a step while other prompts wait; alone it gets the whole step
  double tpot_target_seconds = 0;       // prompts take no more of a step than lets it last so long while others decode; 0: no limit
  int64_t max_queued_requests = 1024;   // not yet admitted
  int64_t max_queued_tokens = 1 << 20;  // their prompt tokens
  int32_t max_n = 8;
  std::vector<double> client_weights;  // by GenerationRequest::client, above 0: their shares while they all ask; 1 where there is none
  // By GenerationRequest::client: what tells a client's cached prefixes from those of others, the same after a restart. Where there is
  // none, its number does.
  std::vector<std::string> client_salts;
  bool prefix_cache = true;
  KvDiskOptions kv_disk;  // a folder that cannot be used is a warning: then there is no disk tier
  SpeculationOptions speculation;
  std::string cache_secret;  // keys the prefix cache; empty: the disk tier's, else drawn at random
  std::vector<int32_t> eos_token_ids;
  std::function<double()> clock;  // seconds, monotonic; empty: the steady clock. Tests give their own
};

// The options with what was left open filled in from the network. kInvalidArgument or kUnsupported, naming the option, what was found and
// what was expected.
Result<EngineOptions> complete_options(EngineOptions options, const ExecutorInfo& info);

// Whether such a disk tier is possible with the network. Errors as above.
Status check_kv_disk(const EngineOptions& options, const ExecutorInfo& info);

}  // namespace millrace
