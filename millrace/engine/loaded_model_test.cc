#include "millrace/engine/loaded_model.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "millrace/base/process_memory.h"
#include "millrace/base/test_data.h"
#include "millrace/model/sequence_runner.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

struct Folder {
  fs::path path = fs::temp_directory_path() / fmt::format("millrace-loaded-model-{}", ::getpid());
  Folder() { fs::remove_all(path); }
  ~Folder() { fs::remove_all(path); }
};

std::unique_ptr<LoadedModel> load(const fs::path& path, const LoadOptions& options) {
  auto model = LoadedModel::load(path.string(), options);
  EXPECT_TRUE(model.is_ok()) << model.status().message();
  return model.is_ok() ? std::move(model).value() : nullptr;
}

bool same_weights(const LoadedModel& a, const LoadedModel& b) {
  const auto x = a.weights().panels(), y = b.weights().panels();
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size()) == 0;
}

TEST(LoadedModel, TheSecondStartMapsWhatTheFirstPacked) {
  const Folder folder;
  LoadOptions options;
  options.weight_cache.folder = (folder.path / "weights").string();
  options.weight_cache.min_bytes = 0;
  const fs::path path = source_dir() / "tests/golden/models/llama-gptq-act-order";
  const auto first = load(path, options);
  ASSERT_TRUE(first);
  EXPECT_FALSE(first->weights_from_cache());
  EXPECT_TRUE(first->cache_error().is_ok());
  first->keep_weights([](const Status& status) { ADD_FAILURE() << status.message(); });
  first->wait_for_cache();

  const auto second = load(path, options);
  ASSERT_TRUE(second);
  EXPECT_TRUE(second->weights_from_cache());
  EXPECT_TRUE(same_weights(*first, *second));
  second->keep_weights([](const Status&) { ADD_FAILURE() << "has nothing to write"; });

  const fs::path file = fs::directory_iterator(options.weight_cache.folder)->path();
  fs::resize_file(file, fs::file_size(file) - 1);
  const auto third = load(path, options);
  ASSERT_TRUE(third);
  EXPECT_FALSE(third->weights_from_cache());
  EXPECT_EQ(third->cache_error().code(), StatusCode::kDataLoss);
  EXPECT_TRUE(same_weights(*first, *third));
  third->keep_weights();
  third->wait_for_cache();
  EXPECT_TRUE(load(path, options)->weights_from_cache());

  options.weight_cache.folder.clear();
  EXPECT_FALSE(load(path, options)->weights_from_cache());
}

TEST(LoadedModel, AFailureToKeepWeightsIsReportedAndNoMore) {
  const Folder folder;
  fs::create_directories(folder.path);
  std::ofstream(folder.path / "weights") << "a file where the folder belongs";
  LoadOptions options;
  options.weight_cache.folder = (folder.path / "weights").string();
  options.weight_cache.min_bytes = 0;
  const auto model = load(source_dir() / "tests/golden/models/llama", options);
  ASSERT_TRUE(model);
  std::string message;
  model->keep_weights([&](const Status& status) { message = status.message(); });
  model->wait_for_cache();
  EXPECT_NE(message.find(options.weight_cache.folder), std::string::npos) << message;
}

TEST(LoadedModel, APlanTakesNoWeightsAndSaysWhatTheyWillTake) {
  const fs::path path = source_dir() / "tests/golden/models/qwen3_moe";
  LoadOptions options;
  const auto packed = load(path, options);
  options.weights = LoadWeights::kPlan;
  const auto planned = load(path, options);
  ASSERT_TRUE(packed && planned);
  EXPECT_TRUE(planned->weights().panels().empty());
  EXPECT_EQ(planned->weights().bytes(), packed->weights().bytes());
  const auto a = packed->make_executor(GemmPath::kFast, KvDType::kBf16, 64), b = planned->make_executor(GemmPath::kFast, KvDType::kBf16, 64);
  EXPECT_EQ((*a)->program().ops.size(), (*b)->program().ops.size());
  EXPECT_EQ((*a)->activation_bytes(), (*b)->activation_bytes());
}

}  // namespace
}  // namespace millrace
