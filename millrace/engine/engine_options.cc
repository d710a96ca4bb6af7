#include "millrace/engine/engine_options.h"

#include <fmt/format.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "millrace/base/check.h"
#include "millrace/base/clock.h"
#include "millrace/engine/kv_disk_folder.h"

namespace millrace {

Status check_kv_disk(const EngineOptions& options, const ExecutorInfo& info) {
  if (options.kv_disk.folder.empty()) return Status::ok();
  if (!info.start_tokens.empty()) {
    return Status::unsupported(
        "a disk tier keeps cached prefixes, and the model is an encoder-decoder: what it computes of an answer depends on all of the "
        "source "
        "text, so that it has none");
  }
  if (info.kv_groups.empty()) return Status::unsupported("a disk tier keeps keys and values, and the model has none from step to step");
  if (!options.prefix_cache) return Status::invalid_argument("a disk tier is a part of the prefix cache, which is off");
  int64_t largest = 0;
  for (const KvGroupSpec& group : info.kv_groups) largest = std::max(largest, group.block_bytes);
  if (options.kv_disk.max_bytes < KvDiskFolder::kHeaderBytes + largest) {
    return Status::invalid_argument(fmt::format("the disk tier may hold {} bytes, and the file of one block takes {}",
                                                options.kv_disk.max_bytes, KvDiskFolder::kHeaderBytes + largest));
  }
  return Status::ok();
}

Result<EngineOptions> complete_options(EngineOptions options, const ExecutorInfo& info) {
  if (options.max_context <= 0) options.max_context = info.max_positions;
  if (options.max_context < 2 || options.max_context > info.max_positions) {
    return Status::invalid_argument(
        fmt::format("max_context is {}, expected 2 to {}, what the model was made for", options.max_context, info.max_positions));
  }
  if (options.step_tokens_max < 1 || options.prefill_chunk_max < 1) {
    return Status::invalid_argument(fmt::format("step_tokens_max is {} and prefill_chunk_max {}, expected at least 1 each",
                                                options.step_tokens_max, options.prefill_chunk_max));
  }
  if (!(options.tpot_target_seconds >= 0 && std::isfinite(options.tpot_target_seconds)))
    return Status::invalid_argument(fmt::format("tpot_target_seconds is {}, expected at least 0", options.tpot_target_seconds));
  if (options.max_running_sequences < 1 || options.max_running_sequences > options.step_tokens_max) {
    return Status::invalid_argument(fmt::format("max_running_sequences is {}, expected 1 to step_tokens_max, {}",
                                                options.max_running_sequences, options.step_tokens_max));
  }
  MR_RETURN_IF_ERROR(check_speculation(options.speculation, info));
  MR_RETURN_IF_ERROR(check_kv_disk(options, info).with_context("kv_disk"));
  for (const double weight : options.client_weights) {
    if (!(weight > 0 && std::isfinite(weight)))
      return Status::invalid_argument(fmt::format("a client's weight is {}, expected a finite number above 0", weight));
  }
  if (options.max_n < 1 || options.max_queued_requests < 1) {
    return Status::invalid_argument(
        fmt::format("max_n is {} and max_queued_requests {}, expected at least 1 each", options.max_n, options.max_queued_requests));
  }
  MR_CHECK(info.sampled_vocab_size > 0 && info.sampled_vocab_size <= info.vocab_size, "an executor that draws tokens says from how many");
  // Published configurations name EOS tokens that are never drawn; they are harmless once they are gone.
  std::erase_if(options.eos_token_ids, [&](int32_t id) { return id < 0 || id >= info.sampled_vocab_size; });
  if (!options.clock) options.clock = steady_seconds;
  if (options.cache_secret.empty()) {
    options.cache_secret.resize(32);
    if (RAND_bytes(reinterpret_cast<unsigned char*>(options.cache_secret.data()), 32) != 1)
      return Status::internal("no random bytes for cache_secret");
  }
  return options;
}

}  // namespace millrace
