#include "millrace/model/family.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "millrace/base/test_data.h"

namespace millrace {
namespace {

using testing::HasSubstr;

constexpr std::string_view kSmallFamily = R"({
  "family": "small", "architectures": ["SmallForCausalLM"],
  "embedding": { "tokens": "embed" },
  "layers": [ { "count": "num_hidden_layers", "scope": "layers.{layer}",
      "attention": { "q": "q", "k": "k", "v": "v", "o": "o" },
      "mlp": { "kind": "plain", "activation": "relu", "up": "up", "down": "down" } } ],
  "head": { "weight": "head" } })";

std::string replaced(std::string_view text, std::string_view what, std::string_view with) {
  std::string result(text);
  const std::size_t at = result.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return result.replace(at, what.size(), with);
}

TEST(Family, ParsesASmallOne) {
  const Result<Family> family = Family::parse(kSmallFamily, "small.json");
  ASSERT_TRUE(family.is_ok()) << family.status().message();
  EXPECT_EQ(family->name(), "small");
  EXPECT_THAT(family->architectures(), testing::ElementsAre("SmallForCausalLM"));
  EXPECT_TRUE(family->gguf_architectures().empty());
}

struct BadFamily {
  std::string_view what, with, message;
};

TEST(Family, ErrorsNameTheirPlace) {
  const BadFamily table[] = {
      {R"("tokens")", R"("token")", "bad.json: embedding.token: unknown word; known here are tokens, multiplier"},
      {R"("kind": "plain")", R"("kind": "plain", "moe": 1)", "bad.json: layers[0].mlp.moe: unknown word"},
      {R"("family": "small", )", "", "bad.json: family: this word is missing"},
      {R"("family": "small")", R"("family": "small", "experts": 1)", "bad.json: experts: unknown word"},
      {R"("q": "q", )", "", "bad.json: layers[0].attention.q: this word is missing"},
      {R"("q": "q")", R"("q": "q", "qkv": "qkv")", "layers[0].attention.q: stands beside \"qkv\""},
      {R"("q": "q", "k": "k", "v": "v")", R"("qkv": "qkv")", "layers[0].attention.layout: \"layout\" and \"qkv\" belong together"},
      {R"("q": "q")", R"("q": 3)", "layers[0].attention.q: expected a matrix's name"},
      {R"("q": "q")", R"("q": {"bias": true})", "layers[0].attention.q.name: this word is missing"},
      {R"("o": "o")", R"("o": [])", "layers[0].attention.o: expected"},
      {R"("mlp": {)", R"("cross": { "q": "a", "k": "a", "v": "a", "o": "a" }, "mlp": {)", "layers[0].cross: reads an \"encoder\", which"},
      {R"("mlp": {)", R"("cross": { "q": "a", "k": "a", "v": "a" }, "mlp": {)", "layers[0].cross.o: this word is missing"},
      {R"("mlp": {)", R"("cross": { "window": 3 }, "mlp": {)", "layers[0].cross.window: unknown word"},
      {R"("head": {)", R"("encoder": { "start_token": 0, "layers": [ {} ] }, "head": {)", "encoder.layers[0].count: this word is missing"},
      {R"("up": "up")", R"("up": "up", "gate_up": "x")", "layers[0].mlp.up: beside \"gate_up\""},
      {R"("num_hidden_layers")", R"("num_hidden_layers +")", "layers[0].count: expression \"num_hidden_layers +\", column 20"},
      {R"("num_hidden_layers")", R"([1])", "layers[0].count: expected an expression, found [1]"},
      {R"("head": { "weight": "head" })", R"("head": { "weight": "head" }, "gguf": { "names": {} })", "gguf_architecture: \"gguf\" and"},
      {R"("head": { "weight": "head" })", R"("head": "head")", "head: expected an object"},
      {R"("layers": [ {)", R"("layers": [ 5, {)", "layers[0]: expected an object, found 5"},
      {R"("o": "o")", R"("o": "o", "position": { "pairing": "half" })", "layers[0].attention.position.kind: this word is missing"},
      {R"("family": "small")", R"("family": 5)", "family: expected a text, found 5"},
      {R"({
  "family")",
       R"([ "family")", "bad.json: invalid JSON"},
  };
  for (const BadFamily& bad : table) {
    SCOPED_TRACE(fmt::format("{} -> {}", bad.what, bad.with));
    const Result<Family> family = Family::parse(replaced(kSmallFamily, bad.what, bad.with), "bad.json");
    ASSERT_FALSE(family.is_ok());
    EXPECT_THAT(family.status().message(), HasSubstr(bad.message));
  }
  EXPECT_THAT(Family::parse("[]", "bad.json").status().message(), HasSubstr("a family is a JSON object"));
}

