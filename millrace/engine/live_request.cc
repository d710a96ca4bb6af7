#include "millrace/engine/live_request.h"

#include <algorithm>
#include <utility>

namespace millrace {

std::unique_ptr<LiveRequest> make_live_request(GenerationRequest request, OutputCallback callback, const EngineOptions& options,
                                               const ExecutorInfo& info, const RequestLimits& limits, const Tokenizer* tokenizer) {
  const bool answers_sources = limits.num_start_tokens > 0;
  auto live = std::make_unique<LiveRequest>();
  live->request = std::move(request);
  live->callback = std::move(callback);
  live->num_prompt_tokens = static_cast<int64_t>(live->request.prompt_tokens.size());
  live->max_tokens = live->request.max_tokens.value_or(limits.max_completion_tokens(live->num_prompt_tokens));
  live->rope_long = info.rope_short_length > 0 && live->num_prompt_tokens + live->max_tokens > info.rope_short_length;
  live->added_at = options.clock();
  live->deadline = live->added_at + live->request.timeout.value_or(0);
  live->usage.prompt_tokens = live->num_prompt_tokens;
  live->num_unfinished = live->request.n;
  live->stop_token_ids = live->request.stop_token_ids;
  if (!live->request.ignore_eos) {
    live->stop_token_ids.insert(live->stop_token_ids.end(), options.eos_token_ids.begin(), options.eos_token_ids.end());
  }
  // An answer to a source text does not continue it.
  if (answers_sources) live->source = std::exchange(live->request.prompt_tokens, {});
  for (int32_t i = 0; i < live->request.n; ++i) {
    live->sequences.push_back(
        std::make_unique<LiveSequence>(*live, Completion(live->request, live->max_tokens, options.eos_token_ids, tokenizer)));
    LiveSequence& sequence = *live->sequences.back();
    sequence.priority = live->request.priority;
    sequence.index = i;
    sequence.client = live->request.client;
    sequence.num_prompt_tokens = live->num_prompt_tokens;
    sequence.shares_prefix = options.prefix_cache || live->request.n > 1 || live->request.beams;
    if (answers_sources) {
      // What is computed of its tokens depends on the source: blocks are no one else's, and each of n sequences reads the source itself.
      sequence.num_source_tokens = live->num_prompt_tokens;
      sequence.num_prompt_tokens = limits.num_start_tokens;
      sequence.shares_prefix = false;
    }
    sequence.sampling.params = &live->request.sampling;
    sequence.sampling.seed = live->request.seed;
    sequence.sampling.sequence = static_cast<uint64_t>(i);
  }
  live->sequences[0]->tokens = answers_sources ? info.start_tokens : std::move(live->request.prompt_tokens);
  if (live->request.beams) {
    const BeamParams& beams = *live->request.beams;
    std::vector<int32_t> stops = live->stop_token_ids;  // each once: they say how many candidates are looked at
    std::sort(stops.begin(), stops.end());
    stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
    live->beams.emplace(
        BeamSearch::Options{live->request.n, live->max_tokens, beams.length_penalty, beams.early_stopping, std::move(stops)});
    live->beam_scores.temperature = 0;
    live->beam_scores.num_logprobs = live->beams->num_candidates();
    live->beam_candidates.resize(1);
  }
  if (live->request.num_prompt_logprobs >= 0) {
    live->prompt_scores.num_logprobs = live->request.num_prompt_logprobs;
    live->sequences[0]->score_end = live->num_prompt_tokens - 1;
  }
  return live;
}

}  // namespace millrace
