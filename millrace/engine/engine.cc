#include "millrace/engine/engine.h"

#include <fmt/format.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include "millrace/base/check.h"
#include "millrace/base/clock.h"
#include "millrace/engine/block_allocator.h"
#include "millrace/engine/draft_planner.h"
#include "millrace/engine/kv_sizing.h"
#include "millrace/engine/live_request.h"
#include "millrace/engine/prefill_pacer.h"
#include "millrace/engine/request_check.h"
#include "millrace/engine/scheduler.h"

namespace millrace {
namespace {

// The bounds that vLLM's histograms have, so that dashboards made for them fit.
constexpr double kTimeToFirstTokenBounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                              1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
constexpr double kInterTokenBounds[] = {.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3,
                                        .4,   .5,    .75,  1,   2.5,  5,   7.5,  10, 20,  40, 80};

SchedulerOptions scheduler_options(const EngineOptions& options, const ExecutorInfo& info) {
  SchedulerOptions result;
  result.max_running_sequences = options.max_running_sequences;
  result.step_tokens_max = options.step_tokens_max;
  result.prefill_chunk_max = options.prefill_chunk_max;
  result.client_weights = options.client_weights;
  result.prompt_differs = info.prompt_differs;
  for (const KvGroupSpec& group : info.kv_groups) result.windows.push_back(group.window);
  return result;
}

}  // namespace

class Engine::Impl {
 public:
  Impl(Executor& executor, const Tokenizer* tokenizer, EngineOptions options, KvSizing sizing)
      : executor_(executor),
        tokenizer_(tokenizer),
        options_(std::move(options)),
        info_(executor.info()),
        limits_{info_.sampled_vocab_size, options_.max_context, sizing.max_sequence_tokens, options_.max_n, tokenizer != nullptr},
        private_hasher_(options_.cache_secret + "/one request"),
        allocator_(sizing.num_blocks),
        scheduler_(scheduler_options(options_, info_), allocator_) {
    metrics_.time_to_first_token = Histogram(kTimeToFirstTokenBounds);
    metrics_.inter_token_latency = Histogram(kInterTokenBounds);
    metrics_.request_latency = Histogram(kLatencyBounds);
    metrics_.queue_time = Histogram(kLatencyBounds);
    metrics_.kv_groups.resize(sizing.num_blocks.size());
    if (speculates())
      metrics_.num_accepted_tokens_per_position.resize(static_cast<std::size_t>(options_.speculation.num_speculative_tokens), 0);
    if (options_.tpot_target_seconds > 0) pacer_.emplace(options_.tpot_target_seconds, options_.step_tokens_max);
    publish_metrics(0, 0);
  }

  Result<RequestId> add(GenerationRequest request, OutputCallback callback);
  void cancel(RequestId id);
  EngineMetrics metrics() const;
  int64_t max_request_tokens() const { return limits_.max_sequence_tokens; }
  bool step();
  void start();
  bool drain(std::chrono::milliseconds timeout);
  void stop();

 private:
  struct Command {
    std::unique_ptr<LiveRequest> add;  // or
    std::optional<RequestId> cancel;   // or, with neither, abort everything
  };

  std::unique_ptr<LiveRequest> make_live(GenerationRequest request, OutputCallback callback);
  void post(Command command);
  bool take_inbox();
  void run_thread();
  void begin(std::unique_ptr<LiveRequest> request);
  void abort_all();
  bool end_overdue();
  void schedule_siblings(LiveRequest& request);
  void leave_queue(LiveRequest& request);
  bool speculates() const { return options_.speculation.prompt_lookup; }
  void propose_drafts();
  int64_t prefill_rows_max() const;
  void build_plan(std::span<const Scheduler::Planned> planned);
  void plan_outputs(LiveSequence& sequence, int32_t row_end);
  void plan_scores(LiveSequence& sequence, int64_t num_rows, int32_t row_begin);
  void accept_drafts(const StepOutput& output);
  void take_scores(LiveSequence& sequence, std::span<const SampledToken> tokens);
  int64_t take_tokens(LiveSequence& sequence, std::span<const SampledToken> tokens, double now);
  void end_without_token(LiveSequence& sequence);
  void take_candidates(LiveSequence& sequence, const SampledToken& token);
  void continue_search(LiveRequest& request);
  void schedule_beams(LiveRequest& request, std::span<const Scheduler::ForkPoint> points);
  void finish_beams(LiveRequest& request);
  void end_request(LiveRequest& request, FinishReason reason, const Status& error);
  void finish_sequence(LiveSequence& sequence, bool forget);
  void deliver(LiveSequence& sequence);
  void publish_metrics(int64_t num_prefill_tokens, int64_t num_generated);

