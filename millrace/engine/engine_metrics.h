#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace millrace {

// Upper bounds in seconds of how long requests take: those of vLLM's histograms, so that dashboards made for them fit.
inline constexpr double kLatencyBounds[] = {.01, .025, .05, .1, .3, .5, .8,  1,   1.5, 2,   2.5,  5,   10,
                                            15,  20,   30,  40, 50, 60, 120, 240, 480, 960, 1920, 7680};

// Counts of observations in fixed buckets, as Prometheus has them (upper bounds inclusive), not yet cumulated.
class Histogram {
 public:
  Histogram() = default;
  explicit Histogram(std::span<const double> upper_bounds);  // ascending; the bucket to infinity is added

  void observe(double value);

  const std::vector<double>& upper_bounds() const { return upper_bounds_; }
  const std::vector<int64_t>& counts() const { return counts_; }  // [upper_bounds + 1]
  int64_t count() const { return count_; }
  double sum() const { return sum_; }

 private:
  std::vector<double> upper_bounds_;
  std::vector<int64_t> counts_;
  int64_t count_ = 0;
  double sum_ = 0;
};

// Events per second, older ones counting less: an average over about kSeconds. Right from the first seconds after restart() on, because
// the time is weighted as the events are.
class DecayingRate {
 public:
  static constexpr double kSeconds = 5;
  void restart(double now);             // when work begins after an idle time
  void add(double now, int64_t count);  // events since the last call
  double per_second(double now) const;

 private:
  double decay_to(double now) const;

  double weighted_count_ = 0, weighted_seconds_ = 0, last_ = 0;
};

// Of the prefix cache's disk tier, in blocks of one KV group each.
struct KvDiskMetrics {
  int64_t num_written = 0;
  int64_t num_read = 0;      // found, checked and brought back
  int64_t num_rejected = 0;  // files that were not believed
  int64_t num_dropped = 0;   // not written: too many were waiting
  int64_t held_bytes = 0;    // of the files in the folder: a gauge
  bool is_writing = false;   // false: the disk is full or cannot be written
  bool is_reading = true;    // false: computing takes less
};

// A snapshot. Counters and histograms are up to date with every delta that was handed out, blocks and sequences with the end of the
// last step. Counters never fall; times are in seconds.
struct EngineMetrics {
  struct KvGroup {
    int64_t num_blocks = 0;         // = used + cached + free
    int64_t num_used_blocks = 0;    // read or written by a live sequence
    int64_t num_cached_blocks = 0;  // kept for the prefix cache, free to be taken
    int64_t num_free_blocks = 0;
  };
  std::vector<KvGroup> kv_groups;
  double kv_usage = 0;  // used / all blocks of the fullest group, [0, 1]

  int64_t num_running_sequences = 0;
  int64_t num_waiting_sequences = 0;  // not admitted yet, or preempted
  int64_t num_live_requests = 0;      // added and not finished, the queue included

  int64_t prompt_tokens = 0;  // of admitted requests
  int64_t generation_tokens = 0;
  int64_t prefill_tokens_computed = 0;  // rows of prefill, recomputation after preemption included
  int64_t num_preemptions = 0;
  int64_t prefix_cache_queries = 0;      // prompt tokens looked up
  int64_t prefix_cache_hits = 0;         // of them found
  std::optional<KvDiskMetrics> kv_disk;  // with a disk tier
  int64_t num_steps = 0;
  int64_t num_drafts = 0;  // steps of a sequence that had draft tokens
  int64_t num_draft_tokens = 0;
  int64_t num_accepted_tokens = 0;                        // of them
  std::vector<int64_t> num_accepted_tokens_per_position;  // [num_speculative_tokens]; empty without speculation
  int64_t num_past_output_tokens = 0;                     // kept to draft from: a gauge
  int64_t num_used_draft_blocks = 0;                      // KV blocks of the draft model, of all its groups
  std::array<int64_t, 5> finished{};                      // sequences by FinishReason
  int64_t num_rejected = 0;                               // add() said no because of a limit

  double generation_tokens_per_second = 0;  // moving average over about five seconds; falls to 0 when idle
  double prompt_tokens_per_second = 0;
  double seconds_since_step = 0;  // 0 when idle; grows while a step with work is under way: a watchdog's measure

  Histogram time_to_first_token;  // from add() to the first sampled token, per sequence
  Histogram inter_token_latency;  // between sampled tokens of a sequence
  Histogram request_latency;      // from add() to the last delta
  Histogram queue_time;           // from add() to admission
};

}  // namespace millrace
