#include "millrace/engine/loaded_model.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "millrace/base/process_memory.h"
#include "millrace/base/temporary_directory.h"
#include "millrace/base/test_data.h"
#include "millrace/model/sequence_runner.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

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
  const TemporaryDirectory folder;
  LoadOptions options;
  options.weight_cache.folder = folder.file("weights");
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

TEST(LoadedModel, EveryQuantizationHasACacheFileOfItsOwn) {
  const TemporaryDirectory folder;
  LoadOptions options;
  options.weight_cache.folder = folder.file("weights");
  options.weight_cache.min_bytes = 0;
  const fs::path path = source_dir() / "tests/golden/models/qwen3";
  const std::vector<std::optional<QuantizationOptions>> quantizations = {
      std::nullopt,
      QuantizationOptions{.type = QuantizationType::kInt8},
      QuantizationOptions{.type = QuantizationType::kInt4},
      QuantizationOptions{.type = QuantizationType::kInt4, .group_size = 32},
      QuantizationOptions{.type = QuantizationType::kInt4, .symmetric = true},
      QuantizationOptions{.type = QuantizationType::kNf4},
      QuantizationOptions{.type = QuantizationType::kFp8, .exclude = {"down_proj"}},
      QuantizationOptions{.type = QuantizationType::kFp8, .exclude = {"up_proj"}}};
  for (const auto& quantization : quantizations) {
    options.quantization = quantization;
    const auto packed = load(path, options);
    ASSERT_TRUE(packed);
    EXPECT_FALSE(packed->weights_from_cache());
    EXPECT_EQ(packed->quantization().empty(), !quantization);
    packed->keep_weights([](const Status& status) { ADD_FAILURE() << status.message(); });
    packed->wait_for_cache();
  }
  for (const auto& quantization : quantizations) {
    options.quantization = quantization;
    const auto mapped = load(path, options);
    ASSERT_TRUE(mapped);
    EXPECT_TRUE(mapped->weights_from_cache()) << mapped->quantization() << ": " << mapped->cache_error().message();
    LoadOptions without = options;
    without.weight_cache.folder.clear();
    EXPECT_TRUE(same_weights(*mapped, *load(path, without))) << mapped->quantization();
  }
}

TEST(LoadedModel, AFailureToKeepWeightsIsReportedAndNoMore) {
  const TemporaryDirectory folder;
  std::ofstream(folder.file("weights")) << "a file where the folder belongs";
  LoadOptions options;
  options.weight_cache.folder = folder.file("weights");
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
  const auto a = packed->make_executor(GemmPath::kFast, KvDType::kBf16, 64),
             b = planned->make_executor(GemmPath::kFast, KvDType::kBf16, 64);
  EXPECT_EQ((*a)->program().ops.size(), (*b)->program().ops.size());
  EXPECT_EQ((*a)->activation_bytes(), (*b)->activation_bytes());
}

// What the process holds of its own after the largest step, beside what was predicted before the first.
struct Held {
  int64_t predicted, resident;
};

Held held_by(LoadedModel& model, int32_t max_rows) {
  const auto executor = model.make_executor(GemmPath::kFast, KvDType::kBf16, max_rows);
  EXPECT_TRUE(executor.is_ok()) << executor.status().message();
  auto runner = SequenceRunner::create(**executor, max_rows);
  EXPECT_TRUE(runner.is_ok()) << runner.status().message();
  runner->reset(max_rows);
  const int64_t predicted = model.memory_plan(**executor, (*executor)->kv_bytes(), 1).total_bytes();
  std::vector<int32_t> tokens(static_cast<std::size_t>(max_rows));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 13 % 64);
  EXPECT_TRUE(runner->append(tokens, max_rows, false, [](int64_t, std::span<const float>) {}).is_ok());
  int64_t resident = process_memory().anonymous_bytes;
  if (model.weights_from_cache())
    resident += mapping_memory(model.weights().panels()).resident_bytes - mapping_memory(model.weights().panels()).anonymous_bytes;
  return {predicted, resident};
}

