#include "millrace/engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "millrace/base/check.h"
#include "millrace/engine/engine_impl.h"

namespace millrace {
namespace {

SchedulerOptions scheduler_options(const EngineOptions& options, const ExecutorInfo& info) {
  SchedulerOptions result;
  result.max_running_sequences = options.max_running_sequences;
  result.step_tokens_max = options.step_tokens_max;
  result.prefill_chunk_max = options.prefill_chunk_max;
  result.client_weights = options.client_weights;
  result.prompt_differs = info.prompt_differs;
  // Reading so much takes some 20 ms of a fast disk, and as long as computing a few tokens.
  constexpr int64_t kRestoredBytes = int64_t{32} << 20;
  int64_t largest = 1;
  for (const KvGroupSpec& group : info.kv_groups) {
    largest = std::max(largest, group.block_bytes);
    result.windows.push_back(group.window);
    result.cross.push_back(group.cross);
  }
  result.restored_blocks_max = std::max<int64_t>(1, kRestoredBytes / largest);
  return result;
}

// Null where the options want none, or where the folder cannot be used: that is a warning, and requests are served as well without.
std::unique_ptr<KvDiskTier> open_disk_tier(const EngineOptions& options, const ExecutorInfo& info) {
  if (options.kv_disk.folder.empty()) return nullptr;
  std::vector<int64_t> block_bytes;
  for (const KvGroupSpec& group : info.kv_groups) block_bytes.push_back(group.block_bytes);
  auto tier = KvDiskTier::open(options.kv_disk, std::move(block_bytes));
  if (tier.is_ok()) return std::move(tier).value();
  if (options.kv_disk.on_warning)
    options.kv_disk.on_warning(fmt::format("{}; cached prefixes are not kept on disk", tier.status().message()));
  return nullptr;
}

}  // namespace

Engine::Impl::Impl(Executor& executor, const Tokenizer* tokenizer, EngineOptions options, KvSizing sizing, std::unique_ptr<KvDiskTier> disk,
                   std::unique_ptr<DraftSource> drafts)
    : executor_(executor),
      tokenizer_(tokenizer),
      options_(std::move(options)),
      info_(executor.info()),
      limits_{info_.sampled_vocab_size, options_.max_context, sizing.max_sequence_tokens,
              options_.max_n,           tokenizer != nullptr, static_cast<int64_t>(info_.start_tokens.size()),
              info_.max_source_tokens},
      private_hasher_(options_.cache_secret + "/one request"),
      inbox_(options_.max_queued_requests, options_.max_queued_tokens),
      metrics_(options_.clock, sizing.num_blocks.size(),
               options_.speculation.method != SpeculationMethod::kOff
                   ? static_cast<std::size_t>(options_.speculation.num_speculative_tokens)
                   : 0),
      disk_(std::move(disk)),
      store_(disk_ != nullptr ? std::optional<DiskBlockStore>(std::in_place, executor_, *disk_, options_.clock) : std::nullopt),
      allocator_(sizing.num_blocks),
      scheduler_(scheduler_options(options_, info_), allocator_, store_ ? &*store_ : nullptr),
      speculator_(options_, std::move(drafts)),
      builder_(info_.kv_groups.size()) {
  if (options_.tpot_target_seconds > 0) pacer_.emplace(options_.tpot_target_seconds, options_.step_tokens_max);
  publish_metrics();
}

// ---- any thread

Result<RequestId> Engine::Impl::add(GenerationRequest request, OutputCallback callback) {
  MR_RETURN_IF_ERROR(check_request(request, limits_));
  return inbox_.add(make_live_request(std::move(request), std::move(callback), options_, info_, limits_, tokenizer_));
}

EngineMetrics Engine::Impl::metrics() const {
  EngineMetrics snapshot = metrics_.snapshot();
  snapshot.num_live_requests = inbox_.num_live();
  snapshot.num_rejected = inbox_.num_rejected();
  if (disk_ != nullptr) {
    snapshot.kv_disk = disk_->metrics();
    snapshot.kv_disk->is_reading = store_->reads();
  }
  return snapshot;
}

void Engine::Impl::start() {
  MR_CHECK(!inbox_.is_stopping() && !started_.exchange(true), "an engine starts once");
  thread_ = std::thread([this] {
    while (true) {
      if (!busy_) inbox_.wait();
      if (inbox_.is_stopping()) return;
      step();
    }
  });
}

bool Engine::Impl::drain(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  if (started_) return inbox_.drain(deadline);
  inbox_.close();
  while (inbox_.num_live() > 0) {
    if (std::chrono::steady_clock::now() >= deadline) {
      take_inbox();
      abort_all();
      return false;
    }
    step();
  }
  return true;
}

void Engine::Impl::stop() {
  inbox_.stop();
  const std::lock_guard stop_lock(stop_mutex_);
  if (thread_.joinable()) thread_.join();
  take_inbox();
  abort_all();
}

// ---- the stepping thread

bool Engine::Impl::take_inbox() {
  inbox_.take(commands_);
  const bool any = !commands_.empty();
  for (RequestInbox::Command& command : commands_) {
    if (command.add) {
      begin(std::move(command.add));
    } else if (command.cancel) {
      const auto found = live_.find(*command.cancel);
      if (found != live_.end()) end_request(*found->second, FinishReason::kAbort, Status::ok());
    } else {
      abort_all();
    }
  }
  const bool any_overdue = end_overdue();
  ended_.clear();
  return any || any_overdue;
}

bool Engine::Impl::end_overdue() {
  if (deadlines_.empty()) return false;
  const double now = options_.clock();
  bool any = false;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const RequestId id = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    end_request(*live_.at(id), FinishReason::kTimeout, Status::ok());
    any = true;
  }
  return any;
}

