#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/engine/live_request.h"

namespace millrace {

// Where any thread leaves requests and the engine's thread finds them; what it counts bounds the queue. Every function is safe on any
// thread.
class RequestInbox {
 public:
  struct Command {
    std::unique_ptr<LiveRequest> add;  // or
    std::optional<RequestId> cancel;   // or, with neither, abort everything
  };

  // Limits of the requests that are not admitted yet and of their prompt tokens.
  RequestInbox(int64_t max_queued_requests, int64_t max_queued_tokens)
      : max_queued_requests_(max_queued_requests), max_queued_tokens_(max_queued_tokens) {}

  // Gives the request its id. Errors: kResourceExhausted (a limit), kUnavailable (closed).
  Result<RequestId> add(std::unique_ptr<LiveRequest> request);
  void cancel(RequestId id);
  void close();  // no new requests
  // Closes and waits until no request lives; at the deadline it leaves the command to abort everything. True: that was not needed.
  bool drain(std::chrono::steady_clock::time_point deadline);
  void stop();  // closes, and ends wait()

  int64_t num_live() const;      // requests added and not ended
  int64_t num_rejected() const;  // for a limit

  // ---- what the engine's thread calls
  void wait();  // until there is a command, or the end
  bool is_stopping() const;
  void take(std::vector<Command>& commands);    // replaces them, in order of arrival
  void leave_queue(int64_t num_prompt_tokens);  // a request was admitted, or ended before
  void count_ended();                           // a request had its last delta

 private:
  const int64_t max_queued_requests_, max_queued_tokens_;
  mutable std::mutex mutex_;
  std::condition_variable filled_, idle_;
  std::vector<Command> commands_;
  RequestId next_id_ = 1;
  int64_t num_live_ = 0;  // added and not ended
  int64_t num_queued_requests_ = 0, num_queued_tokens_ = 0, num_rejected_ = 0;
  bool accepting_ = true, stopping_ = false;
};

}  // namespace millrace
