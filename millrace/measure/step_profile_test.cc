#include "millrace/measure/step_profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "millrace/base/test_data.h"
#include "millrace/measure/profile_svg.h"
#include "millrace/measure/step_timing.h"
#include "millrace/model/family.h"

namespace millrace {
namespace {

using testing::HasSubstr;

constexpr ThreadProfile::Compute compute_of(Isa isa) {
  return {isa, {MeasuredRate{4e9, 4e9}, MeasuredRate{2e9, 2e9}, MeasuredRate{1e9, 1e9}}};
}

class StepProfileTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto checkpoint = Checkpoint::open((source_dir() / "tests/golden/models" / GetParam()).string());
    ASSERT_TRUE(checkpoint.is_ok()) << checkpoint.status().message();
    checkpoint_.emplace(std::move(checkpoint).value());
    const auto family = choose_family(*checkpoint_, std::nullopt);
    ASSERT_TRUE(family.is_ok()) << family.status().message();
    auto network = bind_network(*family, *checkpoint_);
    ASSERT_TRUE(network.is_ok()) << network.status().message();
    network_ = std::move(network).value();
    auto weights = Weights::pack(network_, *checkpoint_, pool_);
    ASSERT_TRUE(weights.is_ok()) << weights.status().message();
    const Isa isa = *choose_isa();
    auto shared = std::make_shared<const Weights>(std::move(weights).value());
    Program program = lower_network(network_, *shared, isa, GemmPath::kFast);
    fuse(program);
    executor_ =
        std::move(CpuExecutor::create(network_, shared, std::move(program), pool_, {isa, GemmPath::kFast, KvDType::kBf16, 64})).value();
    machine_.num_threads = 2;
    machine_.read_huge_pages = {1e9, 1e9};
    machine_.compute = {compute_of(isa)};
  }

  StepTimingResult run(StepTimingOptions options) {
    auto result = time_steps(*executor_, pool_, machine_, options);
    EXPECT_TRUE(result.is_ok()) << result.status().message();
    return std::move(result).value();
  }

  ThreadPool pool_{2};
  std::optional<Checkpoint> checkpoint_;
  Network network_;
  std::unique_ptr<CpuExecutor> executor_;
  ThreadProfile machine_;
};

// The parts of a profile add up to the step, in time, bytes and operations, whatever the clock showed.
void expect_whole(const StepProfile& profile, const OpCost& cost, double bound_seconds) {
  EXPECT_GT(profile.seconds, 0);
  EXPECT_NEAR(profile.start_seconds + profile.busy_seconds() + profile.wait_seconds(), profile.seconds, 1e-9 + 1e-9 * profile.seconds);
  OpCost sum;
  for (const ProfileRow& row : profile.rows) {
    EXPECT_GE(row.busy_seconds, 0) << row.name;
    sum += row.cost;
  }
  EXPECT_EQ(sum.bytes(), cost.bytes());
  EXPECT_NEAR(sum.all_operations(), cost.all_operations(), 1e-9 * cost.all_operations());
  EXPECT_NEAR(profile.bound_seconds(), bound_seconds, 1e-9 * bound_seconds);
}

TEST_P(StepProfileTest, PartsAddUpToTheStep) {
  // One step of each kind, so that its cost is known.
  const StepTimingResult result =
      run({.prompt_tokens = 12, .new_tokens = 1, .batch = 2, .depth = 3, .chunk = 64, .repeat = 3, .profile = true});
  ASSERT_TRUE(result.prefill && result.prefill->profile && result.decode && result.decode->profile);
  for (const PhaseResult* phase : {&*result.prefill, &*result.decode}) {
    SCOPED_TRACE(phase->profile->title);
    EXPECT_EQ(phase->seconds.size(), 3u);
    EXPECT_EQ(phase->profile->num_threads, 2);
    expect_whole(*phase->profile, phase->cost, phase->bound_seconds);
  }
}

TEST_P(StepProfileTest, EveryOperationIsInOneRow) {
  const StepTimingResult result = run({.prompt_tokens = 8, .new_tokens = 1, .chunk = 16, .repeat = 1, .profile = true});
  int64_t count = 0;
  std::set<std::string> names;
  for (const ProfileRow& row : result.decode->profile->rows) {
    count += row.count;
    EXPECT_TRUE(names.insert(row.group + "/" + row.name).second) << row.group << " " << row.name;
  }
  EXPECT_EQ(count, static_cast<int64_t>(executor_->program().ops.size()));
  for (const char* name :
       {"attention/q k v", "attention/attention", "attention/output", "mlp/down", "head/logits", "embedding/embedding"}) {
    EXPECT_TRUE(names.count(name)) << name;
  }
  EXPECT_TRUE(names.count("mlp/gate and up") || names.count("mlp/up"));
  // A layer apart: as many rows as operations, since each is there once.
  const StepTimingResult layers =
      run({.prompt_tokens = 0, .new_tokens = 1, .chunk = 16, .repeat = 1, .profile = true, .profile_layers = true});
  const StepProfile& profile = *layers.decode->profile;
  for (std::size_t layer = 0; layer < network_.layers.size(); ++layer) {
    const std::string group = "layer " + std::to_string(layer);
    EXPECT_TRUE(std::any_of(profile.rows.begin(), profile.rows.end(), [&](const ProfileRow& row) { return row.group == group; })) << group;
  }
  expect_whole(profile, layers.decode->cost, layers.decode->bound_seconds);
}