// What keys the prefix cache of a client. Clients share nothing: nobody finds out by timing what another has asked. Where they have salts,
// a restart that numbers them anew changes nothing.
std::string Engine::Impl::secret_of(int32_t client) const {
  if (client >= 0 && static_cast<std::size_t>(client) < options_.client_salts.size())
    return fmt::format("{}/salt {}", options_.cache_secret, options_.client_salts[static_cast<std::size_t>(client)]);
  return client == 0 ? options_.cache_secret : fmt::format("{}/client {}", options_.cache_secret, client);
}

void Engine::Impl::begin(std::unique_ptr<LiveRequest> request) {
  for (auto& sequence : request->sequences) {
    sequence->arrival = request->id;
    // With the prefix cache off only the sequences of one request share, under a salt that no other request has.
    const PrefixHasher of_client(secret_of(request->request.client));
    sequence->prefix_root = options_.prefix_cache ? of_client.root(request->request.cache_salt, request->rope_long)
                                                  : private_hasher_.root(fmt::format("{}", request->id), request->rope_long);
  }
  request->sequences[0]->scheduled = true;
  scheduler_.add(*request->sequences[0]);
  num_unscheduled_siblings_ += static_cast<int64_t>(request->sequences.size()) - 1;
  const RequestId id = request->id;
  if (request->request.timeout) deadlines_.emplace(request->deadline, id);
  live_.emplace(id, std::move(request));
}

void Engine::Impl::schedule_siblings(LiveRequest& request) {
  const std::vector<int32_t>& tokens = request.sequences[0]->tokens;
  for (auto& sequence : request.sequences) {
    if (sequence->scheduled) continue;
    sequence->tokens.assign(tokens.begin(), tokens.begin() + sequence->num_prompt_tokens);
    sequence->scheduled = true;
    scheduler_.add(*sequence);
    --num_unscheduled_siblings_;
  }
}

void Engine::Impl::abort_all() {
  std::vector<LiveRequest*> requests;
  for (auto& [id, request] : live_) requests.push_back(request.get());
  std::sort(requests.begin(), requests.end(), [](const LiveRequest* a, const LiveRequest* b) { return a->id < b->id; });
  for (LiveRequest* request : requests) end_request(*request, FinishReason::kAbort, Status::ok());
  ended_.clear();
  publish_metrics();
}

void Engine::Impl::leave_queue(LiveRequest& request) {
  if (!request.queued) return;
  request.queued = false;
  inbox_.leave_queue(request.num_prompt_tokens);
}

