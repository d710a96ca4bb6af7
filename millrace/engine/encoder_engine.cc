#include "millrace/engine/encoder_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "millrace/base/check.h"
#include "millrace/base/clock.h"

namespace millrace {
namespace {

struct LiveTexts {
  RequestId id = 0;
  std::vector<EncoderInput> texts;
  EncodeCallback callback;
  EncodeResult result;
  std::size_t num_planned = 0, num_done = 0;  // texts in a step so far, and out of it
  double added_at = 0;
};

}  // namespace

class EncoderEngine::Impl {
 public:
  Impl(Executor& executor, EncoderEngineOptions options) : executor_(executor), options_(std::move(options)), info_(executor.info()) {
    metrics_.request_latency = Histogram(kLatencyBounds);
    metrics_.queue_time = Histogram(kLatencyBounds);
    metrics_.time_to_first_token = Histogram(kLatencyBounds);
    metrics_.inter_token_latency = Histogram(kLatencyBounds);
  }

  Result<RequestId> add(std::vector<EncoderInput> texts, EncodeCallback callback);
  void cancel(RequestId id);
  EngineMetrics metrics() const;
  int64_t max_text_tokens() const { return options_.max_text_tokens; }
  int64_t output_size() const { return info_.output_size; }
  bool step();
  void start();
  bool drain(std::chrono::milliseconds timeout);
  void stop();

 private:
  struct Planned {
    LiveTexts* request;
    std::size_t text;
  };

  Status check(const std::vector<EncoderInput>& texts) const;
  bool plan_step();
  void hand_out(const StepOutput& output);
  void answer(std::unique_ptr<LiveTexts> request);
  void run_thread();

  Executor& executor_;
  const EncoderEngineOptions options_;
  const ExecutorInfo info_;

  // Under mutex_. While a step computes, its requests stay in live_, marked by num_planned.
  std::mutex stop_mutex_;  // of stop(): one caller at a time; before mutex_
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<LiveTexts>> live_;  // whose turn it is first
  int64_t live_tokens_ = 0, num_answering_ = 0;
  RequestId next_id_ = 1;
  bool accepting_ = true, stopping_ = false, started_ = false;
  std::vector<RequestId> cancelled_;  // taken note of between steps
  std::optional<double> step_began_;
  EngineMetrics metrics_;
  DecayingRate rate_;
  bool idle_ = true;
  std::thread thread_;

  // Of the thread that steps.
  StepPlan plan_;
  std::vector<Planned> planned_;
};

Status EncoderEngine::Impl::check(const std::vector<EncoderInput>& texts) const {
  if (texts.empty()) return Status::invalid_argument("a request needs at least one text");
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const EncoderInput& text = texts[i];
    if (text.tokens.empty()) return Status::invalid_argument(fmt::format("text {} has no tokens", i));
    if (static_cast<int64_t>(text.tokens.size()) > options_.max_text_tokens) {
      return Status::invalid_argument(
          fmt::format("text {} has {} tokens, the model reads at most {}", i, text.tokens.size(), options_.max_text_tokens));
    }
    for (const int32_t id : text.tokens) {
      if (id < 0 || id >= info_.vocab_size)
        return Status::invalid_argument(fmt::format("text {}: token id {} is outside the vocabulary [0, {})", i, id, info_.vocab_size));
    }
    if (!text.token_types.empty() && text.token_types.size() != text.tokens.size()) {
      return Status::invalid_argument(
          fmt::format("text {} has {} token types for {} tokens", i, text.token_types.size(), text.tokens.size()));
    }
    for (const int32_t type : text.token_types) {
      if (type < 0 || type >= std::max<int64_t>(1, info_.num_token_types)) {
        return Status::invalid_argument(
            fmt::format("text {}: token type {}, expected 0 to {}", i, type, std::max<int64_t>(1, info_.num_token_types) - 1));
      }
    }
  }
  return Status::ok();
}

Result<RequestId> EncoderEngine::Impl::add(std::vector<EncoderInput> texts, EncodeCallback callback) {
  MR_RETURN_IF_ERROR(check(texts));
  auto request = std::make_unique<LiveTexts>();
  for (const EncoderInput& text : texts) request->result.num_tokens += static_cast<int64_t>(text.tokens.size());
  request->result.outputs.resize(texts.size());
  request->texts = std::move(texts);
  request->callback = std::move(callback);
  request->added_at = options_.clock();
  const std::lock_guard lock(mutex_);
  if (!accepting_) return Status::unavailable("the engine is shutting down");
  const auto num_live = static_cast<int64_t>(live_.size());
  if (num_live >= options_.max_queued_requests) {
    ++metrics_.num_rejected;
    return Status::resource_exhausted(fmt::format("{} requests are waiting, the limit is {}", num_live, options_.max_queued_requests));
  }
  // One request is always let in, however large.
  if (num_live > 0 && live_tokens_ + request->result.num_tokens > options_.max_queued_tokens) {
    ++metrics_.num_rejected;
    return Status::resource_exhausted(fmt::format("{} tokens are waiting and {} more would pass the limit of {}", live_tokens_,
                                                  request->result.num_tokens, options_.max_queued_tokens));
  }
  request->id = next_id_++;
  live_tokens_ += request->result.num_tokens;
  const RequestId id = request->id;
  live_.push_back(std::move(request));
  changed_.notify_all();
  return id;
}

