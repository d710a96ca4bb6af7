#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>

#include "millrace/engine/engine_metrics.h"

namespace millrace {

// What the engine's thread counts and any thread reads. Every function is safe on any thread.
class MetricsRecorder {
 public:
  // `clock`: seconds, monotonic. `num_draft_positions`: most draft tokens of a sequence in a step; 0 without speculation.
  MetricsRecorder(std::function<double()> clock, std::size_t num_kv_groups, std::size_t num_draft_positions);

  // Of what the engine's thread knows: the queue's numbers are the caller's to add.
  EngineMetrics snapshot() const;

  // change(EngineMetrics&), under the lock.
  template <class Change>
  void record(const Change& change) {
    const std::lock_guard lock(mutex_);
    change(metrics_);
  }
  void set_busy(bool busy);  // before each step: whether there is anything to compute
  void count_step(int64_t num_prefill_tokens, int64_t num_generated);

 private:
  std::function<double()> clock_;
  mutable std::mutex mutex_;
  EngineMetrics metrics_;
  DecayingRate generation_rate_, prompt_rate_;
  std::optional<double> progress_at_;  // start of work or end of the last step; absent when idle
};

}  // namespace millrace
