#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "millrace/engine/block_allocator.h"
#include "millrace/engine/engine.h"
#include "millrace/engine/disk_block_store.h"
#include "millrace/engine/kv_disk_tier.h"
#include "millrace/engine/kv_sizing.h"
#include "millrace/engine/live_request.h"
#include "millrace/engine/metrics_recorder.h"
#include "millrace/engine/prefill_pacer.h"
#include "millrace/engine/request_check.h"
#include "millrace/engine/request_inbox.h"
#include "millrace/engine/scheduler.h"
#include "millrace/engine/speculator.h"
#include "millrace/engine/step_builder.h"

namespace millrace {

class Engine::Impl {
 public:
  // `options`: of complete_options().
  Impl(Executor& executor, const Tokenizer* tokenizer, EngineOptions options, KvSizing sizing, std::unique_ptr<KvDiskTier> disk,
       std::unique_ptr<DraftSource> drafts);

  // As Engine's.
  Result<RequestId> add(GenerationRequest request, OutputCallback callback);
  void cancel(RequestId id) { inbox_.cancel(id); }
  EngineMetrics metrics() const;
  const RequestLimits& limits() const { return limits_; }
  bool step();
  void start();
  bool drain(std::chrono::milliseconds timeout);
  void stop();

 private:
  // Requests come and go.
  bool take_inbox();
  void begin(std::unique_ptr<LiveRequest> request);
  std::string secret_of(int32_t client) const;
  void schedule_siblings(LiveRequest& request);
  void count_admitted();
  void leave_queue(LiveRequest& request);
  bool end_overdue();
  void abort_all();

  // What a step gave.
  int64_t prefill_rows_max() const;
  void take_drafts(const StepOutput& output);
  void take_scores(LiveSequence& sequence, std::span<const SampledToken> tokens);
  int64_t take_tokens(LiveSequence& sequence, std::span<const SampledToken> tokens, double now);
  void end_without_token(LiveSequence& sequence);
  void end_request(LiveRequest& request, FinishReason reason, const Status& error);
  void finish_sequence(LiveSequence& sequence, bool forget);
  void deliver(LiveSequence& sequence);
  void publish_metrics();

  // engine_beams.cc
  void take_candidates(LiveSequence& sequence, const SampledToken& token);
  void continue_search(LiveRequest& request);
  void schedule_beams(LiveRequest& request, std::span<const Scheduler::ForkPoint> points);
  void finish_beams(LiveRequest& request);

  // What any thread may touch.
  Executor& executor_;
  const Tokenizer* tokenizer_;
  const EngineOptions options_;
  const ExecutorInfo info_;
  const RequestLimits limits_;
  const PrefixHasher private_hasher_;
  RequestInbox inbox_;
  MetricsRecorder metrics_;
  std::mutex stop_mutex_;             // of stop(): one caller at a time
  std::atomic<bool> started_{false};  // the engine's own thread steps, or did until stop(): nobody else may
  std::thread thread_;

  const std::unique_ptr<KvDiskTier> disk_;  // null: none

  // The rest belongs to the thread that steps.
  std::optional<DiskBlockStore> store_;  // with a disk tier
  BlockAllocator allocator_;
  Scheduler scheduler_;
  Speculator speculator_;
  StepBuilder builder_;
  std::optional<PrefillPacer> pacer_;  // with tpot_target_seconds
  std::unordered_map<RequestId, std::unique_ptr<LiveRequest>> live_;
  std::vector<RequestInbox::Command> commands_;
  std::set<std::pair<double, RequestId>> deadlines_;  // seconds
  std::vector<std::unique_ptr<LiveRequest>> ended_;   // destroyed when the step no longer points to them
  std::vector<LiveRequest*> searching_;               // requests of which the step computed beams
  OutputDelta delta_;
  int64_t num_unscheduled_siblings_ = 0;
  bool busy_ = false;
};

}  // namespace millrace
