// Every family of tests/golden/models, encoders and seq2seq against what the reference implementation computed
// (tools/make_reference.py): both paths, on every instruction set that this machine runs; and the same from renamed families, to prove that
// no code asks for a family's name.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "millrace/base/test_data.h"
#include "millrace/engine/loaded_model.h"
#include "millrace/model/verify.h"

namespace millrace {
namespace {

std::vector<std::filesystem::path> golden_models() {
  std::vector<std::filesystem::path> models;
  for (const char* kind : {"models", "encoders", "seq2seq"}) {
    for (const auto& entry : std::filesystem::directory_iterator(source_dir() / "tests/golden" / kind)) {
      if (std::filesystem::exists(entry.path() / "golden.json")) models.push_back(entry.path());
    }
  }
  std::sort(models.begin(), models.end());
  return models;
}

// The levels that this machine can run; the others are printed, so that a log shows what was not judged.
std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kAllIsas) {
    if (isa_runnable(isa)) {
      isas.push_back(isa);
    } else {
      fmt::print("not run: instruction set {} (this CPU lacks it)\n", isa_name(isa));
    }
  }
  return isas;
}

struct ForcedIsa {
  explicit ForcedIsa(Isa isa) { setenv("MILLRACE_ISA", std::string(isa_name(isa)).c_str(), 1); }
  ~ForcedIsa() { unsetenv("MILLRACE_ISA"); }
};

bool has_int8_activations(const LoadedModel& model) {
  for (std::size_t i = 0; i < model.weights().size(); ++i) {
    if (activation_form(model.weights()[static_cast<WeightId>(i)].weight_class(), model.isa(), GemmPath::kFast) == ActivationForm::kInt8)
      return true;
  }
  return false;
}

void expect_verified(const std::filesystem::path& directory, const std::filesystem::path& golden, KvDType kv_dtype,
                     const std::optional<std::string>& family_file) {
  auto model = LoadedModel::load(directory.string(), {.family_file = family_file, .num_threads = 2});
  ASSERT_TRUE(model.is_ok()) << model.status().message();
  const auto text = read_text_file((golden / "golden.json").string());
  ASSERT_TRUE(text.is_ok()) << text.status().message();
  const auto reference = parse_json(*text);
  ASSERT_TRUE(reference.is_ok()) << reference.status().message();
  const auto report = verify_reference(
      *reference,
      [&](GemmPath path, int32_t max_rows) -> Result<std::unique_ptr<Executor>> {
        MR_ASSIGN_OR_RETURN(auto executor, (*model)->make_executor(path, path == GemmPath::kExact ? KvDType::kF32 : kv_dtype, max_rows));
        return std::unique_ptr<Executor>(std::move(executor));
      },
      default_tolerance(has_int8_activations(**model), kv_dtype, (*model)->network().has_mixture(),
                        has_unscaled_scores((*model)->network())));
  ASSERT_TRUE(report.is_ok()) << report.status().message();
  for (const VerifyPrompt& prompt : report->prompts) {
    for (const std::string& failure : prompt.failures) ADD_FAILURE() << prompt.name << ": " << failure;
  }
  for (const VerifyText& verified : report->texts) {
    for (const std::string& failure : verified.failures) ADD_FAILURE() << verified.name << ": " << failure;
  }
}

TEST(Golden, EveryFamilyMatchesTheReferenceOnEveryInstructionSet) {
  const auto models = golden_models();
  ASSERT_GE(models.size(), 67u);
  for (Isa isa : runnable_isas()) {
    const ForcedIsa forced(isa);
    for (const auto& directory : models) {
      SCOPED_TRACE(fmt::format("{} on {}", directory.filename().string(), isa_name(isa)));
      expect_verified(directory, directory, KvDType::kBf16, std::nullopt);
    }
  }
}

TEST(Golden, EveryKvDTypeStaysWithinItsTolerance) {
  for (const auto& directory : golden_models()) {
    for (KvDType kv_dtype : kAllKvDTypes) {
      if (kv_dtype == KvDType::kBf16) continue;  // above
      if (kv_dtype == KvDType::kInt4 && directory.filename() == "t5") {
        fmt::print("not run: t5 with int4 KV (its random weights make scores so large that a step of int4 turns them around)\n");
        continue;
      }
      SCOPED_TRACE(fmt::format("{} kv {}", directory.filename().string(), static_cast<int>(kv_dtype)));
      expect_verified(directory, directory, kv_dtype, std::nullopt);
    }
  }
}

// The family's JSON under another name, for an architecture nobody has heard of.
TEST(Golden, RenamedFamiliesMatchFromTheirJsonAlone) {
  const auto scratch = std::filesystem::temp_directory_path() / fmt::format("millrace-renamed-{}", getpid());
  std::size_t number = 0;
  for (const auto& directory : golden_models()) {
    SCOPED_TRACE(directory.filename().string());
    auto checkpoint = Checkpoint::open(directory.string());
    ASSERT_TRUE(checkpoint.is_ok()) << checkpoint.status().message();
    const auto family = choose_family(*checkpoint, std::nullopt);
    ASSERT_TRUE(family.is_ok()) << family.status().message();
    const std::string name = fmt::format("nobody{}", number++), architecture = fmt::format("Nobody{}ForCausalLM", number);
    json::object description = family->description();
    description["family"] = name;
    description["architectures"] = json::array{json::string(architecture)};
    const auto renamed = scratch / name;
    std::filesystem::create_directories(renamed);
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      if (entry.path().filename() != "config.json") std::filesystem::copy_file(entry.path(), renamed / entry.path().filename());
    }
    json::object config = checkpoint->config();
    config["architectures"] = json::array{json::string(architecture)};
    config["model_type"] = name;
    std::ofstream(renamed / "config.json") << json::serialize(config);
    std::ofstream(scratch / (name + ".json")) << json::serialize(description);
    expect_verified(renamed, directory, KvDType::kBf16, (scratch / (name + ".json")).string());
    // Beside the weights it needs no flag.
    std::filesystem::copy_file(scratch / (name + ".json"), renamed / "millrace_family.json");
    EXPECT_TRUE(LoadedModel::load(renamed.string(), {.weights = LoadWeights::kNone}).is_ok());
    std::filesystem::remove(renamed / "millrace_family.json");
    const auto unknown = LoadedModel::load(renamed.string(), {.weights = LoadWeights::kNone});
    ASSERT_FALSE(unknown.is_ok());
    EXPECT_NE(unknown.status().message().find(architecture), std::string::npos) << unknown.status().message();
  }
  std::filesystem::remove_all(scratch);
}

}  // namespace
}  // namespace millrace
