#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "millrace/engine/completion.h"
#include "millrace/engine/drafter.h"
#include "millrace/engine/engine_options.h"
#include "millrace/engine/request.h"
#include "millrace/engine/request_check.h"
#include "millrace/engine/sequence.h"

// A request from Engine::add to its last delta, as the engine's thread keeps it.
namespace millrace {

struct LiveRequest;

struct LiveSequence : Sequence {
  LiveSequence(LiveRequest& owner, Completion made) : request(owner), completion(std::move(made)) {}

  LiveRequest& request;
  Completion completion;
  SamplingInput sampling;               // of the next token
  std::unique_ptr<Drafter> drafter;     // from the first token on, with speculation
  std::optional<double> last_token_at;  // seconds
  bool scheduled = false;               // the scheduler knows it
};

struct LiveRequest {
  RequestId id = 0;
  GenerationRequest request;  // prompt_tokens are moved into the first sequence, or to `source`
  OutputCallback callback;
  std::vector<int32_t> source;  // of an encoder-decoder: the prompt; the sequences begin with the network's start tokens
  int64_t num_prompt_tokens = 0;
  int64_t max_tokens = 1;  // of each sequence
  bool rope_long = false;
  double added_at = 0;                        // seconds
  double deadline = 0;                        // likewise, with GenerationRequest::timeout
  bool queued = true;                         // counts against the queue's limits
  std::vector<int32_t> stop_token_ids;        // what min_tokens forbids
  SamplingParams prompt_scores;               // SamplingInput::params of prompt tokens that are scored
  std::vector<TokenLogprob> prompt_logprobs;  // until the first delta
  // Sequences after the first wait until it has prefilled the prompt, and then find its full blocks in the prefix cache. The prompt's
  // last, partial block each recomputes for itself: less than a block of rows, and no copy-on-write anywhere.
  std::vector<std::unique_ptr<LiveSequence>> sequences;
  int64_t num_unfinished = 0;
  // With BeamParams. Sequence i computes the i-th running beam, which in every step is a new sequence to the scheduler: beams find the full
  // blocks of what they have in common in the prefix cache, and go on from a copy of the last one (Scheduler::add_forked).
  std::optional<BeamSearch> beams;
  SamplingParams beam_scores;                                           // SamplingInput::params of beams
  std::vector<std::vector<std::pair<int32_t, float>>> beam_candidates;  // by running beam
  std::size_t num_beams_computed = 0;                                   // of them
  Usage usage;
};

// What a request that check_request() has passed is while it lives, its id aside. Any thread.
std::unique_ptr<LiveRequest> make_live_request(GenerationRequest request, OutputCallback callback, const EngineOptions& options,
                                               const ExecutorInfo& info, const RequestLimits& limits, const Tokenizer* tokenizer);

}  // namespace millrace
