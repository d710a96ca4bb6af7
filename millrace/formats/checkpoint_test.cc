#include "millrace/formats/checkpoint.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "millrace/base/test_data.h"
#include "millrace/formats/python_json.h"
#include "millrace/formats/quoted_name.h"
#include "millrace/formats/test_files.h"

namespace millrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string error_of(const std::string& path) {
  const auto checkpoint = Checkpoint::open(path);
  return checkpoint.is_ok() ? "(opened)" : checkpoint.status().message();
}

std::string small_weights(std::string_view name = "w") {
  return safetensors_bytes(fmt::format(R"({{"{}":{{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}}})", name), "abcdefgh");
}

TEST(CheckpointHuggingFace, GivesTensorsConfigsAndTexts) {
  TemporaryDirectory directory;
  directory.write("config.json",
                  R"({"model_type":"tiny","time_step_limit":[0.0,Infinity],"low":-Infinity,"odd":NaN,"text":"NaN Infinity"})");
  directory.write("generation_config.json", R"({"temperature":0.6})");
  directory.write("tokenizer.json", "{}");
  directory.write("tokenizer_config.json", R"({"chat_template":"from the config"})");
  directory.write("model.safetensors", small_weights());
  auto opened = Checkpoint::open(directory.path());
  ASSERT_TRUE(opened.is_ok()) << opened.status().message();
  const Checkpoint checkpoint = std::move(opened).value();
  EXPECT_EQ(checkpoint.kind(), Checkpoint::Kind::kHuggingFace);
  EXPECT_EQ(checkpoint.gguf(), nullptr);
  EXPECT_EQ(checkpoint.config().at("model_type").as_string(), "tiny");
  EXPECT_EQ(checkpoint.config().at("time_step_limit").at(1).as_double(), 1e308);
  EXPECT_EQ(checkpoint.config().at("low").as_double(), -1e308);
  EXPECT_TRUE(checkpoint.config().at("odd").is_null());
  EXPECT_EQ(checkpoint.config().at("text").as_string(), "NaN Infinity");
  EXPECT_EQ(checkpoint.generation_config().at("temperature").as_double(), 0.6);
  EXPECT_EQ(checkpoint.chat_template(), "from the config");
  EXPECT_EQ(checkpoint.tokenizer_json(), "{}");
  EXPECT_THAT(*checkpoint.tokenizer_config_json(), HasSubstr("from the config"));
  const SourceTensor* w = checkpoint.find("w");
  ASSERT_NE(w, nullptr);
  EXPECT_THAT(w->shape, ElementsAre(2, 1));
  EXPECT_EQ(w->data[7], std::byte{'h'});
  EXPECT_EQ(checkpoint.find("v"), nullptr);
  EXPECT_THAT(checkpoint.files(), ElementsAre(directory.file("model.safetensors")));
  EXPECT_EQ(checkpoint.tensor_bytes(), 8);
  EXPECT_EQ(checkpoint.file_bytes(), static_cast<int64_t>(small_weights().size()));
  checkpoint.drop_pages(*w);
  EXPECT_EQ(w->data[0], std::byte{'a'}) << "read again from the file";
}

TEST(CheckpointHuggingFace, ChatTemplateComesFromItsFileFirst) {
  TemporaryDirectory directory;
  directory.write("config.json", "{}");
  directory.write("model.safetensors", small_weights());
  EXPECT_EQ(Checkpoint::open(directory.path())->chat_template(), std::nullopt);
  EXPECT_THAT(Checkpoint::open(directory.path())->generation_config(), IsEmpty());
  directory.write("tokenizer_config.json", R"({"chat_template":[{"name":"tool_use","template":"t"},{"name":"default","template":"d"}]})");
  EXPECT_EQ(Checkpoint::open(directory.path())->chat_template(), "d");
  directory.write("chat_template.jinja", "from the file");
  EXPECT_EQ(Checkpoint::open(directory.path())->chat_template(), "from the file");
}

