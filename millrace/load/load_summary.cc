#include "millrace/load/load_summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <utility>

namespace millrace {
namespace {

json::object to_json(const LatencySummary& latency) {
  return {{"mean", latency.mean}, {"p50", latency.p50}, {"p90", latency.p90}, {"p99", latency.p99}, {"max", latency.max}};
}

std::string kind_of(const RequestRecord& record) {
  return record.failure == Failure::kStatus ? fmt::format("status {}", record.status) : std::string(failure_name(record.failure));
}

double ratio(double value, double of) { return of > 0 ? value / of : 0; }

}  // namespace

double RequestRecord::tpot_s() const {
  return completion_tokens > 1 ? (last_output_s - first_output_s) / static_cast<double>(completion_tokens - 1) : 0;
}

LatencySummary summarize_ms(std::vector<double> seconds) {
  LatencySummary summary;
  if (seconds.empty()) return summary;
  std::sort(seconds.begin(), seconds.end());
  const auto percentile = [&](double share) {
    const double place = share * static_cast<double>(seconds.size() - 1);
    const auto below = static_cast<std::size_t>(place);
    const std::size_t above = std::min(below + 1, seconds.size() - 1);
    return 1000 * std::lerp(seconds[below], seconds[above], place - static_cast<double>(below));
  };
  summary.count = static_cast<int64_t>(seconds.size());
  summary.mean = 1000 * std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
  summary.p50 = percentile(0.5);
  summary.p90 = percentile(0.9);
  summary.p99 = percentile(0.99);
  summary.max = 1000 * seconds.back();
  return summary;
}

bool GoodputLimits::is_met(const RequestRecord& record) const {
  return record.failure == Failure::kNone && !(ttft_ms && 1000 * record.ttft_s() > *ttft_ms) &&
         !(tpot_ms && 1000 * record.tpot_s() > *tpot_ms) && !(e2el_ms && 1000 * record.e2el_s() > *e2el_ms);
}

Result<GoodputLimits> parse_goodput(const std::vector<std::string>& texts) {
  GoodputLimits limits;
  for (const std::string& text : texts) {
    const std::size_t colon = text.find(':');
    const std::string_view name = std::string_view(text).substr(0, colon);
    std::optional<double>* limit = name == "ttft"   ? &limits.ttft_ms
                                   : name == "tpot" ? &limits.tpot_ms
                                   : name == "e2el" ? &limits.e2el_ms
                                                    : nullptr;
    double value = 0;
    const char* end = text.data() + text.size();
    const auto parsed = colon == std::string::npos ? std::from_chars_result{end, std::errc::invalid_argument}
                                                   : std::from_chars(&text[colon] + 1, end, value);
    if (limit == nullptr || parsed.ec != std::errc() || parsed.ptr != end || !(value > 0) || !std::isfinite(value)) {
      return Status::invalid_argument(fmt::format("found \"{}\", expected ttft:MS, tpot:MS or e2el:MS with milliseconds above 0", text));
    }
    *limit = value;
  }
  return limits;
}

LoadSummary summarize(const LoadResult& result, const GoodputLimits& limits) {
  LoadSummary summary;
  std::vector<double> ttft, tpot, e2el, refusal;
  int64_t num_good = 0;
  for (const RequestRecord& record : result.records) {
    if (record.failure != Failure::kNone) {
      ++summary.num_failed;
      const std::string kind = kind_of(record);
      if (++summary.failures[kind] == 1) summary.first_message[kind] = record.message;
      if (record.status == 429 || record.status == 503) refusal.push_back(record.end_s - record.due_s);
      continue;
    }
    ++summary.num_completed;
    summary.prompt_tokens += record.prompt_tokens;
    summary.cached_tokens += record.cached_tokens;
    summary.completion_tokens += record.completion_tokens;
    summary.counted_by_server = summary.counted_by_server && record.counted_by_server;
    ttft.push_back(record.ttft_s());
    e2el.push_back(record.e2el_s());
    if (record.completion_tokens > 1) tpot.push_back(record.tpot_s());
    num_good += limits.is_met(record);
  }
  const double seconds = result.duration_s;
  const auto output_tokens = static_cast<double>(summary.completion_tokens);
  summary.duration_s = seconds;
  summary.request_throughput = ratio(static_cast<double>(summary.num_completed), seconds);
  summary.output_throughput = ratio(output_tokens, seconds);
  summary.total_token_throughput = ratio(output_tokens + static_cast<double>(summary.prompt_tokens), seconds);
  summary.ttft = summarize_ms(std::move(ttft));
  summary.tpot = summarize_ms(std::move(tpot));
  summary.itl = summarize_ms(result.gaps_s);
  summary.e2el = summarize_ms(std::move(e2el));
  summary.refusal = summarize_ms(std::move(refusal));
  if (limits.any()) summary.request_goodput = ratio(static_cast<double>(num_good), seconds);
  summary.server_cpu_s = result.server_cpu_s;
  if (result.server_cpu_s) summary.server_cpu_s_per_1000_tokens = ratio(1000 * *result.server_cpu_s, output_tokens);
  summary.generator_cpu_s = result.generator_cpu_s;
  summary.generator_cpu_s_per_1000_tokens = ratio(1000 * result.generator_cpu_s, output_tokens);
  summary.num_in_flight_max = result.num_in_flight_max;
  summary.late_ms_max = 1000 * result.late_s_max;
  return summary;
}

json::object to_json(const LoadSummary& summary) {
  json::object failures, messages;
  for (const auto& [kind, count] : summary.failures) failures[kind] = count;
  for (const auto& [kind, message] : summary.first_message) messages[kind] = message;
  json::object object{{"completed", summary.num_completed},
                      {"failed", summary.num_failed},
                      {"failures", std::move(failures)},
                      {"failure_messages", std::move(messages)},
                      {"duration_s", summary.duration_s},
                      {"total_input_tokens", summary.prompt_tokens},
                      {"total_cached_tokens", summary.cached_tokens},
                      {"total_output_tokens", summary.completion_tokens},
                      {"tokens_counted_by_server", summary.counted_by_server},
                      {"request_throughput", summary.request_throughput},
                      {"output_throughput", summary.output_throughput},
                      {"total_token_throughput", summary.total_token_throughput},
                      {"ttft_ms", to_json(summary.ttft)},
                      {"tpot_ms", to_json(summary.tpot)},
                      {"itl_ms", to_json(summary.itl)},
                      {"e2el_ms", to_json(summary.e2el)}};
  if (summary.refusal.count > 0) object["refusal_ms"] = to_json(summary.refusal);
  if (summary.request_goodput) object["request_goodput"] = *summary.request_goodput;
  if (summary.server_cpu_s) {
    object["server_cpu_s"] = *summary.server_cpu_s;
    object["server_cpu_s_per_1000_tokens"] = *summary.server_cpu_s_per_1000_tokens;
  }
  object["generator_cpu_s"] = summary.generator_cpu_s;
  object["generator_cpu_s_per_1000_tokens"] = summary.generator_cpu_s_per_1000_tokens;
  object["in_flight_max"] = summary.num_in_flight_max;
  object["late_ms_max"] = summary.late_ms_max;
  return object;
}

std::string summary_text(const LoadSummary& summary, const std::string& heading) {
  std::string text =
      fmt::format("{}: {} completed, {} failed, {:.1f} s\n", heading, summary.num_completed, summary.num_failed, summary.duration_s);
  text += fmt::format("  {:<28}{:>10.1f} tokens/s, with prompts {:.1f}, {:.2f} requests/s\n", "output", summary.output_throughput,
                      summary.total_token_throughput, summary.request_throughput);
  text += fmt::format("  {:<28}{:>10} prompt ({} cached), {} output{}\n", "tokens", summary.prompt_tokens, summary.cached_tokens,
                      summary.completion_tokens, summary.counted_by_server ? "" : " (events: the server counts no tokens)");
  if (summary.num_completed > 0) {
    text += fmt::format("  {:<28}{:>10}{:>10}{:>10}{:>10}{:>10}\n", "milliseconds", "mean", "p50", "p90", "p99", "max");
    const auto row = [&](const char* name, const LatencySummary& latency) {
      text += fmt::format("  {:<28}{:>10.1f}{:>10.1f}{:>10.1f}{:>10.1f}{:>10.1f}\n", name, latency.mean, latency.p50, latency.p90,
                          latency.p99, latency.max);
    };
    row("time to first token", summary.ttft);
    row("time per output token", summary.tpot);
    row("inter-token latency", summary.itl);
    row("end to end", summary.e2el);
    if (summary.refusal.count > 0) row("refused after", summary.refusal);
  }
  if (summary.request_goodput) {
    text += fmt::format("  {:<28}{:>10.2f} requests/s, {:.0f} % of those completed\n", "goodput", *summary.request_goodput,
                        100 * ratio(*summary.request_goodput, summary.request_throughput));
  }
  if (summary.server_cpu_s) {
    text += fmt::format("  {:<28}{:>10.3f} CPU seconds per 1,000 output tokens, {:.2f} CPUs\n", "server",
                        *summary.server_cpu_s_per_1000_tokens, ratio(*summary.server_cpu_s, summary.duration_s));
  }
  text += fmt::format("  {:<28}{:>10.3f} CPU seconds per 1,000 output tokens, {:.2f} CPUs; at most {} in flight, {:.1f} ms late\n",
                      "generator", summary.generator_cpu_s_per_1000_tokens, ratio(summary.generator_cpu_s, summary.duration_s),
                      summary.num_in_flight_max, summary.late_ms_max);
  for (const auto& [kind, count] : summary.failures) {
    const std::string& message = summary.first_message.at(kind);
    text += fmt::format("  failed: {} x {}{}{}\n", count, kind, message.empty() ? "" : ", first: ", message);
  }
  return text;
}

}  // namespace millrace
