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

namespace millrace {

// A text for an encoder, or a pair as its tokenizer joins them.
struct EncoderInput {
  std::vector<int32_t> tokens;       // at least one
  std::vector<int32_t> token_types;  // of each token, or empty: all 0
};

struct EncodeResult {
  std::vector<std::vector<float>> outputs;  // [texts][output_size]: embeddings, or classes' logits
  int64_t num_tokens = 0;
  Status error;  // then there are no outputs
};

// Called once, on the thread that runs the steps, without a lock held: must not block and must not throw. The result may be moved from.
using EncodeCallback = std::function<void(EncodeResult&)>;

struct EncoderEngineOptions {
  int64_t step_tokens_max = 1024;  // tokens of one step, of whole texts; a longer text has a step of its own
  int64_t max_text_tokens = 0;     // longer texts are refused; 0: what the network was made for
  int64_t max_queued_requests = 1024;
  int64_t max_queued_tokens = 1 << 22;  // of all requests not answered yet
  std::function<double()> clock;        // seconds, monotonic; empty: the steady clock
};

// Texts over time through an encoder: the counterpart of Engine. A text is computed whole in one step, and nothing is kept of it. Requests
// take turns, a text each, so that one of many texts does not hold up one of few. What a text gives does not depend on the other texts of
// its step.
class EncoderEngine {
 public:
  // The executor is an encoder's, made for at least rows_needed() rows, and outlives the engine. Errors: kInvalidArgument (options).
  static Result<std::unique_ptr<EncoderEngine>> create(Executor& executor, EncoderEngineOptions options);
  // Rows that a step may have: the budget, or one text that is longer.
  static int64_t rows_needed(const EncoderEngineOptions& options, int64_t max_positions);
  ~EncoderEngine();  // stop()
  EncoderEngine(const EncoderEngine&) = delete;
  EncoderEngine& operator=(const EncoderEngine&) = delete;

  // Checks and queues. Errors: kInvalidArgument (names the text and what is wrong with it), kResourceExhausted (try later), kUnavailable
  // (stopped).
  Result<RequestId> add(std::vector<EncoderInput> texts, EncodeCallback callback);
  // Forgets the request before the next step: its callback is called no more. Unknown and answered ids are ignored.
  void cancel(RequestId id);

  EngineMetrics metrics() const;
  int64_t max_text_tokens() const;
  int64_t output_size() const;

  bool step();                                    // the caller drives: one step. False: there was nothing to do. Not with start()
  void start();                                   // a thread of the engine's own drives
  bool drain(std::chrono::milliseconds timeout);  // no new requests; true: all live ones were answered in time. Not without start()
  void stop();                                    // live requests are answered with kUnavailable; add is refused afterwards

 private:
  class Impl;
  explicit EncoderEngine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
