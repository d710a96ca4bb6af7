#include "millrace/load/answer_reader.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>

namespace millrace {
namespace {

const std::string kStreamHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";

std::string chunk(const std::string& text) { return fmt::format("{:x}\r\n{}\r\n", text.size(), text); }

std::string text_event(const std::string& text, const std::string& finish = "null") {
  return fmt::format("data: {{\"choices\":[{{\"index\":0,\"text\":\"{}\",\"finish_reason\":{}}}]}}\n\n", text, finish);
}

const std::string kUsage =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n";

// Gives the text in pieces of `piece_bytes`, and then the end of the connection. The time is the number of bytes so far.
Answer read(const std::string& text, std::size_t piece_bytes = 1 << 20, bool* reusable = nullptr) {
  AnswerReader reader;
  bool complete = false;
  for (std::size_t i = 0; i < text.size() && !complete; i += piece_bytes)
    complete = reader.put(std::string_view(text).substr(i, piece_bytes), static_cast<double>(i + piece_bytes));
  if (!complete) reader.put_end(1e9);
  if (reusable != nullptr) *reusable = reader.can_reuse_connection();
  return reader.take_answer();
}

TEST(AnswerReader, ReadsAStreamWhateverItsPieces) {
  const std::string text = kStreamHead + chunk(text_event("Once")) + chunk(text_event("") + text_event(" upon")) +
                           chunk(text_event(" a", "\"length\"")) + chunk(kUsage) + chunk("data: [DONE]\n\n") + chunk("");
  for (const std::size_t piece : {std::size_t{1}, std::size_t{2}, std::size_t{7}, std::size_t{100}, text.size()}) {
    bool reusable = false;
    const Answer answer = read(text, piece, &reusable);
    EXPECT_EQ(answer.failure, Failure::kNone) << answer.message;
    EXPECT_EQ(answer.status, 200);
    EXPECT_TRUE(answer.is_stream);
    EXPECT_EQ(answer.output_times.size(), 3u);  // an event without text is no output
    EXPECT_EQ(answer.prompt_tokens, 7);
    EXPECT_EQ(answer.cached_tokens, 4);
    EXPECT_EQ(answer.completion_tokens, 3);
    EXPECT_EQ(answer.finish_reason, "length");
    EXPECT_TRUE(reusable);
    EXPECT_LE(answer.output_times.front(), answer.output_times.back());
  }
}

TEST(AnswerReader, ReadsChat) {
  const std::string delta =
      "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n"
      "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n"
      "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
  const Answer answer = read(kStreamHead + chunk(delta) + chunk(""));
  EXPECT_EQ(answer.failure, Failure::kNone) << answer.message;
  EXPECT_EQ(answer.output_times.size(), 2u);
  EXPECT_FALSE(answer.completion_tokens.has_value());
}

TEST(AnswerReader, AStreamMayEndWithItsConnection) {
  bool reusable = true;
  const Answer answer = read(
      "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + text_event("a", "\"stop\"") + "data: [DONE]\n\n", 1 << 20, &reusable);
  EXPECT_EQ(answer.failure, Failure::kNone) << answer.message;
  EXPECT_FALSE(reusable);
}

TEST(AnswerReader, SaysWhereAnAnswerIsCut) {
  const std::string whole = kStreamHead + chunk(text_event("a")) + chunk(text_event("b"));
  EXPECT_EQ(read("").failure, Failure::kCut);
  for (std::size_t size = 1; size <= whole.size(); ++size) EXPECT_EQ(read(whole.substr(0, size)).failure, Failure::kCut) << size;
  // All of HTTP is there, and the answer is not.
  const Answer answer = read(whole + chunk(""));
  EXPECT_EQ(answer.failure, Failure::kCut);
  EXPECT_NE(answer.message.find("without an end"), std::string::npos);
}

TEST(AnswerReader, TellsARefusal) {
  const auto refused = [](const std::string& head, const std::string& body) {
    return read(fmt::format("HTTP/1.1 429 Too Many Requests\r\n{}Content-Length: {}\r\n\r\n{}", head, body.size(), body));
  };
  const Answer answer = refused("Retry-After: 7\r\n", "{\"error\": {\"message\": \"the queue is full\"}}");
  EXPECT_EQ(answer.failure, Failure::kStatus);
  EXPECT_EQ(answer.status, 429);
  EXPECT_EQ(answer.retry_after_s, 7);
  EXPECT_EQ(answer.message, "the queue is full");
  EXPECT_FALSE(refused("Retry-After: soon\r\n", "").retry_after_s.has_value());
  EXPECT_FALSE(refused("Retry-After: -1\r\n", "").retry_after_s.has_value());
  EXPECT_EQ(refused("", "two\nlines").message, "two lines");
  EXPECT_LT(refused("", std::string(100'000, 'x')).message.size(), 400u);
}

TEST(AnswerReader, BelievesNothing) {
  const auto malformed = [](const std::string& text) {
    const Answer answer = read(text);
    EXPECT_EQ(answer.failure, Failure::kMalformed) << text.substr(0, 200);
    EXPECT_FALSE(answer.message.empty());
    EXPECT_LT(answer.message.size(), 500u);
  };
  malformed("SSH-2.0-OpenSSH_9.2\r\n\r\n");
  malformed(kStreamHead + "zz\r\n");
  malformed(kStreamHead + chunk("data: {\"choices\": \n\n"));
  malformed(kStreamHead + chunk("data: 7\n\n"));
  malformed(kStreamHead + chunk("data: {}\n\n"));
  malformed(kStreamHead + chunk("data: {\"choices\": [1]}\n\n"));
  malformed(kStreamHead + chunk("data: " + std::string(2 * EventReader::kEventBytesMax, 'x')));
  malformed("HTTP/1.1 200 OK\r\nX: " + std::string(2 * AnswerReader::kHeaderBytesMax, 'x'));
  malformed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + std::string(1 << 20, 'x'));
  malformed("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n");
  malformed("HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(std::string(AnswerReader::kBodyBytesMax + 1, 'x')));
  // Counts that are none are not taken.
  const Answer answer =
      read(kStreamHead + chunk("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":-1,\"completion_tokens\":\"9\"}}\n\ndata: [DONE]\n\n") +
           chunk(""));
  EXPECT_EQ(answer.failure, Failure::kNone);
  EXPECT_FALSE(answer.prompt_tokens.has_value() || answer.completion_tokens.has_value());
}

TEST(AnswerReader, TellsAnErrorWithinTheStream) {
  const Answer answer = read(kStreamHead + chunk(text_event("a")) + chunk("data: {\"error\": {\"message\": \"out of memory\"}}\n\n"));
  EXPECT_EQ(answer.failure, Failure::kServerError);
  EXPECT_EQ(answer.message, "out of memory");
}

TEST(AnswerReader, ReadsABody) {
  bool reusable = false;
  const Answer answer = read("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", 3, &reusable);
  EXPECT_EQ(answer.failure, Failure::kNone);
  EXPECT_FALSE(answer.is_stream);
  EXPECT_EQ(answer.body, "abcd");
  EXPECT_TRUE(reusable);
  read("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcdHTTP/1.1 200", 1 << 20, &reusable);
  EXPECT_FALSE(reusable);  // what follows belongs to no request
}

}  // namespace
}  // namespace millrace