  Executor& executor_;
  const Tokenizer* tokenizer_;
  const EngineOptions options_;
  const ExecutorInfo info_;
  const RequestLimits limits_;
  const PrefixHasher private_hasher_;

  // What any thread may touch, under mutex_.
  std::mutex stop_mutex_;  // of stop(): one caller at a time; before mutex_
  mutable std::mutex mutex_;
  std::condition_variable inbox_filled_, became_idle_;
  std::vector<Command> inbox_;
  RequestId next_id_ = 1;
  int64_t num_live_ = 0;  // added and not finished
  int64_t num_queued_requests_ = 0, num_queued_tokens_ = 0, num_rejected_ = 0;
  bool accepting_ = true, stopping_ = false;
  bool started_ = false;  // the engine's own thread steps, or did until stop(): nobody else may
  std::thread thread_;

  // The rest belongs to the thread that steps.
  BlockAllocator allocator_;
  Scheduler scheduler_;
  std::unordered_map<RequestId, std::unique_ptr<LiveRequest>> live_;
  std::vector<Command> commands_;
  std::set<std::pair<double, RequestId>> deadlines_;  // seconds
  std::vector<std::unique_ptr<LiveRequest>> ended_;   // destroyed when the step no longer points to them
  StepPlan plan_;
  // Sequences that want tokens: one after their last row, and one after each draft token.
  struct Wanted {
    LiveSequence* sequence;
    std::size_t output_begin;  // of plan_.outputs
    int64_t num_draft_tokens, num_accepted_tokens;
  };
  std::vector<Wanted> wanted_;
  // Sequences of which prompt tokens are scored.
  struct Scored {
    LiveSequence* sequence;
    std::size_t output_begin, num_outputs;
  };
  std::vector<Scored> scored_;
  std::vector<LiveRequest*> searching_;  // requests of which the step computed beams
  std::vector<SamplingInput> sampling_;  // [num_outputs]; never grows within a step: the plan points into it
  // Draft tokens of a step: who decodes in it, and how many each gets.
  std::vector<LiveSequence*> decoding_;
  std::vector<DraftCandidate> candidates_;  // of decoding_
  DraftPlanner draft_planner_;
  std::optional<PrefillPacer> pacer_;  // with tpot_target_seconds
  DraftAcceptance acceptance_{.995};   // of all sequences
  OutputDelta delta_;
  int64_t num_unscheduled_siblings_ = 0;
  bool busy_ = false;

