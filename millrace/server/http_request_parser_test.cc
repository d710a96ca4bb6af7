#include "millrace/server/http_request_parser.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <tuple>

namespace millrace {
namespace {

// What the parser makes of `text` when it arrives in pieces of `piece_bytes`: everything that a server acts on.
struct Outcome {
  int error_status = 0;
  bool has_head = false, is_done = false, keep_alive = false, has_body = false;
  std::string method, path, query, host, content_type, body;
  std::size_t num_taken = 0;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

Outcome parse(std::string_view text, std::size_t piece_bytes, const HttpLimits& limits = {}) {
  HttpRequestParser parser(limits);
  Outcome outcome;
  std::size_t arrived = 0;
  while (!parser.error() && !parser.is_done()) {
    const std::size_t taken = parser.put(text.substr(outcome.num_taken, arrived - outcome.num_taken));
    outcome.num_taken += taken;
    if (parser.error() || parser.is_done() || taken > 0) continue;
    if (arrived == text.size()) break;
    arrived = std::min(text.size(), arrived + piece_bytes);
  }
  if (parser.error()) outcome.error_status = parser.error()->status;
  outcome.has_head = parser.has_head();
  if (parser.has_head()) {
    outcome.keep_alive = parser.keep_alive();
    outcome.has_body = parser.has_body();
    outcome.method = parser.head().method;
    outcome.path = parser.head().path;
    outcome.query = parser.head().query;
    outcome.host = parser.head().host.value_or("(none)");
    outcome.content_type = parser.head().content_type;
  }
  outcome.is_done = parser.is_done();
  if (outcome.is_done) outcome.body = parser.take_request().body;
  return outcome;
}

TEST(HttpRequestParser, ReadsHeadAndBody) {
  const std::string text = "POST /v1/x?a=b HTTP/1.1\r\nHost: h:1\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\nhelloGET";
  const Outcome outcome = parse(text, text.size());
  EXPECT_TRUE(outcome.is_done && outcome.keep_alive && outcome.has_body);
  EXPECT_EQ(outcome.method, "POST");
  EXPECT_EQ(outcome.path, "/v1/x");
  EXPECT_EQ(outcome.query, "a=b");
  EXPECT_EQ(outcome.host, "h:1");
  EXPECT_EQ(outcome.content_type, "application/json");
  EXPECT_EQ(outcome.body, "hello");
  EXPECT_EQ(text.substr(outcome.num_taken), "GET") << "what follows is the next request's";
}

TEST(HttpRequestParser, StopsOnceBehindTheHead) {
  HttpRequestParser parser({});
  const std::string text = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab";
  const std::size_t taken = parser.put(text);
  EXPECT_EQ(text.substr(taken), "ab");
  EXPECT_TRUE(parser.has_head());
  EXPECT_FALSE(parser.is_done());
  EXPECT_EQ(parser.put("ab"), 2u);
  EXPECT_TRUE(parser.is_done());
}

TEST(HttpRequestParser, HeadIsAnsweredAsGet) {
  HttpRequestParser parser({});
  parser.put("HEAD /health HTTP/1.0\r\n\r\n");
  ASSERT_TRUE(parser.is_done());
  EXPECT_TRUE(parser.is_head_only() && parser.is_http_1_0());
  EXPECT_FALSE(parser.keep_alive());
  EXPECT_EQ(parser.head().method, "GET");
  EXPECT_FALSE(parser.head().host.has_value());
}

TEST(HttpRequestParser, PiecesDoNotMatter) {
  const std::string chunked = "5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: t\r\n\r\n";
  const std::string texts[] = {
      "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
      "GET http://other/health?q HTTP/1.1\r\nHost: h\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcdef",
      "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked + "GET / HTTP/1.1\r\n",
      "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
      "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!!",
      "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
      "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
      "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: a\r\nB: c\r\n d\r\n\r\n",
      "nonsense\r\n\r\n",
  };
  for (const std::string& text : texts) {
    const Outcome whole = parse(text, text.size());
    for (const std::size_t piece_bytes : {1, 2, 3, 7, 64}) {
      SCOPED_TRACE(fmt::format("pieces of {}: {}", piece_bytes, text));
      const Outcome pieces = parse(text, piece_bytes);
      EXPECT_EQ(pieces.error_status, whole.error_status);
      EXPECT_EQ(pieces.is_done, whole.is_done);
      EXPECT_EQ(pieces.body, whole.body);
      EXPECT_EQ(std::tie(pieces.method, pieces.path, pieces.query, pieces.host),
                std::tie(whole.method, whole.path, whole.query, whole.host));
      if (whole.is_done) {
        EXPECT_EQ(pieces.num_taken, whole.num_taken);
      }
    }
  }
}

TEST(HttpRequestParser, LimitsHoldInAnyPieces) {
  HttpLimits limits;
  limits.header_bytes = 200;
  limits.num_headers = 3;
  limits.body_bytes = 10;
  const std::string head = "POST / HTTP/1.1\r\nHost: h\r\n";
  const std::pair<std::string, int> cases[] = {
      {head + "A: " + std::string(300, 'a') + "\r\n\r\n", 431},
      {std::string(300, 'a'), 431},
      {head + "A: 1\r\nB: 2\r\nC: 3\r\n\r\n", 431},
      {head + "Content-Length: 11\r\n\r\n", 413},
      {head + "Transfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n", 413},
      {head + "Content-Length: 10\r\n\r\n0123456789", 0},
  };
  for (const auto& [text, status] : cases) {
    for (const std::size_t piece_bytes : {std::size_t{1}, text.size()})
      EXPECT_EQ(parse(text, piece_bytes, limits).error_status, status) << text;
  }
  // An extension that never ends is no body, so the body's limit does not see it.
  const std::string endless = head + "Transfer-Encoding: chunked\r\n\r\n5;" + std::string(2 * HttpRequestParser::kUnparsedBytesMax, 'x');
  EXPECT_EQ(parse(endless, 1000).error_status, 400);
}

}  // namespace
}  // namespace millrace