bool Engine::Impl::step() {
  const bool had_commands = take_inbox();
  busy_ = scheduler_.num_running() + scheduler_.num_waiting() > 0;
  metrics_.set_busy(busy_);
  if (!busy_) {
    if (had_commands) publish_metrics();
    return had_commands;
  }

  speculator_.propose(scheduler_.running());
  const auto planned = scheduler_.plan_step(prefill_rows_max());
  count_admitted();
  const StepPlan& plan = builder_.build(planned, scheduler_.block_copies());
  const double begun = options_.clock();
  executor_.enqueue(plan);
  const StepOutput& output = executor_.wait();
  MR_CHECK(output.tokens.size() == plan.outputs.size(), "one token for each output");
  const double now = options_.clock();
  const int64_t num_rows = static_cast<int64_t>(plan.tokens.size());
  take_drafts(output);
  int64_t num_decode_rows = 0, num_decodes = 0, num_drafts = 0, num_accepted = 0;
  for (const StepBuilder::Wanted& wanted : builder_.wanted()) {
    if (wanted.sequence->completion.num_tokens() > 0) {
      num_decode_rows += 1 + wanted.num_draft_tokens;
      ++num_decodes;
    }
    num_drafts += wanted.num_draft_tokens;
    num_accepted += wanted.num_accepted_tokens;
  }
  if (num_decode_rows == num_rows) speculator_.observe_step(num_rows, num_drafts, now - begun);
  speculator_.observe_drafts(num_decodes, num_drafts, num_accepted);
  if (pacer_) pacer_->observe(num_decode_rows, num_rows - num_decode_rows, now - begun);
  if (store_) store_->observe_step(num_decode_rows, num_rows - num_decode_rows, now - begun);
  scheduler_.commit_step();
  const std::span tokens(output.tokens);
  for (const StepBuilder::Scored& scored : builder_.scored())
    take_scores(*scored.sequence, tokens.subspan(scored.output_begin, scored.num_outputs));
  int64_t num_generated = 0;
  for (const StepBuilder::Wanted& wanted : builder_.wanted()) {
    const LiveRequest& request = wanted.sequence->request;
    if (request.max_tokens == 0) {
      end_without_token(*wanted.sequence);
    } else if (request.beams) {
      take_candidates(*wanted.sequence, tokens[wanted.output_begin]);
    } else {
      const auto num_tokens = static_cast<std::size_t>(1 + wanted.num_accepted_tokens);
      num_generated += take_tokens(*wanted.sequence, tokens.subspan(wanted.output_begin, num_tokens), now);
    }
  }
  for (LiveRequest* request : searching_) continue_search(*request);
  searching_.clear();
  ended_.clear();
  publish_metrics();
  metrics_.count_step(num_rows - num_decode_rows, num_generated);
  return true;
}

int64_t Engine::Impl::prefill_rows_max() const {
  if (!pacer_) return std::numeric_limits<int64_t>::max();
  int64_t decode_rows = 0;
  for (const Sequence* running : scheduler_.running()) {
    if (running->num_uncomputed() == 1) decode_rows += 1 + running->num_draft_tokens;
  }
  return pacer_->rows(decode_rows);
}

void Engine::Impl::count_admitted() {
  const double now = options_.clock();
  for (Sequence* admitted : scheduler_.newly_admitted()) {
    LiveRequest& request = static_cast<LiveSequence*>(admitted)->request;
    if (admitted->index != 0) continue;
    leave_queue(request);
    request.usage.cached_tokens = admitted->num_cached_tokens;
    metrics_.record([&](EngineMetrics& metrics) {
      metrics.prompt_tokens += request.num_prompt_tokens;
      metrics.queue_time.observe(now - request.added_at);
    });
  }
}

void Engine::Impl::take_drafts(const StepOutput& output) {
  builder_.accept_drafts(output);
  for (const StepBuilder::Wanted& wanted : builder_.wanted()) {
    if (wanted.num_draft_tokens == 0) continue;
    metrics_.record([&](EngineMetrics& metrics) {
      ++metrics.num_drafts;
      metrics.num_draft_tokens += wanted.num_draft_tokens;
      metrics.num_accepted_tokens += wanted.num_accepted_tokens;
      for (int64_t k = 0; k < wanted.num_accepted_tokens; ++k) ++metrics.num_accepted_tokens_per_position[static_cast<std::size_t>(k)];
    });
  }
}