  mutable std::mutex metrics_mutex_;
  EngineMetrics metrics_;
  DecayingRate generation_rate_, prompt_rate_;
  std::optional<double> progress_at_;  // start of work or end of the last step; absent when idle
};

// ---- any thread

Result<RequestId> Engine::Impl::add(GenerationRequest request, OutputCallback callback) {
  MR_RETURN_IF_ERROR(check_request(request, limits_));
  const int64_t num_tokens = static_cast<int64_t>(request.prompt_tokens.size());
  std::unique_ptr<LiveRequest> live = make_live(std::move(request), std::move(callback));
  std::lock_guard lock(mutex_);
  if (!accepting_) return Status::unavailable("the engine is shutting down");
  if (num_queued_requests_ >= options_.max_queued_requests) {
    ++num_rejected_;
    return Status::resource_exhausted(
        fmt::format("{} requests are waiting, the limit is {}", num_queued_requests_, options_.max_queued_requests));
  }
  // One request is always let in: an empty queue with a limit below a context must not refuse for ever.
  if (num_queued_requests_ > 0 && num_queued_tokens_ + num_tokens > options_.max_queued_tokens) {
    ++num_rejected_;
    return Status::resource_exhausted(fmt::format("{} prompt tokens are waiting and {} more would pass the limit of {}", num_queued_tokens_,
                                                  num_tokens, options_.max_queued_tokens));
  }
  const RequestId id = next_id_++;
  live->id = id;
  ++num_live_;
  ++num_queued_requests_;
  num_queued_tokens_ += num_tokens;
  inbox_.push_back({std::move(live), std::nullopt});
  inbox_filled_.notify_one();
  return id;
}

std::unique_ptr<LiveRequest> Engine::Impl::make_live(GenerationRequest request, OutputCallback callback) {
  auto live = std::make_unique<LiveRequest>();
  live->request = std::move(request);
  live->callback = std::move(callback);
  live->num_prompt_tokens = static_cast<int64_t>(live->request.prompt_tokens.size());
  live->max_tokens = live->request.max_tokens.value_or(limits_.max_sequence_tokens - live->num_prompt_tokens);
  live->rope_long = info_.rope_short_length > 0 && live->num_prompt_tokens + live->max_tokens > info_.rope_short_length;
  live->added_at = options_.clock();
  live->deadline = live->added_at + live->request.timeout.value_or(0);
  live->usage.prompt_tokens = live->num_prompt_tokens;
  live->num_unfinished = live->request.n;
  live->stop_token_ids = live->request.stop_token_ids;
  if (!live->request.ignore_eos) {
    live->stop_token_ids.insert(live->stop_token_ids.end(), options_.eos_token_ids.begin(), options_.eos_token_ids.end());
  }
  for (int32_t i = 0; i < live->request.n; ++i) {
    live->sequences.push_back(
        std::make_unique<LiveSequence>(*live, Completion(live->request, live->max_tokens, options_.eos_token_ids, tokenizer_)));
    LiveSequence& sequence = *live->sequences.back();
    sequence.priority = live->request.priority;
    sequence.index = i;
    sequence.client = live->request.client;
    sequence.num_prompt_tokens = live->num_prompt_tokens;
    sequence.shares_prefix = options_.prefix_cache || live->request.n > 1 || live->request.beams;
    sequence.sampling.params = &live->request.sampling;
    sequence.sampling.seed = live->request.seed;
    sequence.sampling.sequence = static_cast<uint64_t>(i);
  }
  live->sequences[0]->tokens = std::move(live->request.prompt_tokens);
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

void Engine::Impl::post(Command command) {
  std::lock_guard lock(mutex_);
  inbox_.push_back(std::move(command));
  inbox_filled_.notify_one();
}

void Engine::Impl::cancel(RequestId id) { post({nullptr, id}); }

EngineMetrics Engine::Impl::metrics() const {
  EngineMetrics snapshot;
  {
    std::lock_guard lock(metrics_mutex_);
    snapshot = metrics_;
    const double now = options_.clock();
    snapshot.generation_tokens_per_second = generation_rate_.per_second(now);
    snapshot.prompt_tokens_per_second = prompt_rate_.per_second(now);
    if (progress_at_) snapshot.seconds_since_step = std::max(0.0, now - *progress_at_);
  }
  std::lock_guard lock(mutex_);
  snapshot.num_live_requests = num_live_;
  snapshot.num_rejected = num_rejected_;
  return snapshot;
}

void Engine::Impl::start() {
  std::lock_guard lock(mutex_);
  MR_CHECK(!started_ && !stopping_, "an engine starts once");
  started_ = true;
  thread_ = std::thread([this] { run_thread(); });
}

bool Engine::Impl::drain(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  std::unique_lock lock(mutex_);
  accepting_ = false;
  const auto is_idle = [&] { return num_live_ == 0; };
  if (started_) {
    if (became_idle_.wait_until(lock, deadline, is_idle)) return true;
    inbox_.push_back({});
    inbox_filled_.notify_one();
    became_idle_.wait(lock, is_idle);
    return false;
  }
  while (!is_idle()) {
    lock.unlock();
    if (std::chrono::steady_clock::now() >= deadline) {
      take_inbox();
      abort_all();
      return false;
    }
    step();
    lock.lock();
  }
  return true;
}

void Engine::Impl::stop() {
  {
    std::lock_guard lock(mutex_);
    accepting_ = false;
    stopping_ = true;
    inbox_filled_.notify_all();
  }
  const std::lock_guard stop_lock(stop_mutex_);
  if (thread_.joinable()) thread_.join();
  take_inbox();
  abort_all();
}

// ---- the stepping thread

void Engine::Impl::run_thread() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      if (!busy_) inbox_filled_.wait(lock, [&] { return !inbox_.empty() || stopping_; });
      if (stopping_) return;
    }
    step();
  }
}

