// Encoders: what is bound from modules.json and config.json, and that fusing changes no bit of them.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "millrace/base/test_data.h"
#include "millrace/model/cpu_executor.h"
#include "millrace/model/family.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

// A copy of a golden encoder, to be changed.
class EncoderDirectory : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(path_);
    fs::copy(source_dir() / "tests/golden/encoders/bert", path_, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  }
  void TearDown() override { fs::remove_all(path_); }

  void write(const std::string& name, const std::string& text) {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name) << text;
  }
  void write_modules(const std::vector<std::pair<std::string, std::string>>& modules) {
    json::array list;
    for (const auto& [type, path] : modules) list.push_back(json::object{{"type", "sentence_transformers.models." + type}, {"path", path}});
    write("modules.json", json::serialize(list));
  }
  // A file of f32 tensors, all numbers `value`.
  void write_tensors(const std::string& name, const std::vector<std::pair<std::string, std::vector<int64_t>>>& tensors, float value) {
    json::object header;
    int64_t end = 0;
    for (const auto& [tensor, shape] : tensors) {
      int64_t bytes = 4;
      for (const int64_t size : shape) bytes *= size;
      header[tensor] = json::object{{"dtype", "F32"}, {"shape", json::value_from(shape)}, {"data_offsets", json::array{end, end + bytes}}};
      end += bytes;
    }
    const std::string text = json::serialize(header);
    const uint64_t size = text.size();
    std::string file(reinterpret_cast<const char*>(&size), 8);
    file += text;
    for (int64_t i = 0; i < end / 4; ++i) file.append(reinterpret_cast<const char*>(&value), 4);
    write(name, file);
  }

  // The pooled head, or the error's message.
  std::variant<PooledHead, std::string> bind() {
    checkpoint_.emplace(Checkpoint::open(path_.string()));
    if (!checkpoint_->is_ok()) return checkpoint_->status().message();
    const auto family = choose_family(**checkpoint_, std::nullopt);
    if (!family.is_ok()) return family.status().message();
    auto network = bind_network(*family, **checkpoint_);
    if (!network.is_ok()) return network.status().message();
    return *network->pooled;
  }
  PooledHead head() {
    auto bound = bind();
    if (const auto* message = std::get_if<std::string>(&bound)) ADD_FAILURE() << *message;
    return std::holds_alternative<PooledHead>(bound) ? std::get<PooledHead>(bound) : PooledHead{};
  }
  void expect_refused(const std::string& words) {
    const auto bound = bind();
    ASSERT_TRUE(std::holds_alternative<std::string>(bound)) << "expected: " << words;
    EXPECT_NE(std::get<std::string>(bound).find(words), std::string::npos) << std::get<std::string>(bound);
  }

  const fs::path path_ = fs::temp_directory_path() / fmt::format("millrace-encoder-{}", getpid());
  std::optional<Result<Checkpoint>> checkpoint_;
};

TEST_F(EncoderDirectory, WithoutModulesTheMeanIsNormalized) {
  const PooledHead pooled = head();
  EXPECT_EQ(pooled.pooling, Pooling::kMean);
  EXPECT_TRUE(pooled.unit_norm.has_value());
  EXPECT_TRUE(pooled.layers.empty());
  EXPECT_EQ(pooled.size, 64);
  EXPECT_FALSE(pooled.classes);
}

TEST_F(EncoderDirectory, ModulesSayHowATextBecomesARow) {
  write_modules({{"Transformer", ""}, {"Pooling", "1_Pooling"}});
  write("1_Pooling/config.json", R"({"word_embedding_dimension": 64, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})");
  EXPECT_EQ(head().pooling, Pooling::kFirst);
  EXPECT_FALSE(head().unit_norm.has_value());
  write("1_Pooling/config.json", R"({"pooling_mode_lasttoken": true})");
  EXPECT_EQ(head().pooling, Pooling::kLast);
  write("1_Pooling/config.json", R"({"pooling_mode": "mean"})");  // as sentence-transformers 5 writes it
  write_modules({{"Transformer", ""}, {"Pooling", "1_Pooling"}, {"Normalize", "2_Normalize"}});
  EXPECT_EQ(head().pooling, Pooling::kMean);
  EXPECT_TRUE(head().unit_norm.has_value());

  write_modules({{"Transformer", ""}, {"Pooling", "1_Pooling"}, {"Dense", "2_Dense"}, {"Normalize", "3_Normalize"}});
  write("2_Dense/config.json",
        R"({"in_features": 64, "out_features": 24, "bias": true, "activation_function": "torch.nn.modules.activation.Tanh"})");
  write_tensors("2_Dense/model.safetensors", {{"linear.bias", {24}}, {"linear.weight", {24, 64}}}, 0.01f);
  const PooledHead dense = head();
  ASSERT_EQ(dense.layers.size(), 1u);
  EXPECT_EQ(dense.layers[0].activation, Activation::kTanh);
  EXPECT_EQ(dense.layers[0].linear.bias.size(), 24u);
  EXPECT_EQ(dense.size, 24);
  EXPECT_EQ(dense.unit_norm->weight.size(), 24u);
}

