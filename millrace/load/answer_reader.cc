#include "millrace/load/answer_reader.h"

#include <fmt/format.h>

#include <boost/asio/buffer.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <charconv>
#include <cmath>
#include <utility>

#include "millrace/base/json.h"

namespace millrace {
namespace {

namespace http = boost::beast::http;
using boost::system::error_code;

constexpr std::size_t kUnparsedBytesMax = 64 << 10;  // of chunk headers and trailers
constexpr std::size_t kMessageBytesMax = 300;

// A part of what a server sent, for a message: one line, printable.
std::string shown(std::string_view text) {
  std::string line(text.substr(0, kMessageBytesMax));
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < ' ' || c == 127) c = ' ';
  }
  return text.size() > kMessageBytesMax ? line + " ..." : line;
}

// OpenAI's {"error": {"message": ...}}, FastAPI's {"detail": ...}, or the text itself.
std::string error_message(std::string_view body) {
  const auto parsed = parse_json(body);
  if (!parsed.is_ok() || !parsed->is_object()) return shown(body);
  const json::object& object = parsed->get_object();
  const json::value* error = object.if_contains("error");
  if (error != nullptr && error->is_object()) error = error->get_object().if_contains("message");
  if (error == nullptr) error = object.if_contains("message");
  return error != nullptr && error->is_string() ? shown(error->get_string()) : shown(body);
}

// A count of tokens; absent where it is none.
std::optional<int64_t> count_of(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_int64() || value->get_int64() < 0 || value->get_int64() > (int64_t{1} << 40)) return std::nullopt;
  return value->get_int64();
}

bool has_text(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_string() && !value->get_string().empty();
}

}  // namespace

std::string_view failure_name(Failure failure) {
  switch (failure) {
    case Failure::kNone: return "none";
    case Failure::kConnect: return "connect";
    case Failure::kTimeout: return "timeout";
    case Failure::kCut: return "cut";
    case Failure::kMalformed: return "malformed";
    case Failure::kStatus: return "status";
    case Failure::kServerError: return "server_error";
  }
  return "none";
}

struct AnswerReader::Beast {
  http::response_parser<http::string_body> parser;
};

AnswerReader::AnswerReader() : beast_(std::make_unique<Beast>()) {
  beast_->parser.header_limit(static_cast<uint32_t>(kHeaderBytesMax));
  beast_->parser.body_limit(kStreamBytesMax);
}
AnswerReader::~AnswerReader() = default;

bool AnswerReader::can_reuse_connection() const {
  return complete_ && !surplus_ && answer_.failure != Failure::kMalformed && answer_.failure != Failure::kCut && beast_->parser.is_done() &&
         beast_->parser.keep_alive();
}

bool AnswerReader::fail(Failure failure, std::string message, double now) {
  answer_.failure = failure;
  answer_.message = std::move(message);
  answer_.end_time = now;
  complete_ = true;
  return true;
}

bool AnswerReader::put(std::string_view bytes, double now) {
  if (complete_) return true;
  begun_ = begun_ || !bytes.empty();
  if (!unparsed_.empty()) {
    unparsed_.append(bytes);
    bytes = unparsed_;
  }
  auto& parser = beast_->parser;
  std::size_t num_parsed = 0;
  while (num_parsed < bytes.size() && !parser.is_done()) {
    error_code error;
    const bool had_header = parser.is_header_done();
    const std::size_t num_put = parser.put(boost::asio::buffer(bytes.data() + num_parsed, bytes.size() - num_parsed), error);
    num_parsed += num_put;
    if (error && error != http::error::need_more)
      return fail(Failure::kMalformed, fmt::format("the answer is no HTTP: {}", error.message()), now);
    if (!parser.is_header_done()) break;
    if (!had_header) {
      const auto& fields = parser.get();
      answer_.status = parser.get().result_int();
      answer_.content_type = shown({fields[http::field::content_type].data(), fields[http::field::content_type].size()});
      answer_.is_stream = answer_.status == 200 && boost::beast::iequals(answer_.content_type.substr(0, 17), "text/event-stream");
      const auto retry_after = fields[http::field::retry_after];
      double seconds = 0;
      const auto parsed = std::from_chars(retry_after.data(), retry_after.data() + retry_after.size(), seconds);
      if (parsed.ec == std::errc() && parsed.ptr == retry_after.data() + retry_after.size() && std::isfinite(seconds) && seconds >= 0)
        answer_.retry_after_s = seconds;
      parser.eager(true);  // from here on all the chunks that are there in one call
    }
    if (take_body(now)) return true;
    if (num_put == 0) break;
  }
  if (parser.is_done()) {
    surplus_ = num_parsed < bytes.size();  // more than one answer for one request
    return finish(now);
  }
  std::string rest(bytes.substr(num_parsed));
  unparsed_ = std::move(rest);
  if (unparsed_.size() > kUnparsedBytesMax) return fail(Failure::kMalformed, "the answer has an endless header or chunk", now);
  return false;
}