// Sanitizers keep memory of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// The largest that the process was resident since reset_peak().
bool reset_peak() { return static_cast<bool>(std::ofstream("/proc/self/clear_refs") << "5" << std::flush); }

int64_t peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    int64_t kilobytes = 0;
    if (word == "VmHWM:" && status >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

// Ends this process, with 0 where it holds what was predicted of the model.
[[noreturn]] void exit_with_held(const fs::path& path, const LoadOptions& options) {
  const auto model = load(path, options);
  if (!model) std::exit(2);
  const Held held = held_by(*model, 64);
  fmt::print(stderr, "resident {}, predicted {} with the program's {}\n", held.resident, held.predicted, MemoryPlan::kProgramBytes);
  std::exit(!testing::Test::HasFailure() && held.resident <= held.predicted && held.resident >= held.predicted - MemoryPlan::kProgramBytes
                ? 0
                : 1);
}

// Each model in a process of its own ("threadsafe" executes the program anew): what tests before it left in the heap is not the model's.
TEST(LoadedModel, HoldsTheMemoryThatWasPredicted) {
  if (kSanitized) GTEST_SKIP() << "sanitizers keep memory of their own";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const auto& entry : fs::directory_iterator(source_dir() / "tests/golden/models")) {
    EXPECT_EXIT(exit_with_held(entry.path(), {.num_threads = 2}), testing::ExitedWithCode(0), "") << entry.path().filename();
  }
}

TEST(LoadedModel, HoldsTheMemoryThatWasPredictedOfAQuantizedModel) {
  if (kSanitized) GTEST_SKIP() << "sanitizers keep memory of their own";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const char* name : {"qwen3", "gpt2", "qwen3_moe"}) {
    for (const QuantizationType type : {QuantizationType::kInt8, QuantizationType::kInt4, QuantizationType::kNf4, QuantizationType::kFp8}) {
      SCOPED_TRACE(fmt::format("{} {}", name, quantization_name(type)));
      LoadOptions options{.num_threads = 2};
      options.quantization = QuantizationOptions{.type = type};
      const auto path = source_dir() / "tests/golden/models" / name;
      const auto model = load(path, options);
      ASSERT_TRUE(model);
      options.weights = LoadWeights::kPlan;
      EXPECT_EQ(load(path, options)->weights().bytes(), model->weights().bytes());
      options.weights = LoadWeights::kPack;
      EXPECT_EXIT(exit_with_held(path, options), testing::ExitedWithCode(0), "");
    }
  }
}