TEST_F(EncoderDirectory, WhatModulesAskForAndIsNotThereIsNamed) {
  write("1_Pooling/config.json", R"({"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true})");
  write_modules({{"Transformer", ""}, {"Pooling", "1_Pooling"}});
  expect_refused("module \"1_Pooling\" (Pooling): its config.json asks for pooling \"cls + max\", expected one of cls, mean, lasttoken");
  write("1_Pooling/config.json", R"({"pooling_mode_mean_tokens": true})");
  write_modules({{"Transformer", ""}, {"Pooling", "1_Pooling"}, {"Dense", "2_Dense"}});
  expect_refused("module \"2_Dense\" (Dense): has no \"linear.weight\"");
  write_tensors("2_Dense/model.safetensors", {{"linear.weight", {24, 63}}}, 0.01f);
  expect_refused("\"2_Dense.linear.weight\" is [24, 63], expected [out_features, the size before] = [24, 64]");
  write("2_Dense/config.json", R"({"activation_function": "torch.nn.modules.activation.Mish"})");
  expect_refused("activation_function \"Mish\"");
  fs::remove_all(path_ / "2_Dense");
  write_modules({{"Transformer", ""}, {"Pooling", "1_Pooling"}, {"LSTM", "2_LSTM"}});
  expect_refused("module \"2_LSTM\" (LSTM): is not known");
  write_modules({{"Transformer", ""}});
  expect_refused("has no Pooling module");
  write_modules({{"Transformer", ""}, {"Normalize", "1_Normalize"}, {"Pooling", "2_Pooling"}});
  expect_refused("comes before the Pooling");
}

TEST_F(EncoderDirectory, HostileModulesAreRefused) {
  for (const char* path : {"../1_Pooling", "/etc", "a/b", ".hidden", "a\\\\b"}) {
    SCOPED_TRACE(path);
    write("modules.json", fmt::format(R"([{{"type": "x.Pooling", "path": "{}"}}])", path));
    expect_refused("is no plain name of a directory");
  }
  for (const char* text : {"{}", "[1]", R"([{"type": "x.Pooling"}])", R"([{"type": 1, "path": ""}])", "[", ""}) {
    SCOPED_TRACE(text);
    write("modules.json", text);
    expect_refused("modules.json: ");
  }
  std::string many = "[";
  for (int i = 0; i < 65; ++i) many += fmt::format("{}{{\"type\": \"x.Dense\", \"path\": \"{}\"}}", i > 0 ? "," : "", i);
  write("modules.json", many + "]");
  expect_refused("expected a list of at most 64 modules");
}

TEST(Encoder, WordsOfHeadsAreChecked) {
  const auto refused = [](const char* words, bool causal) {
    const std::string text = fmt::format(
        R"({{"family": "x", "embedding": {{"tokens": "t"}}, "layers": [{{"count": 1, "scope": "l", "attention": {{"causal": {}, "q": "q", "k": "k", "v": "v", "o": "o"}},
            "mlp": {{"up": "u", "down": "d"}}}}] {}}})",
        causal, words);
    const auto family = Family::parse(text, "x.json");
    return family.is_ok() ? std::string() : family.status().message();
  };
  EXPECT_NE(refused("", false).find("head: this word is missing, and so is \"pooled\""), std::string::npos) << refused("", false);
  EXPECT_NE(refused(R"(, "head": {"weight": "h"}, "pooled": {})", false).find("stands beside \"head\""), std::string::npos);
  EXPECT_NE(refused(R"(, "head": {"weight": "h"}, "classes": {"when": true, "layers": [{"weight": "c"}]})", true).find("classes"),
            std::string::npos);
  EXPECT_NE(refused(R"(, "pooled": {"poling": "cls"})", false).find("unknown word"), std::string::npos);
  EXPECT_EQ(refused(R"(, "pooled": {"pooling": "cls"})", false), "");
}