void AnswerReader::put_end(double now) {
  if (complete_) return;
  auto& parser = beast_->parser;
  error_code error;
  if (parser.is_header_done()) parser.put_eof(error);
  if (!parser.is_header_done()) {
    fail(Failure::kCut, begun_ ? "the connection ended within the header" : "the connection ended without an answer", now);
  } else if (error) {
    fail(Failure::kCut, "the connection ended within the answer", now);
  } else {
    finish(now);
  }
}

// What has come of the body; true: that was enough to know that the answer is of no use.
bool AnswerReader::take_body(double now) {
  std::string& body = beast_->parser.get().body();
  if (body.empty()) return false;
  if (answer_.is_stream) {
    const bool goes_on = events_.put(body, [&](std::string_view data) { return take_event(data, now); });
    body.clear();
    if (!goes_on && events_.is_too_long())
      return fail(Failure::kMalformed, fmt::format("an event is longer than {} bytes", EventReader::kEventBytesMax), now);
    return !goes_on;
  }
  if (body.size() > kBodyBytesMax)
    return fail(Failure::kMalformed, fmt::format("an answer of status {} is longer than {} bytes", answer_.status, kBodyBytesMax), now);
  return false;
}

// False where the stream has failed.
bool AnswerReader::take_event(std::string_view data, double now) {
  if (has_done_) return true;  // nothing comes after the end
  if (data == "[DONE]") {
    has_done_ = true;
    return true;
  }
  const auto malformed = [&](std::string_view why) {
    fail(Failure::kMalformed, fmt::format("an event {}: {}", why, shown(data)), now);
    return false;
  };
  const auto parsed = parse_json(data);
  if (!parsed.is_ok()) return malformed("is no JSON");
  if (!parsed->is_object()) return malformed("is no JSON object");
  const json::object& event = parsed->get_object();
  if (const json::value* error = event.if_contains("error"); error != nullptr && !error->is_null()) {
    fail(Failure::kServerError, error_message(data), now);
    return false;
  }
  if (const json::value* usage = event.if_contains("usage"); usage != nullptr && usage->is_object()) {
    const json::object& counts = usage->get_object();
    answer_.prompt_tokens = count_of(counts, "prompt_tokens");
    answer_.completion_tokens = count_of(counts, "completion_tokens");
    if (const json::value* details = counts.if_contains("prompt_tokens_details"); details != nullptr && details->is_object())
      answer_.cached_tokens = count_of(details->get_object(), "cached_tokens");
  }
  const json::value* choices = event.if_contains("choices");
  if (choices == nullptr || !choices->is_array()) return malformed("has no choices");
  if (choices->get_array().empty()) return true;  // the one with the usage
  const json::value& first = choices->get_array().front();
  if (!first.is_object()) return malformed("has a choice that is no object");
  const json::object& choice = first.get_object();
  bool text = has_text(choice, "text");
  if (const json::value* delta = choice.if_contains("delta"); delta != nullptr && delta->is_object()) {
    for (const char* key : {"content", "reasoning_content", "reasoning"}) text = text || has_text(delta->get_object(), key);
  }
  if (text) answer_.output_times.push_back(now);
  if (const json::value* reason = choice.if_contains("finish_reason"); reason != nullptr && reason->is_string())
    answer_.finish_reason = std::string(std::string_view(reason->get_string()).substr(0, 64));
  return true;
}

bool AnswerReader::finish(double now) {
  std::string& body = beast_->parser.get().body();
  if (answer_.status != 200) return fail(Failure::kStatus, error_message(body), now);
  if (answer_.is_stream && !has_done_ && answer_.finish_reason.empty())
    return fail(Failure::kCut, "the stream ended without an end of the answer", now);
  answer_.body = std::move(body);
  answer_.end_time = now;
  complete_ = true;
  return true;
}

}  // namespace millrace
