#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/model/cpu_executor.h"
#include "millrace/model/family.h"
#include "millrace/model/program.h"
#include "millrace/model/verify.h"

// Families that the binary does not have, each described by a JSON file alone, against what the reference implementation computed. Between
// them they use what few built-in families do: layer norms stored less one, a squared relu, a part of the head rotated, scores that are not
// scaled, windows on every second layer.
namespace millrace {
namespace {

class OutsideFamily : public testing::TestWithParam<const char*> {};

TEST_P(OutsideFamily, BesideTheWeightsMatchesTheReference) {
  const std::filesystem::path directory = source_dir() / "tests/golden/outside" / GetParam();
  const Result<Checkpoint> checkpoint = Checkpoint::open(directory.string());
  ASSERT_TRUE(checkpoint.is_ok()) << checkpoint.status().message();
  const Result<Family> family = choose_family(*checkpoint, std::nullopt);
  ASSERT_TRUE(family.is_ok()) << family.status().message();
  for (const Family& builtin : builtin_families()) {
    EXPECT_NE(builtin.name(), family->name());
    for (const std::string& architecture : family->architectures()) {
      EXPECT_THAT(builtin.architectures(), testing::Not(testing::Contains(architecture)))
          << "this family is built in: it proves nothing here";
    }
  }
  const Result<Network> network = bind_network(*family, *checkpoint);
  ASSERT_TRUE(network.is_ok()) << network.status().message();

  ThreadPool pool(2);
  Result<Weights> packed = Weights::pack(*network, *checkpoint, pool);
  ASSERT_TRUE(packed.is_ok()) << packed.status().message();
  const auto weights = std::make_shared<const Weights>(std::move(packed).value());
  const Isa isa = choose_isa().value();
  const auto make_executor = [&](GemmPath path, int32_t max_rows) -> Result<std::unique_ptr<Executor>> {
    Program program = lower_network(*network, *weights, isa, path);
    fuse(program);
    const CpuExecutorOptions options{
        .isa = isa, .path = path, .kv_dtype = path == GemmPath::kExact ? KvDType::kF32 : KvDType::kBf16, .max_rows = max_rows};
    MR_ASSIGN_OR_RETURN(auto executor, CpuExecutor::create(*network, weights, std::move(program), pool, options));
    return std::unique_ptr<Executor>(std::move(executor));
  };
  const Result<std::string> text = read_text_file((directory / "golden.json").string());
  ASSERT_TRUE(text.is_ok()) << text.status().message();
  const Result<json::value> reference = parse_json(*text);
  ASSERT_TRUE(reference.is_ok()) << reference.status().message();
  const Result<VerifyReport> report =
      verify_reference(*reference, make_executor, default_tolerance(false, KvDType::kBf16, network->has_mixture()));
  ASSERT_TRUE(report.is_ok()) << report.status().message();
  EXPECT_EQ(report->prompts.size(), 3u);
  for (const VerifyPrompt& prompt : report->prompts) {
    EXPECT_EQ(prompt.greedy_equal, 24) << prompt.name;
    for (const std::string& failure : prompt.failures) ADD_FAILURE() << prompt.name << ": " << failure;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, OutsideFamily, testing::Values("gpt_neo", "nemotron"),
                         [](const auto& name) { return std::string(name.param); });

}  // namespace
}  // namespace millrace