// A causal layer in an encoder would read keys that no step has computed; the other way round, keys that a later step computes.
TEST_F(EncoderDirectory, LayersOfTheWrongDirectionAreRefused) {
  const auto checkpoint = Checkpoint::open(path_.string()).value();
  json::object description = choose_family(checkpoint, std::nullopt)->description();
  description["layers"].as_array()[0].as_object()["attention"].as_object()["causal"] = "i == 0";
  const auto network = bind_network(Family::parse(json::serialize(description), "x.json").value(), checkpoint);
  ASSERT_FALSE(network.is_ok());
  EXPECT_NE(network.status().message().find("layer 0 is causal"), std::string::npos) << network.status().message();
}

std::vector<float> outputs(const Network& network, const std::shared_ptr<const Weights>& weights, Program program, ThreadPool& pool,
                           const CpuExecutorOptions& options) {
  auto executor = CpuExecutor::create(network, weights, std::move(program), pool, options).value();
  StepPlan plan;
  for (const int32_t length : {40, 1, 7, 33}) {
    const auto begin = static_cast<int32_t>(plan.tokens.size());
    for (int32_t i = 0; i < length; ++i) plan.tokens.push_back((i * 13 + length) % 500);
    plan.sequences.push_back({.row_begin = begin, .row_end = begin + length});
    plan.outputs.push_back({begin, nullptr});
  }
  executor->enqueue(plan);
  const StepOutput& step = executor->wait();
  std::vector<float> all;
  for (std::size_t row = 0; row < plan.tokens.size(); ++row) {
    const auto hidden =
        step.hidden.subspan(row * static_cast<std::size_t>(step.hidden_stride), static_cast<std::size_t>(network.hidden_size));
    all.insert(all.end(), hidden.begin(), hidden.end());
  }
  for (std::size_t i = 0; i < plan.outputs.size(); ++i) {
    const auto numbers = step.logits_of(static_cast<int64_t>(i), executor->info().output_size);
    all.insert(all.end(), numbers.begin(), numbers.end());
  }
  for (const float x : all) EXPECT_TRUE(std::isfinite(x));
  return all;
}

TEST(Encoder, FusingChangesNoBit) {
  const Isa isa = *choose_isa();
  ThreadPool pool(2);
  for (const auto& entry : fs::directory_iterator(source_dir() / "tests/golden/encoders")) {
    const auto checkpoint = Checkpoint::open(entry.path().string()).value();
    const Network network = bind_network(choose_family(checkpoint, std::nullopt).value(), checkpoint).value();
    const auto weights = std::make_shared<const Weights>(Weights::pack(network, checkpoint, pool).value());
    for (const GemmPath path : {GemmPath::kFast, GemmPath::kExact}) {
      SCOPED_TRACE(fmt::format("{} path {}", entry.path().filename().string(), static_cast<int>(path)));
      const Program unfused = lower_network(network, *weights, isa, path);
      Program fused = unfused;
      fuse(fused);
      EXPECT_LT(fused.ops.size(), unfused.ops.size());
      EXPECT_TRUE(std::none_of(fused.ops.begin(), fused.ops.end(), [](const Op& op) { return op.kind == OpKind::kAdd; }));
      // Norms of the hidden state make their readers' forms along the way; only the embedding does not.
      const auto of_hidden = std::count_if(fused.ops.begin(), fused.ops.end(),
                                           [&](const Op& op) { return op.kind == OpKind::kConvert && op.in == fused.hidden; });
      EXPECT_LE(of_hidden, 1);
      const CpuExecutorOptions options{isa, path, KvDType::kBf16, 128};
      EXPECT_EQ(outputs(network, weights, fused, pool, options), outputs(network, weights, unfused, pool, options));
    }
  }
}

}  // namespace
}  // namespace millrace
