#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "millrace/base/status.h"
#include "millrace/engine/engine_metrics.h"
#include "millrace/engine/engine_options.h"
#include "millrace/engine/request.h"
#include "millrace/model/step_plan.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {

// Requests over time: queue, KV blocks, scheduler and step loop (docs/design.md D5-D8). No HTTP, and no files but
// those of the disk tier, where one is asked for.
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
  // Of an encoder-decoder a request's prompt is the source text: the encoder reads it, once, when the request is admitted, and the answer
  // begins with the network's start tokens. Prompt and answer then each have the whole context.
  bool answers_sources() const;
  int64_t max_prompt_tokens() const;
  int64_t max_completion_tokens(int64_t num_prompt_tokens) const;  // for such a prompt; below 1: it is too long

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
