#include "millrace/load/load_summary.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "millrace/load/process_cpu.h"

namespace millrace {
namespace {

RequestRecord completed(double due_s, double first_s, double last_s, int64_t tokens) {
  return {.due_s = due_s,
          .first_output_s = first_s,
          .last_output_s = last_s,
          .end_s = last_s,
          .prompt_tokens = 10,
          .completion_tokens = tokens,
          .counted_by_server = true};
}

TEST(LoadSummary, PercentilesAreNumpys) {
  std::vector<double> seconds;
  for (int i = 10; i >= 1; --i) seconds.push_back(0.001 * i);
  const LatencySummary summary = summarize_ms(seconds);  // numpy.percentile(range(1, 11), [50, 90, 99]) = [5.5, 9.1, 9.91]
  EXPECT_DOUBLE_EQ(summary.mean, 5.5);
  EXPECT_DOUBLE_EQ(summary.p50, 5.5);
  EXPECT_NEAR(summary.p90, 9.1, 1e-9);
  EXPECT_NEAR(summary.p99, 9.91, 1e-9);
  EXPECT_DOUBLE_EQ(summary.max, 10);
  EXPECT_EQ(summarize_ms({}).count, 0);
  EXPECT_DOUBLE_EQ(summarize_ms({0.002}).p99, 2);
}

TEST(LoadSummary, CountsWhatCompletedAndWhatFailed) {
  LoadResult result;
  result.duration_s = 4;
  result.records = {completed(0, 0.5, 1.5, 11), completed(1, 1.1, 1.1, 1), {}, {}, {}};
  result.records[2].failure = result.records[3].failure = Failure::kStatus;
  result.records[2].status = result.records[3].status = 429;
  result.records[2].message = "the queue is full";
  result.records[2].end_s = 0.04;
  result.records[4].failure = Failure::kCut;
  result.generator_cpu_s = 0.006;
  result.server_cpu_s = 1.2;
  const LoadSummary summary = summarize(result, {.ttft_ms = 400, .tpot_ms = 200, .e2el_ms = {}});
  EXPECT_EQ(summary.num_completed, 2);
  EXPECT_EQ(summary.num_failed, 3);
  EXPECT_EQ(summary.failures.at("status 429"), 2);
  EXPECT_EQ(summary.failures.at("cut"), 1);
  EXPECT_EQ(summary.first_message.at("status 429"), "the queue is full");
  EXPECT_DOUBLE_EQ(summary.output_throughput, 3);
  EXPECT_DOUBLE_EQ(summary.request_throughput, 0.5);
  EXPECT_DOUBLE_EQ(summary.total_token_throughput, 8);
  EXPECT_DOUBLE_EQ(summary.ttft.max, 500);
  EXPECT_EQ(summary.tpot.count, 1);  // an answer of one token has no time per further token
  EXPECT_DOUBLE_EQ(summary.tpot.mean, 100);
  EXPECT_EQ(summary.refusal.count, 2);
  EXPECT_DOUBLE_EQ(summary.refusal.max, 40);
  EXPECT_DOUBLE_EQ(*summary.request_goodput, 0.25);  // the first is late
  EXPECT_DOUBLE_EQ(*summary.server_cpu_s_per_1000_tokens, 100);
  EXPECT_DOUBLE_EQ(summary.generator_cpu_s_per_1000_tokens, 0.5);
  const std::string text = summary_text(summary, "2 clients");
  for (const char* word :
       {"2 clients: 2 completed, 3 failed", "goodput", "server", "generator", "2 x status 429, first: the queue is full"})
    EXPECT_NE(text.find(word), std::string::npos) << word << "\n" << text;
}

TEST(LoadSummary, OfNothingIsZero) {
  const LoadSummary summary = summarize({}, {});
  EXPECT_EQ(summary.output_throughput, 0);
  EXPECT_FALSE(summary.request_goodput.has_value());
  EXPECT_FALSE(summary_text(summary, "x").empty());
}

TEST(LoadSummary, ReadsGoodputLimits) {
  const GoodputLimits limits = parse_goodput({"ttft:500", "tpot:12.5"}).value();
  EXPECT_EQ(limits.ttft_ms, 500);
  EXPECT_EQ(limits.tpot_ms, 12.5);
  EXPECT_FALSE(limits.e2el_ms.has_value());
  EXPECT_FALSE(parse_goodput({})->any());
  for (const char* text : {"ttft", "ttft:", ":5", "ttft:x", "ttft:0", "ttft:-1", "ttft:nan", "ttft:inf", "itl:5", "ttft:5ms"}) {
    const auto refused = parse_goodput({text});
    ASSERT_FALSE(refused.is_ok()) << text;
    EXPECT_NE(refused.status().message().find(text), std::string::npos);
  }
}

TEST(ProcessCpu, CountsThisProcess) {
  volatile double sum = 0;
  const double before = own_cpu_seconds();
  while (own_cpu_seconds() - before < 0.05) sum = sum + 1;
  EXPECT_GE(process_tree_cpu_seconds(getpid()).value(), 0.04);
  EXPECT_FALSE(process_tree_cpu_seconds(0x3fffffff).is_ok());
}

}  // namespace
}  // namespace millrace
