#include "millrace/engine/metrics_recorder.h"

#include <algorithm>
#include <utility>

namespace millrace {
namespace {

// The bounds that vLLM's histograms have, so that dashboards made for them fit.
constexpr double kTimeToFirstTokenBounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                              1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
constexpr double kInterTokenBounds[] = {.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3,
                                        .4,   .5,    .75,  1,   2.5,  5,   7.5,  10, 20,  40, 80};

}  // namespace

MetricsRecorder::MetricsRecorder(std::function<double()> clock, std::size_t num_kv_groups, std::size_t num_draft_positions)
    : clock_(std::move(clock)) {
  metrics_.time_to_first_token = Histogram(kTimeToFirstTokenBounds);
  metrics_.inter_token_latency = Histogram(kInterTokenBounds);
  metrics_.request_latency = Histogram(kLatencyBounds);
  metrics_.queue_time = Histogram(kLatencyBounds);
  metrics_.kv_groups.resize(num_kv_groups);
  metrics_.num_accepted_tokens_per_position.resize(num_draft_positions, 0);
}

EngineMetrics MetricsRecorder::snapshot() const {
  const std::lock_guard lock(mutex_);
  EngineMetrics snapshot = metrics_;
  const double now = clock_();
  snapshot.generation_tokens_per_second = generation_rate_.per_second(now);
  snapshot.prompt_tokens_per_second = prompt_rate_.per_second(now);
  if (progress_at_) snapshot.seconds_since_step = std::max(0.0, now - *progress_at_);
  return snapshot;
}

void MetricsRecorder::set_busy(bool busy) {
  const std::lock_guard lock(mutex_);
  if (!busy) {
    progress_at_.reset();
  } else if (!progress_at_) {
    progress_at_ = clock_();
    generation_rate_.restart(*progress_at_);
    prompt_rate_.restart(*progress_at_);
  }
}

void MetricsRecorder::count_step(int64_t num_prefill_tokens, int64_t num_generated) {
  const double now = clock_();
  const std::lock_guard lock(mutex_);
  metrics_.prefill_tokens_computed += num_prefill_tokens;
  ++metrics_.num_steps;
  generation_rate_.add(now, num_generated);
  prompt_rate_.add(now, num_prefill_tokens);
  progress_at_ = now;
}

}  // namespace millrace