void Engine::Impl::take_scores(LiveSequence& sequence, std::span<const SampledToken> tokens) {
  LiveRequest& request = sequence.request;
  for (const SampledToken& token : tokens) {
    if (!token.finite) {
      end_request(request, FinishReason::kError,
                  Status::internal(fmt::format("the model's numbers are not finite at prompt token {}", sequence.score_begin)));
      return;
    }
    request.prompt_logprobs.push_back({token.id, token.logprob, token.top_logprobs, token.rank});
    ++sequence.score_begin;
  }
}

// The prompt is computed, and that is all that was asked for.
void Engine::Impl::end_without_token(LiveSequence& sequence) {
  if (sequence.state == SequenceState::kFinished) return;
  if (sequence.index == 0) schedule_siblings(sequence.request);
  sequence.completion.end(FinishReason::kLength, delta_);
  finish_sequence(sequence, /*forget=*/false);
  deliver(sequence);
}

// One delta for the tokens that the step gave the sequence. Returns how many it took: none after the one that ends the sequence.
int64_t Engine::Impl::take_tokens(LiveSequence& sequence, std::span<const SampledToken> tokens, double now) {
  if (sequence.state == SequenceState::kFinished) return 0;  // a sibling failed in this very step
  LiveRequest& request = sequence.request;
  int64_t num_taken = 0;
  const SampledToken* failed = nullptr;
  for (const SampledToken& token : tokens) {
    if (!token.finite || token.id < 0) {
      failed = &token;
      break;
    }
    ++num_taken;
    sequence.tokens.push_back(token.id);
    // Kept with the sequence like its tokens: a preempted sequence computes its keys and values again, and draws nothing twice.
    if (request.request.sampling.needs_previous_draw()) sequence.sampling.mirostat_mu = token.mirostat_mu;
    sequence.completion.push(token, delta_);
    if (delta_.finish_reason) break;
  }
  metrics_.record([&](EngineMetrics& metrics) {
    for (int64_t k = 0; k < num_taken; ++k) {
      if (sequence.last_token_at) {
        metrics.inter_token_latency.observe(now - *sequence.last_token_at);
      } else {
        metrics.time_to_first_token.observe(now - request.added_at);
      }
      sequence.last_token_at = now;
    }
    metrics.generation_tokens += num_taken;
  });
  request.usage.completion_tokens += num_taken;
  if (failed != nullptr) {
    if (num_taken > 0) deliver(sequence);
    const int64_t place = sequence.completion.num_tokens();
    end_request(request, FinishReason::kError,
                failed->finite
                    ? Status::invalid_argument(fmt::format(
                          "no token is allowed at completion token {}: allowed_token_ids, bad_words and min_tokens leave none", place))
                    : Status::internal(fmt::format("the model's numbers are not finite at completion token {}", place)));
    return num_taken;
  }
  if (sequence.index == 0) schedule_siblings(request);
  if (delta_.finish_reason) finish_sequence(sequence, /*forget=*/false);
  deliver(sequence);
  return num_taken;
}

// Ends every sequence that has not finished, each with a delta.
void Engine::Impl::end_request(LiveRequest& request, FinishReason reason, const Status& error) {
  leave_queue(request);
  for (auto& sequence : request.sequences) {
    if (sequence->state == SequenceState::kFinished) continue;
    sequence->completion.end(reason, delta_);
    delta_.error = error;
    // What a failed request left in the cache may be what made it fail.
    finish_sequence(*sequence, reason == FinishReason::kError);
    deliver(*sequence);
  }
}

void Engine::Impl::finish_sequence(LiveSequence& sequence, bool forget) {
  speculator_.finish(sequence, forget);
  if (sequence.scheduled) {
    scheduler_.remove(sequence, forget);
  } else {
    sequence.state = SequenceState::kFinished;
    --num_unscheduled_siblings_;
  }
  --sequence.request.num_unfinished;
  metrics_.record([&](EngineMetrics& metrics) { ++metrics.finished[static_cast<std::size_t>(*delta_.finish_reason)]; });
}

