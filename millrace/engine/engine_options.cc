#include "millrace/engine/engine_options.h"

#include <fmt/format.h>
#include <openssl/rand.h>

#include <cmath>
#include <utility>

#include "millrace/base/check.h"
#include "millrace/base/clock.h"

namespace millrace {

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