TEST(CheckpointHuggingFace, ErrorsSayWhatIsMissing) {
  TemporaryDirectory directory;
  EXPECT_THAT(error_of(directory.file("absent")), HasSubstr("no such file or directory"));
  EXPECT_THAT(error_of(directory.path()),
              HasSubstr("looked for model.safetensors, model.safetensors.index.json or a .gguf file; there is none"));
  directory.write("config.json", "{}");
  directory.write("pytorch_model.bin", "x");
  EXPECT_THAT(error_of(directory.path()), HasSubstr("pytorch_model.bin: Python pickles are not read"));
  std::filesystem::remove(directory.file("pytorch_model.bin"));
  directory.write("adapter_model.safetensors", small_weights());
  EXPECT_THAT(error_of(directory.path()), HasSubstr("found adapter_model.safetensors"));
  directory.write("model.safetensors", small_weights());
  EXPECT_EQ(error_of(directory.path()), "(opened)");
  EXPECT_THAT(error_of(directory.file("model.safetensors")), HasSubstr("name its directory"));
  EXPECT_THAT(error_of(directory.file("config.json")), HasSubstr("is not a GGUF file"));
  directory.write("config.json", "{\"a\":\n tru}");
  EXPECT_THAT(error_of(directory.path()), HasSubstr("config.json: invalid JSON at line 2"));
  directory.write("config.json", "[]");
  EXPECT_THAT(error_of(directory.path()), HasSubstr("expected a JSON object"));
  std::filesystem::remove(directory.file("config.json"));
  EXPECT_THAT(error_of(directory.path()), HasSubstr("no config.json"));
  directory.write("config.json", "{}");
  directory.write("model.safetensors", "damaged");
  EXPECT_THAT(error_of(directory.path()), HasSubstr("too few"));
}

TEST(CheckpointHuggingFace, DeepConfigIsRefused) {
  TemporaryDirectory directory;
  directory.write("model.safetensors", small_weights());
  directory.write("config.json", "{\"a\":" + std::string(100000, '['));
  EXPECT_THAT(error_of(directory.path()), HasSubstr("config.json: invalid JSON"));
}

