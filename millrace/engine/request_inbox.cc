#include "millrace/engine/request_inbox.h"

#include <fmt/format.h>

#include <utility>

namespace millrace {

Result<RequestId> RequestInbox::add(std::unique_ptr<LiveRequest> request) {
  const int64_t num_tokens = request->num_prompt_tokens;
  const std::lock_guard lock(mutex_);
  if (!accepting_) return Status::unavailable("the engine is shutting down");
  if (num_queued_requests_ >= max_queued_requests_) {
    ++num_rejected_;
    return Status::resource_exhausted(fmt::format("{} requests are waiting, the limit is {}", num_queued_requests_, max_queued_requests_));
  }
  // One request is always let in: an empty queue with a limit below a context must not refuse for ever.
  if (num_queued_requests_ > 0 && num_queued_tokens_ + num_tokens > max_queued_tokens_) {
    ++num_rejected_;
    return Status::resource_exhausted(fmt::format("{} prompt tokens are waiting and {} more would pass the limit of {}", num_queued_tokens_,
                                                  num_tokens, max_queued_tokens_));
  }
  const RequestId id = next_id_++;
  request->id = id;
  ++num_live_;
  ++num_queued_requests_;
  num_queued_tokens_ += num_tokens;
  commands_.push_back({std::move(request), std::nullopt});
  filled_.notify_one();
  return id;
}

void RequestInbox::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  commands_.push_back({nullptr, id});
  filled_.notify_one();
}

void RequestInbox::close() {
  const std::lock_guard lock(mutex_);
  accepting_ = false;
}

bool RequestInbox::drain(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  accepting_ = false;
  const auto is_idle = [&] { return num_live_ == 0; };
  if (idle_.wait_until(lock, deadline, is_idle)) return true;
  commands_.push_back({});
  filled_.notify_one();
  idle_.wait(lock, is_idle);
  return false;
}

void RequestInbox::stop() {
  const std::lock_guard lock(mutex_);
  accepting_ = false;
  stopping_ = true;
  filled_.notify_all();
}

int64_t RequestInbox::num_live() const {
  const std::lock_guard lock(mutex_);
  return num_live_;
}

int64_t RequestInbox::num_rejected() const {
  const std::lock_guard lock(mutex_);
  return num_rejected_;
}

void RequestInbox::wait() {
  std::unique_lock lock(mutex_);
  filled_.wait(lock, [&] { return !commands_.empty() || stopping_; });
}

bool RequestInbox::is_stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

void RequestInbox::take(std::vector<Command>& commands) {
  commands.clear();
  const std::lock_guard lock(mutex_);
  commands.swap(commands_);
}

void RequestInbox::leave_queue(int64_t num_prompt_tokens) {
  const std::lock_guard lock(mutex_);
  --num_queued_requests_;
  num_queued_tokens_ -= num_prompt_tokens;
}

void RequestInbox::count_ended() {
  const std::lock_guard lock(mutex_);
  if (--num_live_ == 0) idle_.notify_all();
}

}  // namespace millrace