void EncoderEngine::Impl::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(id);
  changed_.notify_all();
}

// Whole texts, a text from each request in turn, until the next one does not fit. The request whose text it is has the first turn of the
// next step.
bool EncoderEngine::Impl::plan_step() {
  plan_.clear();
  planned_.clear();
  std::unique_lock lock(mutex_);
  std::vector<std::unique_ptr<LiveTexts>> dropped;  // destroyed without the lock
  for (const RequestId id : cancelled_) {
    const auto found = std::find_if(live_.begin(), live_.end(), [id](const auto& request) { return request->id == id; });
    if (found == live_.end()) continue;
    live_tokens_ -= (*found)->result.num_tokens;
    ++metrics_.finished[static_cast<std::size_t>(FinishReason::kAbort)];
    dropped.push_back(std::move(*found));
    live_.erase(found);
  }
  cancelled_.clear();
  if (live_.empty()) changed_.notify_all();
  std::size_t waiting = live_.size();  // requests in a row that had nothing left to plan
  while (waiting > 0 && !live_.empty()) {
    LiveTexts& request = *live_.front();
    if (request.num_planned < request.texts.size()) {
      const EncoderInput& text = request.texts[request.num_planned];
      const std::size_t end = plan_.tokens.size() + text.tokens.size();
      if (!planned_.empty() && static_cast<int64_t>(end) > options_.step_tokens_max) break;
      plan_.sequences.push_back({.row_begin = static_cast<int32_t>(plan_.tokens.size()), .row_end = static_cast<int32_t>(end)});
      plan_.outputs.push_back({static_cast<int32_t>(plan_.tokens.size()), nullptr});
      plan_.tokens.insert(plan_.tokens.end(), text.tokens.begin(), text.tokens.end());
      plan_.token_types.insert(plan_.token_types.end(), text.token_types.begin(), text.token_types.end());
      plan_.token_types.resize(end, 0);
      if (request.num_planned == 0) metrics_.queue_time.observe(options_.clock() - request.added_at);
      planned_.push_back({&request, request.num_planned++});
      waiting = live_.size();
    } else {
      --waiting;
    }
    live_.push_back(std::move(live_.front()));
    live_.pop_front();
  }
  if (planned_.empty()) {
    idle_ = true;
    return false;
  }
  const double now = options_.clock();
  if (idle_) rate_.restart(now);
  idle_ = false;
  step_began_ = now;
  metrics_.num_running_sequences = static_cast<int64_t>(planned_.size());
  return true;
}

void EncoderEngine::Impl::hand_out(const StepOutput& output) {
  std::vector<std::unique_ptr<LiveTexts>> done;
  const auto num_tokens = static_cast<int64_t>(plan_.tokens.size());
  for (std::size_t i = 0; i < planned_.size(); ++i) {
    const auto numbers = output.logits_of(static_cast<int64_t>(i), info_.output_size);
    LiveTexts& request = *planned_[i].request;
    if (!std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); })) {
      request.result.error = Status::internal(fmt::format("the model's numbers for text {} are not finite", planned_[i].text));
    }
    request.result.outputs[planned_[i].text].assign(numbers.begin(), numbers.end());
    ++request.num_done;
  }
  {
    const std::lock_guard lock(mutex_);
    const double now = options_.clock();
    step_began_.reset();
    ++metrics_.num_steps;
    metrics_.prompt_tokens += num_tokens;
    metrics_.prefill_tokens_computed += num_tokens;
    metrics_.num_running_sequences = 0;
    rate_.add(now, num_tokens);
    for (auto& request : live_) {
      if (request->num_done < request->texts.size()) continue;
      live_tokens_ -= request->result.num_tokens;
      metrics_.request_latency.observe(now - request->added_at);
      ++metrics_.finished[static_cast<std::size_t>(request->result.error.is_ok() ? FinishReason::kStop : FinishReason::kError)];
      done.push_back(std::move(request));
    }
    std::erase(live_, nullptr);
    num_answering_ = static_cast<int64_t>(done.size());
  }
  for (auto& request : done) answer(std::move(request));
  const std::lock_guard lock(mutex_);
  num_answering_ = 0;
  if (live_.empty()) changed_.notify_all();
}

