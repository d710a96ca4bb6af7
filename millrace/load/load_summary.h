// What a load came to: the figures that `vllm bench serve` prints, by the same names and definitions.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/status.h"
#include "millrace/load/answer_reader.h"

namespace millrace {

// One request's course. Times are seconds since the load began.
struct RequestRecord {
  double due_s = 0;  // when it was to be sent: what latencies count from, also where the generator was late
  double first_output_s = 0, last_output_s = 0, end_s = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  bool counted_by_server = false;  // else completion_tokens are the events with text
  Failure failure = Failure::kNone;
  int status = 0;
  std::string message;

  double ttft_s() const { return first_output_s - due_s; }
  double e2el_s() const { return last_output_s - due_s; }
  double tpot_s() const;  // time of an output token after the first; 0 where there is no second
};

// In milliseconds; of no values all are 0. A percentile lies between the two nearest values, as numpy's does.
struct LatencySummary {
  int64_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};
LatencySummary summarize_ms(std::vector<double> seconds);

// What a request must keep to count as good, in milliseconds.
struct GoodputLimits {
  std::optional<double> ttft_ms, tpot_ms, e2el_ms;
  bool any() const { return ttft_ms || tpot_ms || e2el_ms; }
  bool is_met(const RequestRecord& record) const;
};
// "ttft:500", "tpot:50", "e2el:3000". Errors: what was found and what is expected.
Result<GoodputLimits> parse_goodput(const std::vector<std::string>& texts);

struct LoadResult {
  std::vector<RequestRecord> records;
  std::vector<double> gaps_s;  // between two outputs of a stream
  double duration_s = 0;       // to the last answer
  double generator_cpu_s = 0;
  std::optional<double> server_cpu_s;
  int64_t num_in_flight_max = 0;
  double late_s_max = 0;  // how far behind its schedule a request was sent
};

struct LoadSummary {
  int64_t num_completed = 0, num_failed = 0;
  std::map<std::string, int64_t> failures;           // by kind: "connect", "status 429" ...
  std::map<std::string, std::string> first_message;  // of each kind
  double duration_s = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  bool counted_by_server = true;
  double request_throughput = 0, output_throughput = 0, total_token_throughput = 0;  // a second
  LatencySummary ttft, tpot, itl, e2el, refusal;                                     // refusal: of 429 and 503, to the end of the answer
  std::optional<double> request_goodput;                                             // a second
  std::optional<double> server_cpu_s, server_cpu_s_per_1000_tokens;
  double generator_cpu_s = 0, generator_cpu_s_per_1000_tokens = 0;
  int64_t num_in_flight_max = 0;
  double late_ms_max = 0;
};
LoadSummary summarize(const LoadResult& result, const GoodputLimits& limits);

json::object to_json(const LoadSummary& summary);
// Several lines, for people.
std::string summary_text(const LoadSummary& summary, const std::string& heading);

}  // namespace millrace