TEST(BuiltinFamilies, ParseAndNameEveryArchitectureOnce) {
  std::set<std::string> names, architectures, gguf;
  for (const Family& family : builtin_families()) {
    EXPECT_TRUE(names.insert(family.name()).second) << family.name();
    EXPECT_EQ(family.file_name(), family.name() + ".json");
    for (const std::string& name : family.architectures()) EXPECT_TRUE(architectures.insert(name).second) << name;
    for (const std::string& name : family.gguf_architectures()) EXPECT_TRUE(gguf.insert(name).second) << name;
  }
  for (const char* name :
       {"llama",     "mistral",   "qwen2",       "qwen3",       "gemma2",      "gemma3",      "phi3",     "gpt2",  "falcon",
        "bloom",     "opt",       "gptj",        "gpt_bigcode", "phi",         "granite",     "gpt_neox", "mpt",   "starcoder2",
        "stablelm",  "olmo",      "olmo2",       "cohere",      "cohere2",     "glm4",        "smollm3",  "gemma", "mixtral",
        "qwen2_moe", "qwen3_moe", "granite_moe", "olmoe",       "deepseek_v2", "deepseek_v3", "gpt_oss"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
}

TEST(Family, TheExampleOfTheDocumentationIsOne) {
  std::ifstream file(source_dir() / "docs/add-a-model.md");
  const std::string page((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::size_t start = page.find("{ \"family\": \"marble\"");
  ASSERT_NE(start, std::string::npos);
  const Result<Family> family = Family::parse(page.substr(start, page.find("```", start) - start), "marble.json");
  EXPECT_TRUE(family.is_ok()) << family.status().message();
}

// A copy of a golden model in a temporary directory, whose config.json can be changed.
class FamilyChoice : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::path(testing::TempDir()) / "millrace_family_choice";
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    const std::filesystem::path golden = source_dir() / "tests/golden/models/qwen3";
    std::filesystem::copy(golden / "model.safetensors", directory_);
    write("config.json", replaced(read(golden / "config.json"), "Qwen3ForCausalLM", "MarbleForCausalLM"));
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  static std::string read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void write(std::string_view name, std::string_view text) const { std::ofstream(directory_ / name) << text; }

  static std::string marble() {
    std::string text = read(source_dir() / "millrace/model/families/qwen3.json");
    text = replaced(text, "\"family\": \"qwen3\"", "\"family\": \"marble\"");
    return replaced(text, "Qwen3ForCausalLM", "MarbleForCausalLM");
  }

  std::filesystem::path directory_;
};

TEST_F(FamilyChoice, UnknownArchitectureNamesTheNearestOnes) {
  const Result<Checkpoint> checkpoint = Checkpoint::open(directory_.string());
  ASSERT_TRUE(checkpoint.is_ok()) << checkpoint.status().message();
  const Result<Family> family = choose_family(*checkpoint, std::nullopt);
  ASSERT_FALSE(family.is_ok());
  EXPECT_THAT(family.status().message(), HasSubstr("architecture \"MarbleForCausalLM\" is not known"));
  EXPECT_THAT(family.status().message(), HasSubstr("docs/models.md"));
  write("config.json", replaced(read(directory_ / "config.json"), "MarbleForCausalLM", "Qwen3ForCasualLM"));
  const Result<Checkpoint> misspelt = Checkpoint::open(directory_.string());
  ASSERT_TRUE(misspelt.is_ok()) << misspelt.status().message();
  EXPECT_THAT(choose_family(*misspelt, std::nullopt).status().message(), HasSubstr("the nearest names are Qwen3ForCausalLM, "));
}

TEST_F(FamilyChoice, AFileFromOutsideAddsAFamily) {
  write("marble.json", marble());
  const Result<Checkpoint> checkpoint = Checkpoint::open(directory_.string());
  const Result<Family> family = choose_family(*checkpoint, (directory_ / "marble.json").string());
  ASSERT_TRUE(family.is_ok()) << family.status().message();
  EXPECT_EQ(family->name(), "marble");
  const Result<Network> network = bind_network(*family, *checkpoint);
  ASSERT_TRUE(network.is_ok()) << network.status().message();
  EXPECT_EQ(network->family, "marble");
  EXPECT_EQ(network->layers.size(), 2u);
}

TEST_F(FamilyChoice, AFileBesideTheWeightsIsFound) {
  write("millrace_family.json", marble());
  const Result<Checkpoint> checkpoint = Checkpoint::open(directory_.string());
  const Result<Family> family = choose_family(*checkpoint, std::nullopt);
  ASSERT_TRUE(family.is_ok()) << family.status().message();
  EXPECT_EQ(family->name(), "marble");
}

TEST_F(FamilyChoice, AFileThatIsNotThereIsAnError) {
  const Result<Checkpoint> checkpoint = Checkpoint::open(directory_.string());
  EXPECT_THAT(choose_family(*checkpoint, "/nowhere/x.json").status().message(), HasSubstr("/nowhere/x.json"));
}

}  // namespace
}  // namespace millrace
