#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/engine/engine_metrics.h"
#include "millrace/engine/request.h"
#include "millrace/model/step_plan.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {

// Several tokens of a sequence in one step (docs/speculation.md). A draft token is kept exactly when it is the one that would have been
// sampled, so the same tokens come out, greedy and sampled.
struct SpeculationOptions {
  bool prompt_lookup = false;           // drafts from what the sequence's prompt and completion repeat
  int64_t num_speculative_tokens = 16;  // most draft tokens of a sequence in a step
  int64_t prompt_lookup_min = 2;        // tokens that must match before one is drafted; 1 to 16
  bool adaptive = true;                 // only as many as pay by measured acceptance and step time; false: always the most, for tests
};

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
  bool prefix_cache = true;
  SpeculationOptions speculation;
  std::string cache_secret;  // keys the prefix cache; empty: drawn at random
  std::vector<int32_t> eos_token_ids;
  std::function<double()> clock;  // seconds, monotonic; empty: the steady clock. Tests give their own
};

// Requests over time: queue, KV blocks, scheduler and step loop (docs/design.md D5-D8). No HTTP, no files.
//
//   MR_ASSIGN_OR_RETURN(auto engine, Engine::create(executor, &tokenizer, options));
//   engine->start();                    // or call step() yourself, as tests do
//   engine->add(request, [](OutputDelta& delta) { ... });
//
// add, cancel, drain and metrics may be called from any thread. What a sequence samples depends on its prompt, parameters,
// seed and index only, not on what else runs, how prompts are cut into chunks, cache hits or preemption.
class Engine {
 public:
  // Allocates the KV memory. The executor (used by this engine only) and the tokenizer must outlive the engine; without a
  // tokenizer deltas have no text and stop strings are refused. Errors: kInvalidArgument (options), kResourceExhausted (kv_bytes is
  // too small), and what the executor says.
  static Result<std::unique_ptr<Engine>> create(Executor& executor, const Tokenizer* tokenizer, EngineOptions options);
  ~Engine();  // stop()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Checks and queues; the first delta comes from the engine's thread. Errors: kInvalidArgument (the message names the field; a prompt
  // that is too long comes with both counts), kResourceExhausted (queue full: try later), kUnavailable (draining or stopped).
  Result<RequestId> add(GenerationRequest request, OutputCallback callback);

  // Ends the request before the next step, in whatever phase it is; its blocks are free then, and its unfinished sequences get a
  // delta with kAbort. Unknown and finished ids are ignored.
  void cancel(RequestId id);

  EngineMetrics metrics() const;

  // The longest prompt + completion that can be asked for: the context, or what the KV cache holds if that is less.
  int64_t max_request_tokens() const;

  // The caller drives: one step with everything added and cancelled so far. False: there was nothing to do. Not with start().
  bool step();

  void start();  // a thread of the engine's own drives; sleeps when there is nothing to do
  // No new requests; waits until the live ones have finished, at most `timeout`, then aborts the rest. True: none had to be aborted.
  // Without start() it drives the steps itself.
  bool drain(std::chrono::milliseconds timeout);
  void stop();  // aborts what lives (with deltas) and ends the thread; add is refused afterwards

 private:
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