// Hands delta_ out and clears it. After a request's last delta the request lives only until the end of the step.
void Engine::Impl::deliver(LiveSequence& sequence) {
  LiveRequest& request = sequence.request;
  delta_.sequence = sequence.index;
  delta_.usage = request.usage;
  delta_.request_finished = request.num_unfinished == 0;
  if (sequence.index == 0) delta_.prompt_logprobs = std::exchange(request.prompt_logprobs, {});
  if (request.callback) request.callback(delta_);
  const bool finished = request.num_unfinished == 0;
  delta_.text.clear();
  delta_.token_ids.clear();
  delta_.logprobs.clear();
  delta_.prompt_logprobs.clear();
  delta_.finish_reason.reset();
  delta_.stop_reason = std::monostate();
  delta_.error = Status::ok();
  if (!finished) return;
  metrics_.record([&](EngineMetrics& metrics) { metrics.request_latency.observe(options_.clock() - request.added_at); });
  if (request.request.timeout) deadlines_.erase({request.deadline, request.id});
  auto node = live_.extract(request.id);
  ended_.push_back(std::move(node.mapped()));
  ended_.back()->callback = nullptr;
  inbox_.count_ended();
}

void Engine::Impl::publish_metrics() {
  metrics_.record([&](EngineMetrics& metrics) {
    metrics.kv_usage = 0;
    for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
      metrics.kv_groups[static_cast<std::size_t>(g)] = {allocator_.num_blocks(g), allocator_.num_used(g), allocator_.num_cached(g),
                                                        allocator_.num_free(g)};
      const double usage =
          static_cast<double>(allocator_.num_used(g)) / static_cast<double>(std::max<int64_t>(1, allocator_.num_blocks(g)));
      metrics.kv_usage = std::max(metrics.kv_usage, usage);
    }
    metrics.num_running_sequences = scheduler_.num_running();
    metrics.num_past_output_tokens = speculator_.num_past_tokens();
    metrics.num_used_draft_blocks = speculator_.num_used_draft_blocks();
    metrics.num_waiting_sequences = scheduler_.num_waiting() + num_unscheduled_siblings_;
    const Scheduler::Counters& counters = scheduler_.counters();
    metrics.num_preemptions = counters.num_preemptions;
    metrics.prefix_cache_queries = counters.prefix_cache_queries;
    metrics.prefix_cache_hits = counters.prefix_cache_hits;
  });
}

// ---- the public face

Result<std::unique_ptr<Engine>> Engine::create(Executor& executor, const Tokenizer* tokenizer, EngineOptions options) {
  const ExecutorInfo& info = executor.info();
  const bool has_secret = !options.cache_secret.empty();
  MR_ASSIGN_OR_RETURN(options, complete_options(std::move(options), info));
  MR_ASSIGN_OR_RETURN(KvSizing sizing, size_kv(info.kv_groups, options.kv_bytes, options.max_context, options.max_running_sequences,
                                               options.step_tokens_max));
  MR_RETURN_IF_ERROR(executor.allocate_kv(sizing.num_blocks));
  std::unique_ptr<KvDiskTier> disk = open_disk_tier(options, info);
  if (disk != nullptr && !has_secret) options.cache_secret = disk->secret();
  MR_ASSIGN_OR_RETURN(auto drafts, make_draft_source(options, sizing.num_blocks));
  return std::unique_ptr<Engine>(
      new Engine(std::make_unique<Impl>(executor, tokenizer, std::move(options), std::move(sizing), std::move(disk), std::move(drafts))));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() { impl_->stop(); }
Result<RequestId> Engine::add(GenerationRequest request, OutputCallback callback) {
  return impl_->add(std::move(request), std::move(callback));
}
void Engine::cancel(RequestId id) { impl_->cancel(id); }
EngineMetrics Engine::metrics() const { return impl_->metrics(); }
int64_t Engine::max_request_tokens() const { return impl_->limits().max_sequence_tokens; }
bool Engine::answers_sources() const { return impl_->limits().num_start_tokens > 0; }
int64_t Engine::max_prompt_tokens() const { return impl_->limits().max_prompt_tokens(); }
int64_t Engine::max_completion_tokens(int64_t num_prompt_tokens) const { return impl_->limits().max_completion_tokens(num_prompt_tokens); }
bool Engine::step() { return impl_->step(); }
void Engine::start() { impl_->start(); }
bool Engine::drain(std::chrono::milliseconds timeout) { return impl_->drain(timeout); }
void Engine::stop() { impl_->stop(); }

}  // namespace millrace