TEST_P(StepProfileTest, APrefillInChunksIsOneSample) {
  // 10 tokens in chunks of 4: only the last step computes the head.
  const StepTimingResult result = run({.prompt_tokens = 10, .new_tokens = 0, .chunk = 4, .repeat = 2, .profile = true});
  EXPECT_FALSE(result.decode.has_value());
  const StepProfile& profile = *result.prefill->profile;
  EXPECT_NEAR(profile.start_seconds + profile.busy_seconds() + profile.wait_seconds(), profile.seconds, 1e-9 + 1e-9 * profile.seconds);
  OpCost sum;
  for (const ProfileRow& row : profile.rows) sum += row.cost;
  EXPECT_EQ(sum.bytes(), result.prefill->cost.bytes());
}

TEST_P(StepProfileTest, WithoutAProfileNothingIsNoted) {
  StepTimes times;
  executor_->set_times(&times);
  run({.prompt_tokens = 4, .new_tokens = 1, .chunk = 16, .repeat = 1});  // ends with no times set
  const std::size_t noted = times.op_begin_ns.size();
  times.op_begin_ns.clear();
  run({.prompt_tokens = 4, .new_tokens = 1, .chunk = 16, .repeat = 1});
  EXPECT_GT(noted, 0u);
  EXPECT_TRUE(times.op_begin_ns.empty());
}

INSTANTIATE_TEST_SUITE_P(Families, StepProfileTest, testing::Values("llama", "gemma3_text", "falcon", "gpt2"),
                         [](const auto& test) { return std::string(test.param); });

StepProfile example() {
  StepProfile profile{.title = "decode <step> & \"more\"", .num_threads = 2, .seconds = 10e-3, .start_seconds = 1e-3};
  profile.rows.push_back({.group = "attention",
                          .name = "q k v",
                          .count = 30,
                          .busy_seconds = 5e-3,
                          .wait_seconds = 1e-3,
                          .cost = {.weight_bytes = 1'000'000},
                          .bound_seconds = 4e-3});
  profile.rows.back().cost.operations[0] = 2e6;
  profile.rows.push_back({.group = "head",
                          .name = "logits",
                          .count = 1,
                          .busy_seconds = 2e-3,
                          .wait_seconds = 1e-3,
                          .cost = {.weight_bytes = 500'000},
                          .bound_seconds = 3e-3});
  return profile;
}

TEST(ProfileTable, SaysWhereTheTimeGoes) {
  const std::string table = profile_table(example());
  EXPECT_THAT(table, HasSubstr("10.000 ms with 2 threads"));
  EXPECT_THAT(table, HasSubstr("q k v"));
  EXPECT_THAT(table, HasSubstr("80%"));  // 4 of 5 ms
  EXPECT_THAT(table, HasSubstr("waiting for one another                     2.000   20.0%"));
  EXPECT_THAT(table, HasSubstr("start of the step                           1.000   10.0%"));
  EXPECT_THAT(table, HasSubstr("70%"));  // 7 of 10 ms
}

TEST(ProfileSvg, EscapesWhatItIsGiven) {
  EXPECT_EQ(escape_xml("a<b>&\"'c"), "a&lt;b&gt;&amp;&quot;&#39;c");
  EXPECT_EQ(escape_xml("tab\t bell\a"), "tab\t bell\xef\xbf\xbd");
  EXPECT_EQ(escape_xml("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"), "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
  for (const char* broken : {"\xff", "\xc3", "\xed\xa0\x80", "\xc0\xaf"})
    EXPECT_THAT(escape_xml(broken), HasSubstr("\xef\xbf\xbd")) << broken;
  EXPECT_EQ(escape_xml("\xe2\x82").find('\xe2'), std::string::npos);
}

TEST(ProfileSvg, ShowsEveryPart) {
  const StepProfile profiles[] = {example(), example()};
  const std::string svg = profile_svg("a model <&>", profiles);
  EXPECT_EQ(svg.rfind("<svg ", 0), 0u);
  EXPECT_EQ(svg.find("<step>"), std::string::npos);
  EXPECT_THAT(svg, HasSubstr("a model &lt;&amp;&gt;"));
  EXPECT_THAT(svg, HasSubstr("attention, q k v: 6.000 ms, 60.0 % of the step"));
  EXPECT_THAT(svg, HasSubstr("attention, q k v, bound: 4.000 ms"));
  EXPECT_THAT(svg, HasSubstr("attention, q k v, waiting: 1.000 ms"));
  EXPECT_THAT(svg, HasSubstr("start of the step: 1.000 ms"));
  // Every element that is opened is closed.
  const auto count = [&](const std::string& text) {
    int found = 0;
    for (std::size_t at = svg.find(text); at != std::string::npos; at = svg.find(text, at + 1)) ++found;
    return found;
  };
  EXPECT_EQ(count("<g>"), count("</g>"));
  EXPECT_EQ(count("<text "), count("</text>"));
  EXPECT_EQ(count("<title>"), count("</title>"));
  EXPECT_EQ(count("<svg "), count("</svg>"));
}

}  // namespace
}  // namespace millrace
