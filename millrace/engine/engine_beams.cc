#include <fmt/format.h>

#include <algorithm>

#include "millrace/engine/engine_impl.h"

// Beam search (engine/beam_search.h) over steps: which sequences compute the beams, and from whose blocks they go on.
namespace millrace {

// What may come after one beam.
void Engine::Impl::take_candidates(LiveSequence& sequence, const SampledToken& token) {
  if (sequence.state == SequenceState::kFinished) return;  // a sibling failed in this very step
  LiveRequest& request = sequence.request;
  const int64_t place = sequence.num_tokens() - sequence.num_prompt_tokens;
  if (!token.finite) {
    std::erase(searching_, &request);
    end_request(request, FinishReason::kError,
                Status::internal(fmt::format("the model's numbers are not finite at completion token {}", place)));
    return;
  }
  if (place == 0) {
    metrics_.record([&](EngineMetrics& metrics) { metrics.time_to_first_token.observe(options_.clock() - request.added_at); });
  }
  request.beam_candidates[static_cast<std::size_t>(sequence.index)] = token.top_logprobs;
  ++request.num_beams_computed;
  if (std::find(searching_.begin(), searching_.end(), &request) == searching_.end()) searching_.push_back(&request);
}

// Beams that were computed leave the scheduler: those of one request, preempted or many, may need several steps, and nobody waits for
// others with blocks in hand. When all are there the search goes on.
void Engine::Impl::continue_search(LiveRequest& request) {
  const bool complete = request.num_beams_computed == request.beam_candidates.size();
  std::vector<Scheduler::ForkPoint> points(request.beam_candidates.size());
  for (std::size_t i = 0; i < points.size(); ++i) {
    LiveSequence& sequence = *request.sequences[i];
    if (sequence.state != SequenceState::kRunning || sequence.num_uncomputed() > 0) continue;
    if (complete) points[i] = scheduler_.fork_point(sequence);
    scheduler_.remove(sequence);
    sequence.state = SequenceState::kWaiting;  // for the other beams, unscheduled
    sequence.scheduled = false;
    ++num_unscheduled_siblings_;
  }
  if (complete) {
    request.num_beams_computed = 0;
    request.beams->advance(request.beam_candidates);
    metrics_.record([&](EngineMetrics& metrics) { metrics.generation_tokens += static_cast<int64_t>(request.beam_candidates.size()); });
    if (!request.beams->is_done()) schedule_beams(request, points);
  }
  for (Scheduler::ForkPoint& point : points) scheduler_.release(point);
  if (request.beams->is_done()) finish_beams(request);
}

void Engine::Impl::schedule_beams(LiveRequest& request, std::span<const Scheduler::ForkPoint> points) {
  const std::vector<BeamSearch::Beam>& beams = request.beams->running();
  request.beam_candidates.assign(beams.size(), {});
  // Several beams may go on from one: their parents' digests are taken before the sequences change.
  std::vector<std::vector<BlockDigest>> digests;
  for (const BeamSearch::Beam& beam : beams) digests.push_back(request.sequences[static_cast<std::size_t>(beam.parent)]->digests);
  const std::vector<int32_t>& first = request.sequences[0]->tokens;
  const std::vector<int32_t> prompt(first.begin(), first.begin() + request.num_prompt_tokens);
  for (std::size_t i = 0; i < beams.size(); ++i) {
    LiveSequence& sequence = *request.sequences[i];
    sequence.tokens = prompt;
    sequence.tokens.insert(sequence.tokens.end(), beams[i].tokens.begin(), beams[i].tokens.end());
    sequence.digests = std::move(digests[i]);
    sequence.was_admitted = true;  // it goes on: not a new one in the queue
    sequence.scheduled = true;
    --num_unscheduled_siblings_;
    scheduler_.add_forked(sequence, points[static_cast<std::size_t>(beams[i].parent)]);
  }
}

void Engine::Impl::finish_beams(LiveRequest& request) {
  const std::vector<BeamSearch::Beam>& best = request.beams->finished();
  for (auto& sequence : request.sequences) {
    if (static_cast<std::size_t>(sequence->index) < best.size()) {
      for (const int32_t id : best[static_cast<std::size_t>(sequence->index)].tokens) {
        SampledToken token;
        token.id = id;
        sequence->completion.push(token, delta_);
        if (delta_.finish_reason) break;
      }
      request.usage.completion_tokens += sequence->completion.num_tokens();
    }
    // A vocabulary of fewer tokens than there are beams leaves some without an answer.
    if (!delta_.finish_reason) sequence->completion.end(FinishReason::kLength, delta_);
    finish_sequence(*sequence, /*forget=*/false);
    deliver(*sequence);
  }
}

}  // namespace millrace