void EncoderEngine::Impl::answer(std::unique_ptr<LiveTexts> request) {
  if (!request->result.error.is_ok()) request->result.outputs.clear();
  if (request->callback) request->callback(request->result);
}

bool EncoderEngine::Impl::step() {
  if (!plan_step()) return false;
  executor_.enqueue(plan_);
  hand_out(executor_.wait());
  return true;
}

void EncoderEngine::Impl::run_thread() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !live_.empty() || !cancelled_.empty() || stopping_; });
      if (stopping_) return;
    }
    step();
  }
}

void EncoderEngine::Impl::start() {
  const std::lock_guard lock(mutex_);
  MR_CHECK(!started_ && !stopping_, "an engine starts once");
  started_ = true;
  thread_ = std::thread([this] { run_thread(); });
}

bool EncoderEngine::Impl::drain(std::chrono::milliseconds timeout) {
  {
    std::unique_lock lock(mutex_);
    accepting_ = false;
    const auto is_idle = [&] { return live_.empty() && num_answering_ == 0; };
    if (started_) changed_.wait_for(lock, timeout, [&] { return is_idle() || stopping_; });
    if (is_idle() && !stopping_) return true;
  }
  stop();
  return false;
}

void EncoderEngine::Impl::stop() {
  {
    const std::lock_guard lock(mutex_);
    accepting_ = false;
    stopping_ = true;
    changed_.notify_all();
  }
  const std::lock_guard stop_lock(stop_mutex_);  // drain() and a signal may come here at once
  if (thread_.joinable()) thread_.join();
  std::deque<std::unique_ptr<LiveTexts>> rest;
  {
    const std::lock_guard lock(mutex_);
    rest.swap(live_);
    live_tokens_ = 0;
  }
  changed_.notify_all();
  for (auto& request : rest) {
    request->result.error = Status::unavailable("the engine is shutting down");
    answer(std::move(request));
  }
}

EngineMetrics EncoderEngine::Impl::metrics() const {
  const std::lock_guard lock(mutex_);
  EngineMetrics snapshot = metrics_;
  const double now = options_.clock();
  snapshot.num_live_requests = static_cast<int64_t>(live_.size());
  for (const auto& request : live_) snapshot.num_waiting_sequences += static_cast<int64_t>(request->texts.size() - request->num_planned);
  snapshot.prompt_tokens_per_second = rate_.per_second(now);
  if (step_began_) snapshot.seconds_since_step = std::max(0.0, now - *step_began_);
  return snapshot;
}

int64_t EncoderEngine::rows_needed(const EncoderEngineOptions& options, int64_t max_positions) {
  const int64_t longest = options.max_text_tokens > 0 ? std::min(options.max_text_tokens, max_positions) : max_positions;
  return std::max(options.step_tokens_max, longest);
}

Result<std::unique_ptr<EncoderEngine>> EncoderEngine::create(Executor& executor, EncoderEngineOptions options) {
  const ExecutorInfo& info = executor.info();
  if (!info.is_encoder) return Status::invalid_argument("the executor is a decoder's, expected an encoder's");
  if (options.max_text_tokens <= 0) options.max_text_tokens = info.max_positions;
  if (options.max_text_tokens > info.max_positions) {
    return Status::invalid_argument(
        fmt::format("max_text_tokens is {}, expected 1 to {}, what the model was made for", options.max_text_tokens, info.max_positions));
  }
  if (options.step_tokens_max < 1 || options.max_queued_requests < 1) {
    return Status::invalid_argument(fmt::format("step_tokens_max is {} and max_queued_requests {}, expected at least 1 each",
                                                options.step_tokens_max, options.max_queued_requests));
  }
  if (!options.clock) options.clock = steady_seconds;
  return std::unique_ptr<EncoderEngine>(new EncoderEngine(std::make_unique<Impl>(executor, std::move(options))));
}

EncoderEngine::EncoderEngine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
EncoderEngine::~EncoderEngine() { impl_->stop(); }
Result<RequestId> EncoderEngine::add(std::vector<EncoderInput> texts, EncodeCallback callback) {
  return impl_->add(std::move(texts), std::move(callback));
}
void EncoderEngine::cancel(RequestId id) { impl_->cancel(id); }
EngineMetrics EncoderEngine::metrics() const { return impl_->metrics(); }
int64_t EncoderEngine::max_text_tokens() const { return impl_->max_text_tokens(); }
int64_t EncoderEngine::output_size() const { return impl_->output_size(); }
bool EncoderEngine::step() { return impl_->step(); }
void EncoderEngine::start() { impl_->start(); }
bool EncoderEngine::drain(std::chrono::milliseconds timeout) { return impl_->drain(timeout); }
void EncoderEngine::stop() { impl_->stop(); }

}  // namespace millrace