TEST(CheckpointHuggingFace, OneTensorInTwoShardsIsRefused) {
  TemporaryDirectory directory;
  directory.write("config.json", "{}");
  directory.write("a.safetensors", small_weights());
  directory.write("b.safetensors", small_weights());
  directory.write("model.safetensors.index.json", R"({"weight_map":{"w":"a.safetensors","w2":"b.safetensors"}})");
  EXPECT_THAT(error_of(directory.path()), HasSubstr("lacks tensor \"w2\""));
  directory.write(
      "b.safetensors",
      safetensors_bytes(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w2":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                        "xy"));
  EXPECT_THAT(error_of(directory.path()), HasSubstr("tensor \"w\" is in two files"));
}

GgufParts small_gguf() {
  GgufParts parts;
  parts.entries = {gguf_text("general.architecture", "llama"),
                   gguf_scalar<uint32_t>("llama.block_count", 4, 30),
                   gguf_scalar<float>("llama.rope.scale", 6, 0.5f),
                   gguf_scalar<uint8_t>("flag", 7, 1),
                   gguf_scalar<float>("not", 6, std::nanf("")),
                   gguf_scalar<double>("inf", 12, HUGE_VAL),
                   gguf_text("bad", "\xc3("),
                   gguf_text("tokenizer.chat_template", "{{ messages }}"),
                   gguf_array<int32_t>("pattern", 5, {1, 0}),
                   gguf_texts("names", {"x", "y"}),
                   gguf_array<uint8_t>("flags", 7, {1, 0}),
                   gguf_array<float>("scales", 6, {0.5f}),
                   gguf_array<int32_t>("tokenizer.ggml.token_type", 5, std::vector<int32_t>(5000, 1))};
  parts.tensors = {gguf_tensor("token_embd.weight", {4, 2}, 0, 0)};
  return parts;
}

TEST(CheckpointGguf, MetadataIsItsConfig) {
  TemporaryDirectory directory;
  const std::string path = directory.write("m.gguf", small_gguf().bytes());
  directory.write("config.json", R"({"model_type":"beside"})");
  directory.write("mmproj-m.gguf", "not looked at");
  for (const std::string& name : {path, directory.path()}) {
    auto opened = Checkpoint::open(name);
    ASSERT_TRUE(opened.is_ok()) << opened.status().message();
    const Checkpoint checkpoint = std::move(opened).value();
    EXPECT_EQ(checkpoint.kind(), Checkpoint::Kind::kGguf);
    const json::object& config = checkpoint.config();
    EXPECT_EQ(config.at("llama.block_count").as_int64(), 30);
    EXPECT_EQ(config.at("llama.rope.scale").as_double(), 0.5);
    EXPECT_TRUE(config.at("flag").as_bool());
    EXPECT_TRUE(config.at("not").is_null());
    EXPECT_EQ(config.at("inf").as_double(), 1e308);
    EXPECT_FALSE(config.contains("bad")) << "not UTF-8";
    EXPECT_EQ(json::serialize(config.at("pattern")), "[1,0]");
    EXPECT_EQ(json::serialize(config.at("names")), R"(["x","y"])");
    EXPECT_EQ(json::serialize(config.at("flags")), "[true,false]");
    EXPECT_EQ(config.at("scales").at(0).as_double(), 0.5);
    EXPECT_FALSE(config.contains("tokenizer.ggml.token_type")) << "vocabulary-sized";
    ASSERT_NE(checkpoint.gguf(), nullptr);
    EXPECT_EQ(checkpoint.gguf()->integers("tokenizer.ggml.token_type")->size(), 5000u);
    EXPECT_EQ(checkpoint.chat_template(), "{{ messages }}");
    EXPECT_EQ(checkpoint.tokenizer_json(), std::nullopt);
    EXPECT_THAT(checkpoint.find("token_embd.weight")->shape, ElementsAre(2, 4));
    EXPECT_THAT(checkpoint.files(), ElementsAre(path));
  }
  directory.write("n.gguf", small_gguf().bytes());
  EXPECT_THAT(error_of(directory.path()), HasSubstr("holds 2 GGUF models; name one of them: m.gguf, n.gguf"));
}

TEST(CheckpointGguf, MetadataThatWouldFillMemoryIsRefused) {
  TemporaryDirectory directory;
  GgufParts parts = small_gguf();
  for (int i = 0; i < 300; ++i) parts.entries.push_back(gguf_array<uint8_t>("k" + std::to_string(i), 0, std::vector<uint8_t>(4096, 0)));
  EXPECT_THAT(error_of(directory.write("m.gguf", parts.bytes())), HasSubstr("more than 1000000 metadata values"));
}

TEST(PythonJson, LeavesStringsAlone) {
  EXPECT_EQ(without_python_numbers(R"({"NaN":"a\"NaN","x":[NaN,-Infinity]})"), R"({"NaN":"a\"NaN","x":[null,-1e308]})");
  EXPECT_EQ(without_python_numbers("\"cut\\"), "\"cut\\");
}

TEST(QuotedName, EscapesAndCuts) {
  EXPECT_EQ(quoted_name("a\nb\x7f"), "\"a\\x0ab\\x7f\"");
  EXPECT_EQ(quoted_name(std::string(500, 'x')), "\"" + std::string(120, 'x') + "...\"");
}

// ---- Published files, where they are at hand

TEST(CheckpointPublished, GoldenDirectoriesOpen) {
  const auto golden = source_dir() / "../shared/golden";
  if (!std::filesystem::exists(golden)) GTEST_SKIP() << "no " << golden << " beside the checkout";
  int opened = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden)) {
    if (!std::filesystem::exists(entry.path() / "model.safetensors")) continue;
    const auto checkpoint = Checkpoint::open(entry.path().string());
    EXPECT_TRUE(checkpoint.is_ok()) << entry.path() << ": " << checkpoint.status().message();
    if (!checkpoint.is_ok()) continue;
    EXPECT_FALSE(checkpoint->tensors().empty());
    EXPECT_TRUE(checkpoint->config().contains("model_type"));
    ++opened;
  }
  EXPECT_GT(opened, 0);
}

TEST(CheckpointPublished, DemoModelOpens) {
  const char* path = std::getenv("MILLRACE_DEMO_MODEL");
  if (path == nullptr) GTEST_SKIP() << "MILLRACE_DEMO_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf";
  const auto checkpoint = Checkpoint::open(path);
  ASSERT_TRUE(checkpoint.is_ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->config().at("general.architecture").as_string(), "llama");
  EXPECT_EQ(checkpoint->config().at("llama.block_count").as_int64(), 30);
  EXPECT_EQ(checkpoint->tensors().size(), 272u);
  EXPECT_THAT(checkpoint->find("token_embd.weight")->shape, ElementsAre(49152, 576));
  EXPECT_EQ(checkpoint->gguf()->strings("tokenizer.ggml.tokens")->size(), 49152u);
  EXPECT_TRUE(checkpoint->chat_template().has_value());
}

}  // namespace
}  // namespace millrace
