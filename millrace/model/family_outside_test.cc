#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/model/cpu_executor.h"
#include "millrace/model/family.h"
#include "millrace/model/program.h"
#include "millrace/model/verify.h"

// Families that the binary does not have, each described by a JSON file alone, against what the reference implementation computed. Between them
// they use what no built-in family does: multipliers of embedding, residual and logits; interleaved pairing and a part of the head rotated; a
// norm shared by attention and mlp with biases; a head with a bias; positions with an offset; relu; one key head for all.
namespace millrace {
namespace {

void expect_matches_reference(const std::filesystem::path& directory, const std::optional<std::string>& family_file) {
  const Result<Checkpoint> checkpoint = Checkpoint::open(directory.string());
  ASSERT_TRUE(checkpoint.is_ok()) << checkpoint.status().message();
  EXPECT_FALSE(choose_family(*checkpoint, std::nullopt).is_ok() && family_file) << "this family is built in: it proves nothing here";
  const Result<Family> family = choose_family(*checkpoint, family_file);
  ASSERT_TRUE(family.is_ok()) << family.status().message();
  for (const Family& builtin : builtin_families()) EXPECT_NE(builtin.name(), family->name());
  const Result<Network> network = bind_network(*family, *checkpoint);
  ASSERT_TRUE(network.is_ok()) << network.status().message();

  ThreadPool pool(2);
  Result<Weights> packed = Weights::pack(*network, *checkpoint, pool);
  ASSERT_TRUE(packed.is_ok()) << packed.status().message();
  const auto weights = std::make_shared<const Weights>(std::move(packed).value());
  const Isa isa = choose_isa().value();
  const auto make_executor = [&](GemmPath path) -> Result<std::unique_ptr<Executor>> {
    Program program = lower_network(*network, *weights, isa, path);
    fuse(program);
    const CpuExecutorOptions options{.isa = isa, .path = path, .kv_dtype = path == GemmPath::kExact ? KvDType::kF32 : KvDType::kBf16, .max_rows = 64};
    MR_ASSIGN_OR_RETURN(auto executor, CpuExecutor::create(*network, weights, std::move(program), pool, options));
    return std::unique_ptr<Executor>(std::move(executor));
  };
  const Result<std::string> text = read_text_file((directory / "golden.json").string());
  ASSERT_TRUE(text.is_ok()) << text.status().message();
  const Result<json::value> reference = parse_json(*text);
  ASSERT_TRUE(reference.is_ok()) << reference.status().message();
  const Result<VerifyReport> report = verify_reference(*reference, make_executor, default_tolerance(false, KvDType::kBf16));
  ASSERT_TRUE(report.is_ok()) << report.status().message();
  EXPECT_EQ(report->prompts.size(), 3u);
  for (const VerifyPrompt& prompt : report->prompts) {
    EXPECT_EQ(prompt.greedy_equal, 24) << prompt.name;
    for (const std::string& failure : prompt.failures) ADD_FAILURE() << prompt.name << ": " << failure;
  }
}

class OutsideFamily : public testing::TestWithParam<const char*> {};

TEST_P(OutsideFamily, BesideTheWeightsMatchesTheReference) {
  expect_matches_reference(source_dir() / "tests/golden/outside" / GetParam(), std::nullopt);
}

INSTANTIATE_TEST_SUITE_P(Golden, OutsideFamily, testing::Values("granite", "gptj"), [](const auto& name) { return std::string(name.param); });

class OutsideFamilyFile : public testing::TestWithParam<const char*> {};

TEST_P(OutsideFamilyFile, MatchesTheReference) {
  const std::filesystem::path directory = source_dir() / "../shared/golden" / GetParam();
  if (!std::filesystem::exists(directory)) GTEST_SKIP() << directory << " is not there: this golden model is not in the repository";
  expect_matches_reference(directory, (source_dir() / "tests/golden/families" / fmt::format("{}.json", GetParam())).string());
}

INSTANTIATE_TEST_SUITE_P(Golden, OutsideFamilyFile, testing::Values("phi", "gpt_bigcode", "opt"), [](const auto& name) { return std::string(name.param); });

}  // namespace
}  // namespace millrace
