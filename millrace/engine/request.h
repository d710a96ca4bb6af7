#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/engine/beam_search.h"
#include "millrace/sampling/sampling.h"

// What a client asks of the engine, and what it gets back while the answer is made.
namespace millrace {

using RequestId = uint64_t;

// Instead of drawing: the `n` likeliest completions that a beam search of that width finds, the best first. Each is one delta at the end.
// Log probabilities are the model's own: what changes logits, stop strings, min_tokens and logprobs do not go with it.
struct BeamParams {
  double length_penalty = 1;
  EarlyStopping early_stopping = EarlyStopping::kNo;
};

struct GenerationRequest {
  std::vector<int32_t> prompt_tokens;  // at least one
  SamplingParams sampling;
  std::optional<BeamParams> beams;
  uint64_t seed = 0;                    // the same seed gives the same tokens, in any company: draw one where the client gave none
  int32_t n = 1;                        // sequences, each with its own random numbers
  std::optional<int64_t> max_tokens;    // completion tokens; absent: to the end of the context. 0: the prompt is computed, nothing is drawn
  int64_t min_tokens = 0;               // before so many completion tokens nothing stops the sequence
  std::vector<std::string> stop;        // none empty; the earliest match in the text ends the sequence
  std::vector<int32_t> stop_token_ids;  // besides EngineOptions::eos_token_ids
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;  // in the text; token_ids always has them
  // -1: none; k: each prompt token but the first with its logprob, its rank and the k most likely in its place, in the first delta of
  // sequence 0. Those positions are computed, not taken from the prefix cache.
  int32_t num_prompt_logprobs = -1;
  std::string cache_salt;  // only requests of one client with an equal salt share cached prefixes
  int32_t priority = 0;    // lower is served first; equal priorities by client, then in order of arrival
  int32_t client = 0;      // at least 0: on whose account it is. Clients get shares by EngineOptions::client_weights
  // Seconds from add() on, above 0; what is not finished then ends with kTimeout, also while it waits.
  std::optional<double> timeout;
};

enum class FinishReason {
  kStop,     // an EOS token, a stop token or a stop string
  kLength,   // max_tokens
  kAbort,    // cancelled by the client, or the engine stopped
  kError,    // OutputDelta::error says why
  kTimeout,  // GenerationRequest::timeout
};
std::string_view finish_reason_name(FinishReason reason);  // "stop", "length", "abort", "error", "timeout"

struct TokenLogprob {
  int32_t token_id = -1;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top_logprobs;  // most likely first
  int64_t rank = 0;                                     // of a prompt's token; 1 is the likeliest
};

// Of the whole request so far. With n > 1 the prompt counts once and the completions of all sequences count.
struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;  // prompt tokens taken from the prefix cache
};

// One sequence's news after a step.
struct OutputDelta {
  int32_t sequence = 0;                       // [0, n)
  std::string text;                           // certain text: whole UTF-8 characters, never a part of what may become a stop string
  std::vector<int32_t> token_ids;             // sampled since the last delta, a stop token included; text may lag behind
  std::vector<TokenLogprob> logprobs;         // one for each of token_ids where logprobs were asked for, else none
  std::vector<TokenLogprob> prompt_logprobs;  // with num_prompt_logprobs, once: of the prompt's tokens from the second on
  std::optional<FinishReason> finish_reason;  // set on a sequence's last delta
  std::variant<std::monostate, int32_t, std::string> stop_reason;  // with kStop: the stop token or string; nothing for EOS
  bool request_finished = false;                                   // the last delta of the request; after it the callback is destroyed
  Usage usage;
  Status error;  // with kError
};

// Called on the thread that runs the engine's steps, one call at a time, without a lock held: it may call Engine::add and
// Engine::cancel, must not block and must not throw. The delta may be moved from.
using OutputCallback = std::function<void(OutputDelta&)>;

}  // namespace millrace