bool Engine::Impl::take_inbox() {
  {
    std::lock_guard lock(mutex_);
    commands_.swap(inbox_);
  }
  const bool any = !commands_.empty();
  for (Command& command : commands_) {
    if (command.add) {
      begin(std::move(command.add));
    } else if (command.cancel) {
      const auto found = live_.find(*command.cancel);
      if (found != live_.end()) end_request(*found->second, FinishReason::kAbort, Status::ok());
    } else {
      abort_all();
    }
  }
  commands_.clear();
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

void Engine::Impl::begin(std::unique_ptr<LiveRequest> request) {
  for (auto& sequence : request->sequences) {
    sequence->arrival = request->id;
    // Clients share nothing: nobody finds out by timing what another has asked. With the prefix cache off only the sequences of one request
    // share, under a salt that no other request has.
    const int32_t client = request->request.client;
    const PrefixHasher of_client(client == 0 ? options_.cache_secret : fmt::format("{}/client {}", options_.cache_secret, client));
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
    sequence->tokens.assign(tokens.begin(), tokens.begin() + request.num_prompt_tokens);
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
  publish_metrics(0, 0);
}

void Engine::Impl::leave_queue(LiveRequest& request) {
  if (!request.queued) return;
  request.queued = false;
  std::lock_guard lock(mutex_);
  --num_queued_requests_;
  num_queued_tokens_ -= request.num_prompt_tokens;
}

bool Engine::Impl::step() {
  const bool had_commands = take_inbox();
  {
    std::lock_guard lock(metrics_mutex_);
    busy_ = scheduler_.num_running() + scheduler_.num_waiting() > 0;
    if (!busy_) {
      progress_at_.reset();
    } else if (!progress_at_) {
      progress_at_ = options_.clock();
      generation_rate_.restart(*progress_at_);
      prompt_rate_.restart(*progress_at_);
    }
  }
  if (!busy_) {
    if (had_commands) publish_metrics(0, 0);
    return had_commands;
  }

  propose_drafts();
  build_plan(scheduler_.plan_step(prefill_rows_max()));
  const double begun = options_.clock();
  executor_.enqueue(plan_);
  const StepOutput& output = executor_.wait();
  MR_CHECK(output.tokens.size() == plan_.outputs.size(), "one token for each output");
  const double now = options_.clock();
  const int64_t num_rows = static_cast<int64_t>(plan_.tokens.size());
  accept_drafts(output);
  int64_t num_decode_rows = 0, num_drafts = 0;
  for (const Wanted& wanted : wanted_) {
    if (wanted.sequence->completion.num_tokens() > 0) num_decode_rows += 1 + wanted.num_draft_tokens;
    num_drafts += wanted.num_draft_tokens;
  }
  if (speculates() && num_decode_rows == num_rows) draft_planner_.observe_step(num_rows, num_drafts, now - begun);
  if (pacer_) pacer_->observe(num_decode_rows, num_rows - num_decode_rows, now - begun);
  scheduler_.commit_step();
  int64_t num_generated = 0;
  for (const Scored& scored : scored_)
    take_scores(*scored.sequence, std::span(output.tokens).subspan(scored.output_begin, scored.num_outputs));
  for (const Wanted& wanted : wanted_) {
    if (wanted.sequence->request.max_tokens == 0) {
      end_without_token(*wanted.sequence);
      continue;
    }
    if (wanted.sequence->request.beams) {
      take_candidates(*wanted.sequence, output.tokens[wanted.output_begin]);
      continue;
    }
    num_generated +=
        take_tokens(*wanted.sequence,
                    std::span(output.tokens).subspan(wanted.output_begin, static_cast<std::size_t>(1 + wanted.num_accepted_tokens)), now);
  }
  for (LiveRequest* request : searching_) continue_search(*request);
  searching_.clear();
  ended_.clear();
  publish_metrics(num_rows - num_decode_rows, num_generated);
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

// Every sequence that decodes is followed, also where no draft of it is computed: whether its drafts would have been right is seen for
// nothing.
void Engine::Impl::propose_drafts() {
  if (!speculates()) return;
  decoding_.clear();
  for (Sequence* running : scheduler_.running()) {
    LiveSequence& sequence = static_cast<LiveSequence&>(*running);
    if (sequence.request.request.sampling.needs_previous_draw()) continue;  // one position a step
    if (sequence.num_uncomputed() == 1 && sequence.completion.num_tokens() > 0) decoding_.push_back(&sequence);
  }
  candidates_.resize(decoding_.size());
  for (std::size_t i = 0; i < decoding_.size(); ++i) {
    LiveSequence& sequence = *decoding_[i];
    if (!sequence.lookup) sequence.lookup.emplace(options_.speculation.prompt_lookup_min);
    sequence.lookup->extend(sequence.tokens, sequence.num_prompt_tokens, sequence.acceptance, acceptance_);
    DraftCandidate& candidate = candidates_[i];
    candidate.probabilities.clear();
    if (sequence.lookup->match_length() == 0) continue;
    // The step's last token is sampled, not drafted.
    const int64_t most =
        std::min(options_.speculation.num_speculative_tokens, sequence.request.max_tokens - sequence.completion.num_tokens() - 1);
    for (int64_t k = 0; k < most; ++k)
      candidate.probabilities.push_back(sequence.acceptance.probability(sequence.lookup->match_length() + k, &acceptance_));
  }
  if (options_.speculation.adaptive) {
    draft_planner_.choose(candidates_);
  } else {
    for (DraftCandidate& candidate : candidates_) candidate.num_draft_tokens = static_cast<int64_t>(candidate.probabilities.size());
  }
  for (std::size_t i = 0; i < decoding_.size(); ++i) {
    LiveSequence& sequence = *decoding_[i];
    if (candidates_[i].num_draft_tokens == 0) continue;
    sequence.lookup->draft(sequence.tokens, candidates_[i].num_draft_tokens);
    sequence.num_draft_tokens = candidates_[i].num_draft_tokens;
  }
}

void Engine::Impl::build_plan(std::span<const Scheduler::Planned> planned) {
  const double now = options_.clock();
  for (Sequence* admitted : scheduler_.newly_admitted()) {
    LiveRequest& request = static_cast<LiveSequence*>(admitted)->request;
    if (admitted->index != 0) continue;
    leave_queue(request);
    request.usage.cached_tokens = admitted->num_cached_tokens;
    std::lock_guard lock(metrics_mutex_);
    metrics_.prompt_tokens += request.num_prompt_tokens;
    metrics_.queue_time.observe(now - request.added_at);
  }
  plan_.clear();
  wanted_.clear();
  scored_.clear();
  std::size_t num_outputs = 0;
  for (const Scheduler::Planned& rows : planned) {
    num_outputs += static_cast<std::size_t>(rows.sequence->num_scored(rows.num_rows));
    num_outputs += rows.wants_token() ? 1 + static_cast<std::size_t>(rows.sequence->num_draft_tokens) : 0;
  }
  sampling_.clear();
  sampling_.reserve(num_outputs);
  for (const Scheduler::Planned& rows : planned) {
    LiveSequence& sequence = static_cast<LiveSequence&>(*rows.sequence);
    const int32_t row_begin = static_cast<int32_t>(plan_.tokens.size());
    const auto first = sequence.tokens.begin() + sequence.num_computed;
    plan_.tokens.insert(plan_.tokens.end(), first, first + rows.num_rows);
    const int32_t row_end = static_cast<int32_t>(plan_.tokens.size());
    plan_.sequences.push_back({row_begin, row_end, static_cast<int32_t>(sequence.num_computed), sequence.request.rope_long,
                               static_cast<int32_t>(sequence.num_prompt_tokens)});
    plan_scores(sequence, rows.num_rows, row_begin);
    if (rows.wants_token()) plan_outputs(sequence, row_end);
  }
  plan_.block_copies.assign(scheduler_.block_copies().begin(), scheduler_.block_copies().end());
  plan_.table_begin.push_back(0);
  for (std::size_t g = 0; g < info_.kv_groups.size(); ++g) {
    for (const Scheduler::Planned& rows : planned) {
      const std::vector<int32_t>& table = rows.sequence->block_tables[g];
      plan_.block_ids.insert(plan_.block_ids.end(), table.begin(), table.end());
      plan_.table_begin.push_back(static_cast<int32_t>(plan_.block_ids.size()));
    }
  }
}

// The prompt's next token after each row that is scored.
void Engine::Impl::plan_scores(LiveSequence& sequence, int64_t num_rows, int32_t row_begin) {
  const int64_t num_scored = sequence.num_scored(num_rows);
  if (num_scored == 0) return;
  scored_.push_back({&sequence, plan_.outputs.size(), static_cast<std::size_t>(num_scored)});
  const int64_t first = std::max(sequence.num_computed, sequence.score_begin);
  for (int64_t position = first; position < first + num_scored; ++position) {
    SamplingInput& sampling = sampling_.emplace_back();
    sampling.params = &sequence.request.prompt_scores;
    sampling.given = sequence.tokens[static_cast<std::size_t>(position + 1)];
    plan_.outputs.push_back({row_begin + static_cast<int32_t>(position - sequence.num_computed), &sampling});
  }
}

// A token after the sequence's last own row, and one after each draft token as if those before it were accepted.
void Engine::Impl::plan_outputs(LiveSequence& sequence, int32_t row_end) {
  const std::span<const int32_t> tokens(sequence.tokens);
  const std::span<const int32_t> completion_tokens = tokens.subspan(static_cast<std::size_t>(sequence.num_prompt_tokens));
  const auto num_draft_tokens = static_cast<int32_t>(sequence.num_draft_tokens);
  const int64_t num_completion_tokens = sequence.completion.num_tokens();
  wanted_.push_back({&sequence, plan_.outputs.size(), num_draft_tokens, 0});
  if (sequence.request.max_tokens == 0) return;
  if (sequence.request.beams) {
    SamplingInput& sampling = sampling_.emplace_back();
    sampling.params = &sequence.request.beam_scores;
    plan_.outputs.push_back({row_end - 1, &sampling});
    return;
  }
  for (int32_t k = 0; k <= num_draft_tokens; ++k) {
    SamplingInput& sampling = sampling_.emplace_back(sequence.sampling);
    sampling.position = static_cast<uint64_t>(num_completion_tokens + k);
    sampling.prompt_tokens = tokens.first(static_cast<std::size_t>(sequence.num_prompt_tokens));
    sampling.completion_tokens = completion_tokens.first(static_cast<std::size_t>(num_completion_tokens + k));
    sampling.forbidden = {};
    if (num_completion_tokens + k < sequence.request.request.min_tokens) sampling.forbidden = sequence.request.stop_token_ids;
    plan_.outputs.push_back({row_end - 1 - num_draft_tokens + k, &sampling});
  }
}

// A draft token is right exactly when it was sampled after the token before it, and as long as all before it were.
void Engine::Impl::accept_drafts(const StepOutput& output) {
  for (Wanted& wanted : wanted_) {
    if (wanted.num_draft_tokens == 0) continue;
    LiveSequence& sequence = *wanted.sequence;
    const int32_t* drafts = sequence.tokens.data() + sequence.num_tokens();
    int64_t& accepted = wanted.num_accepted_tokens;
    while (accepted < wanted.num_draft_tokens) {
      const SampledToken& token = output.tokens[wanted.output_begin + static_cast<std::size_t>(accepted)];
      if (!token.finite || token.id != drafts[accepted]) break;
      ++accepted;
    }
    sequence.num_accepted_tokens = accepted;
    std::lock_guard lock(metrics_mutex_);
    ++metrics_.num_drafts;
    metrics_.num_draft_tokens += wanted.num_draft_tokens;
    metrics_.num_accepted_tokens += accepted;
    for (int64_t k = 0; k < accepted; ++k) ++metrics_.num_accepted_tokens_per_position[static_cast<std::size_t>(k)];
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
    const double now = options_.clock();
    std::lock_guard lock(metrics_mutex_);
    metrics_.time_to_first_token.observe(now - request.added_at);
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
    {
      std::lock_guard lock(metrics_mutex_);
      metrics_.generation_tokens += static_cast<int64_t>(request.beam_candidates.size());
    }
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
  if (num_taken > 0) {
    std::lock_guard lock(metrics_mutex_);
    for (int64_t k = 0; k < num_taken; ++k) {
      if (sequence.last_token_at) {
        metrics_.inter_token_latency.observe(now - *sequence.last_token_at);
      } else {
        metrics_.time_to_first_token.observe(now - request.added_at);
      }
      sequence.last_token_at = now;
    }
    metrics_.generation_tokens += num_taken;
  }
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
  if (sequence.scheduled) {
    scheduler_.remove(sequence, forget);
  } else {
    sequence.state = SequenceState::kFinished;
    --num_unscheduled_siblings_;
  }
  --sequence.request.num_unfinished;
  std::lock_guard lock(metrics_mutex_);
  ++metrics_.finished[static_cast<std::size_t>(*delta_.finish_reason)];
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
  {
    std::lock_guard lock(metrics_mutex_);
    metrics_.request_latency.observe(options_.clock() - request.added_at);
  }
  if (request.request.timeout) deadlines_.erase({request.deadline, request.id});
  auto node = live_.extract(request.id);
  ended_.push_back(std::move(node.mapped()));
  ended_.back()->callback = nullptr;
  std::lock_guard lock(mutex_);
  if (--num_live_ == 0) became_idle_.notify_all();
}

void Engine::Impl::publish_metrics(int64_t num_prefill_tokens, int64_t num_generated) {
  const double now = options_.clock();
  std::lock_guard lock(metrics_mutex_);
  metrics_.kv_usage = 0;
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
    metrics_.kv_groups[static_cast<std::size_t>(g)] = {allocator_.num_blocks(g), allocator_.num_used(g), allocator_.num_cached(g),
                                                       allocator_.num_free(g)};
    const double usage = static_cast<double>(allocator_.num_used(g)) / static_cast<double>(std::max<int64_t>(1, allocator_.num_blocks(g)));
    metrics_.kv_usage = std::max(metrics_.kv_usage, usage);
  }
  metrics_.num_running_sequences = scheduler_.num_running();
  metrics_.num_waiting_sequences = scheduler_.num_waiting() + num_unscheduled_siblings_;
  const Scheduler::Counters& counters = scheduler_.counters();
  metrics_.num_preemptions = counters.num_preemptions;
  metrics_.prefix_cache_queries = counters.prefix_cache_queries;
  metrics_.prefix_cache_hits = counters.prefix_cache_hits;
  if (num_prefill_tokens + num_generated == 0) return;
  metrics_.prefill_tokens_computed += num_prefill_tokens;
  ++metrics_.num_steps;
  generation_rate_.add(now, num_generated);
  prompt_rate_.add(now, num_prefill_tokens);
  progress_at_ = now;
}

// ---- the public face

Result<std::unique_ptr<Engine>> Engine::create(Executor& executor, const Tokenizer* tokenizer, EngineOptions options) {
  const ExecutorInfo& info = executor.info();
  if (options.max_context <= 0) options.max_context = info.max_positions;
  if (options.max_context < 2 || options.max_context > info.max_positions) {
    return Status::invalid_argument(
        fmt::format("max_context is {}, expected 2 to {}, what the model was made for", options.max_context, info.max_positions));
  }
  if (options.step_tokens_max < 1 || options.prefill_chunk_max < 1) {
    return Status::invalid_argument(fmt::format("step_tokens_max is {} and prefill_chunk_max {}, expected at least 1 each",
                                                options.step_tokens_max, options.prefill_chunk_max));
  }
  if (!(options.tpot_target_seconds >= 0 && std::isfinite(options.tpot_target_seconds)))
    return Status::invalid_argument(fmt::format("tpot_target_seconds is {}, expected at least 0", options.tpot_target_seconds));
  if (options.max_running_sequences < 1 || options.max_running_sequences > options.step_tokens_max) {
    return Status::invalid_argument(fmt::format("max_running_sequences is {}, expected 1 to step_tokens_max, {}",
                                                options.max_running_sequences, options.step_tokens_max));
  }
  const SpeculationOptions& speculation = options.speculation;
  if (speculation.prompt_lookup &&
      (speculation.num_speculative_tokens < 1 || speculation.num_speculative_tokens > DraftPlanner::kDraftTokensMax)) {
    return Status::invalid_argument(
        fmt::format("num_speculative_tokens is {}, expected 1 to {}", speculation.num_speculative_tokens, DraftPlanner::kDraftTokensMax));
  }
  if (speculation.prompt_lookup && (speculation.prompt_lookup_min < 1 || speculation.prompt_lookup_min > 16)) {
    return Status::invalid_argument(fmt::format("prompt_lookup_min is {}, expected 1 to 16", speculation.prompt_lookup_min));
  }
  for (const double weight : options.client_weights) {
    if (!(weight > 0 && std::isfinite(weight)))
      return Status::invalid_argument(fmt::format("a client's weight is {}, expected a finite number above 0", weight));
  }
  if (options.max_n < 1 || options.max_queued_requests < 1) {
    return Status::invalid_argument(
        fmt::format("max_n is {} and max_queued_requests {}, expected at least 1 each", options.max_n, options.max_queued_requests));
  }
  MR_CHECK(info.sampled_vocab_size > 0 && info.sampled_vocab_size <= info.vocab_size, "an executor that draws tokens says from how many");
  // Published configurations name EOS tokens that are never drawn; they are harmless once they are gone.
  std::erase_if(options.eos_token_ids, [&](int32_t id) { return id < 0 || id >= info.sampled_vocab_size; });
  if (!options.clock) options.clock = steady_seconds;
  if (options.cache_secret.empty()) {
    options.cache_secret.resize(32);
    if (RAND_bytes(reinterpret_cast<unsigned char*>(options.cache_secret.data()), 32) != 1)
      return Status::internal("no random bytes for cache_secret");
  }
  MR_ASSIGN_OR_RETURN(KvSizing sizing, size_kv(info.kv_groups, options.kv_bytes, options.max_context, options.max_running_sequences,
                                               options.step_tokens_max));
  MR_RETURN_IF_ERROR(executor.allocate_kv(sizing.num_blocks));
  return std::unique_ptr<Engine>(new Engine(std::make_unique<Impl>(executor, tokenizer, std::move(options), std::move(sizing))));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() { impl_->stop(); }
Result<RequestId> Engine::add(GenerationRequest request, OutputCallback callback) {
  return impl_->add(std::move(request), std::move(callback));
}
void Engine::cancel(RequestId id) { impl_->cancel(id); }
EngineMetrics Engine::metrics() const { return impl_->metrics(); }
int64_t Engine::max_request_tokens() const { return impl_->max_request_tokens(); }
bool Engine::step() { return impl_->step(); }
void Engine::start() { impl_->start(); }
bool Engine::drain(std::chrono::milliseconds timeout) { return impl_->drain(timeout); }
void Engine::stop() { impl_->stop(); }

}  // namespace millrace
