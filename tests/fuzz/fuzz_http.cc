// Any bytes as HTTP requests: what is read from them does not depend on the pieces in which they come, and limits hold.
#include <string_view>

#include "millrace/base/check.h"
#include "millrace/server/http_request_parser.h"

namespace {

using namespace millrace;

struct Outcome {
  int status = 0;
  bool has_head = false, is_done = false;
  std::string method, path, host, body;
  std::size_t num_taken = 0;
};

Outcome parse(std::string_view text, std::size_t piece_bytes, const HttpLimits& limits) {
  HttpRequestParser parser(limits);
  Outcome outcome;
  std::size_t arrived = 0;
  while (!parser.error() && !parser.is_done()) {
    const std::size_t taken = parser.put(text.substr(outcome.num_taken, arrived - outcome.num_taken));
    MR_CHECK(taken <= arrived - outcome.num_taken, "more was taken than there was");
    MR_CHECK(parser.num_body_bytes() <= limits.body_bytes, "the body is larger than its limit");
    outcome.num_taken += taken;
    if (parser.error() || parser.is_done() || taken > 0) continue;
    if (arrived == text.size()) break;
    arrived = std::min(text.size(), arrived + piece_bytes);
  }
  if (parser.error()) outcome.status = parser.error()->status;
  outcome.has_head = parser.has_head();
  outcome.is_done = parser.is_done();
  if (outcome.has_head) {
    outcome.method = parser.head().method;
    outcome.path = parser.head().path;
    outcome.host = parser.head().host.value_or("");
  }
  if (outcome.is_done) outcome.body = parser.take_request().body;
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  HttpLimits limits;
  limits.header_bytes = 512;
  limits.num_headers = 12;
  limits.body_bytes = 600;
  std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::size_t piece_bytes = 1 + data[0] % 40;
  for (int request = 0; request < 8 && !text.empty(); ++request) {
    const Outcome whole = parse(text, text.size(), limits), pieces = parse(text, piece_bytes, limits);
    // What is no request may be found out sooner or later: a chunk's malformed extension is read again with every piece.
    MR_CHECK(whole.is_done == pieces.is_done, "pieces change whether it is a request");
    if (whole.is_done) {
      MR_CHECK(whole.num_taken == pieces.num_taken, "pieces change where the request ends");
      MR_CHECK(whole.method == pieces.method && whole.path == pieces.path && whole.host == pieces.host && whole.body == pieces.body,
               "pieces change the request");
    }
    if (!whole.is_done || whole.num_taken == 0) break;
    text.remove_prefix(whole.num_taken);
  }
  return 0;
}
