#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "millrace/load/event_reader.h"

namespace millrace {

// Why a request has no usable answer.
enum class Failure {
  kNone,
  kConnect,      // no connection
  kTimeout,      // no complete answer in time
  kCut,          // the connection ended within the answer
  kMalformed,    // neither HTTP nor the events of a completion, or larger than what is read
  kStatus,       // another HTTP status than 200
  kServerError,  // an error event within the stream
};
std::string_view failure_name(Failure failure);

// What came back for one request. Times are those that AnswerReader was given.
struct Answer {
  Failure failure = Failure::kNone;
  std::string message;  // of a failure: what was found
  int status = 0;       // of HTTP; 0: there was none
  std::optional<double> retry_after_s;
  std::optional<int64_t> prompt_tokens, cached_tokens, completion_tokens;  // as the server counts them
  std::string finish_reason;
  std::vector<double> output_times;  // of every event that brought text
  double end_time = 0;
  bool is_stream = false;  // of server-sent events
  std::string content_type;
  std::string body;  // of an answer that is no stream
};

// Reads one answer of HTTP/1.1 from bytes as they come: for a stream the events of /v1/completions or /v1/chat/completions, for anything
// else the body. Believes nothing: sizes are bounded, and what is no answer is Failure::kMalformed. No socket in here; Boost.Beast stays
// inside answer_reader.cc.
class AnswerReader {
 public:
  static constexpr std::size_t kHeaderBytesMax = 32 << 10, kBodyBytesMax = 4 << 20;
  static constexpr uint64_t kStreamBytesMax = uint64_t{1} << 30;

  AnswerReader();
  ~AnswerReader();
  AnswerReader(const AnswerReader&) = delete;
  AnswerReader& operator=(const AnswerReader&) = delete;

  // True: the answer is complete, or has failed. `now` is when the bytes arrived.
  bool put(std::string_view bytes, double now);
  // The connection has ended. The answer is complete or has failed then.
  void put_end(double now);

  bool has_begun() const { return begun_; }  // a byte came
  bool can_reuse_connection() const;         // with a complete answer: another request may follow
  Answer take_answer() { return std::move(answer_); }

 private:
  bool take_body(double now);
  bool take_event(std::string_view data, double now);
  bool finish(double now);
  bool fail(Failure failure, std::string message, double now);

  struct Beast;
  std::unique_ptr<Beast> beast_;
  EventReader events_;
  std::string unparsed_;
  Answer answer_;
  bool begun_ = false, has_done_ = false, complete_ = false, surplus_ = false;
};

}  // namespace millrace