// Of a plain checkpoint seven times the packed weights, whose tensors are dropped once they are packed.
TEST(LoadedModel, QuantizingTakesThePackedWeightsAndOneTensor) {
  if (kSanitized) GTEST_SKIP() << "sanitizers keep memory of their own";
  const TemporaryDirectory folder;
  const fs::path path = folder.file("model");
  fs::create_directories(path);
  constexpr int64_t kHidden = 1024, kLayers = 12, kVocabulary = 512;
  json::object header;
  int64_t bytes = 0;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    const int64_t size = 4 * shape[0] * (shape.size() > 1 ? shape[1] : 1);
    header[name] = json::object{
        {"dtype", "F32"}, {"shape", json::array(shape.begin(), shape.end())}, {"data_offsets", json::array{bytes, bytes + size}}};
    bytes += size;
  };
  add("model.embed_tokens.weight", {kVocabulary, kHidden});
  add("model.norm.weight", {kHidden});
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const std::string scope = fmt::format("model.layers.{}.", layer);
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) add(scope + norm + ".weight", {kHidden});
    for (const char* linear : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                               "mlp.up_proj", "mlp.down_proj"}) {
      add(scope + linear + ".weight", {kHidden, kHidden});
    }
  }
  std::ofstream(path / "config.json") << json::serialize(json::object{{"architectures", json::array{"LlamaForCausalLM"}},
                                                                      {"model_type", "llama"},
                                                                      {"hidden_size", kHidden},
                                                                      {"intermediate_size", kHidden},
                                                                      {"num_hidden_layers", kLayers},
                                                                      {"num_attention_heads", 8},
                                                                      {"num_key_value_heads", 8},
                                                                      {"head_dim", kHidden / 8},
                                                                      {"vocab_size", kVocabulary},
                                                                      {"max_position_embeddings", 128},
                                                                      {"rms_norm_eps", 1e-5},
                                                                      {"rope_theta", 10000.0},
                                                                      {"tie_word_embeddings", true},
                                                                      {"hidden_act", "silu"}});
  {
    std::string text = json::serialize(header);
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t size = text.size();
    std::ofstream file(path / "model.safetensors", std::ios::binary);
    file.write(reinterpret_cast<const char*>(&size), sizeof size) << text;
    std::vector<float> numbers(static_cast<std::size_t>(kHidden * kHidden));
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i * 2654435761u % 1000) * 1e-4f - 0.05f;
    for (int64_t at = 0; at < bytes; at += static_cast<int64_t>(numbers.size() * 4)) {
      file.write(reinterpret_cast<const char*>(numbers.data()), std::min(bytes - at, static_cast<int64_t>(numbers.size() * 4)));
    }
  }
  LoadOptions options{.num_threads = 2};
  options.quantization = QuantizationOptions{.type = QuantizationType::kInt4};
  const int64_t before = process_memory().resident_bytes;
  if (!reset_peak()) GTEST_SKIP() << "/proc/self/clear_refs cannot be written: the peak is not known";
  const auto model = load(path, options);
  ASSERT_TRUE(model);
  const int64_t taken = peak_bytes() - before, tensor_bytes = 4 * kHidden * kHidden;
  EXPECT_LT(model->weights().bytes(), bytes / 7);
  // The one that is read and those before it that are not yet dropped, or after it that are read ahead.
  EXPECT_LE(taken, model->weights().bytes() + 4 * tensor_bytes + MemoryPlan::kProgramBytes)
      << "packed " << model->weights().bytes() << ", a tensor " << tensor_bytes;
  EXPECT_LT(taken, bytes / 2);
}

// Packed, and mapped from the cache. Ends this process, with 0 where both hold what was predicted, within five percent.
[[noreturn]] void exit_with_demo_model_held(const char* demo) {
  {
    const TemporaryDirectory folder;
    LoadOptions options;
    options.weight_cache.folder = folder.file("weights");
    for (const bool mapped : {false, true}) {
      const auto model = load(demo, options);
      if (!model) break;
      EXPECT_EQ(model->weights_from_cache(), mapped);
      EXPECT_LE(static_cast<double>(model->weights().bytes()), 1.05 * static_cast<double>(model->checkpoint().tensor_bytes()));
      const Held held = held_by(*model, 512);
      fmt::print(stderr, "{}: resident {}, predicted {}\n", mapped ? "mapped" : "packed", held.resident, held.predicted);
      EXPECT_LE(static_cast<double>(held.resident), 1.05 * static_cast<double>(held.predicted));
      EXPECT_GE(static_cast<double>(held.resident), 0.95 * static_cast<double>(held.predicted));
      if (!mapped) {
        model->keep_weights([](const Status& status) { ADD_FAILURE() << status.message(); });
        model->wait_for_cache();
      }
    }
  }
  std::exit(testing::Test::HasFailure() ? 1 : 0);
}

// A real model, where the constant is small.
TEST(LoadedModel, OfADemoModelWithinFivePercent) {
  if (kSanitized) GTEST_SKIP() << "sanitizers keep memory of their own";
  const char* demo = std::getenv("MILLRACE_DEMO_MODEL");
  if (demo == nullptr) GTEST_SKIP() << "MILLRACE_DEMO_MODEL is not set";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(exit_with_demo_model_held(demo), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace millrace
