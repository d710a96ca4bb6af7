#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "millrace/base/test_data.h"
#include "millrace/model/family.h"

namespace millrace {
namespace {

struct GoldenCase {
  std::string name, family;
  int64_t layers, num_heads, num_kv_heads, head_dim, intermediate, vocab;
  bool tied;
  int64_t hidden = 64;
};

std::ostream& operator<<(std::ostream& out, const GoldenCase& golden) { return out << golden.name; }

class BindGolden : public testing::TestWithParam<GoldenCase> {};

TEST_P(BindGolden, EveryTensorFindsItsPlace) {
  const GoldenCase& golden = GetParam();
  const Result<Checkpoint> checkpoint = Checkpoint::open((source_dir() / "tests/golden/models" / golden.name).string());
  ASSERT_TRUE(checkpoint.is_ok()) << checkpoint.status().message();
  const Result<Family> family = choose_family(*checkpoint, std::nullopt);
  ASSERT_TRUE(family.is_ok()) << family.status().message();
  EXPECT_EQ(family->name(), golden.family);
  const Result<Network> network = bind_network(*family, *checkpoint);
  ASSERT_TRUE(network.is_ok()) << network.status().message();

  EXPECT_EQ(network->hidden_size, golden.hidden);
  EXPECT_EQ(network->vocab_size, golden.vocab);
  EXPECT_EQ(network->tied_head, golden.tied);
  EXPECT_EQ(network->head.weight.rows(), golden.vocab);
  ASSERT_EQ(static_cast<int64_t>(network->layers.size()), golden.layers);
  for (const DecoderLayer& layer : network->layers) {
    const AttentionLayer& attention = layer.attention;
    EXPECT_EQ(attention.num_heads, golden.num_heads);
    EXPECT_EQ(attention.num_kv_heads, golden.num_kv_heads);
    EXPECT_EQ(attention.head_dim, golden.head_dim);
    EXPECT_EQ(attention.q.weight.rows(), golden.num_heads * golden.head_dim);
    EXPECT_EQ(attention.k.weight.rows(), golden.num_kv_heads * golden.head_dim);
    EXPECT_EQ(attention.v.weight.rows(), golden.num_kv_heads * golden.head_dim);
    EXPECT_EQ(attention.o.weight.rows(), golden.hidden);
    EXPECT_EQ(attention.o.weight.k, golden.num_heads * golden.head_dim);
    const auto expect_mlp = [&](const auto& mlp) {
      EXPECT_EQ(mlp.up.weight.rows(), golden.intermediate);
      EXPECT_EQ(mlp.down.weight.k, golden.intermediate);
    };
    if (!layer.mlp.mixture) {
      expect_mlp(layer.mlp);
    } else {
      for (const Expert& expert : layer.mlp.mixture->experts) expect_mlp(expert);
    }
  }
  EXPECT_EQ(network->bindings.size(), checkpoint->tensors().size());
}

// Nothing but the description counts: under another name, for another architecture, the same network comes out.
TEST_P(BindGolden, NamesOfFamiliesMeanNothing) {
  const Checkpoint checkpoint = Checkpoint::open((source_dir() / "tests/golden/models" / GetParam().name).string()).value();
  const Family family = choose_family(checkpoint, std::nullopt).value();
  json::object description = family.description();
  description["family"] = "marble";
  description["architectures"] = "MarbleForCausalLM";
  const Result<Family> renamed = Family::parse(json::serialize(description), "marble.json");
  ASSERT_TRUE(renamed.is_ok()) << renamed.status().message();
  const Result<Network> network = bind_network(*renamed, checkpoint);
  ASSERT_TRUE(network.is_ok()) << network.status().message();
  EXPECT_EQ(network->family, "marble");
  const Network original = bind_network(family, checkpoint).value();
  ASSERT_EQ(network->bindings.size(), original.bindings.size());
  for (std::size_t i = 0; i < original.bindings.size(); ++i) {
    EXPECT_EQ(network->bindings[i].tensor, original.bindings[i].tensor);
    EXPECT_EQ(network->bindings[i].role, original.bindings[i].role);
    EXPECT_EQ(network->bindings[i].transforms, original.bindings[i].transforms);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Families, BindGolden,
    testing::Values(
        GoldenCase{"llama", "llama", 3, 4, 2, 16, 160, 640, false}, GoldenCase{"llama-v5cfg", "llama", 2, 4, 4, 24, 160, 640, true},
        GoldenCase{"llama2-spm", "llama", 2, 4, 4, 16, 160, 876, false}, GoldenCase{"mistral", "mistral", 2, 4, 2, 16, 160, 876, false},
        GoldenCase{"qwen2", "qwen2", 2, 4, 2, 16, 160, 640, true}, GoldenCase{"qwen3", "qwen3", 2, 4, 2, 32, 160, 640, false},
        GoldenCase{"gemma2", "gemma2", 4, 4, 2, 16, 160, 640, true}, GoldenCase{"gemma3_text", "gemma3", 4, 4, 2, 16, 160, 640, true},
        GoldenCase{"phi3", "phi3", 2, 4, 2, 16, 160, 640, false}, GoldenCase{"gpt2", "gpt2", 2, 4, 4, 16, 256, 600, true},
        GoldenCase{"falcon", "falcon", 2, 4, 1, 16, 256, 600, true}, GoldenCase{"bloom", "bloom", 2, 4, 4, 16, 256, 600, true},
        GoldenCase{"opt", "opt", 2, 4, 4, 16, 128, 600, true}, GoldenCase{"gptj", "gptj", 2, 4, 4, 16, 256, 600, false},
        GoldenCase{"gpt_bigcode", "gpt_bigcode", 2, 4, 1, 16, 256, 600, true}, GoldenCase{"phi", "phi", 2, 4, 4, 16, 160, 640, false},
        GoldenCase{"granite", "granite", 2, 4, 2, 16, 160, 640, false}, GoldenCase{"gpt_neox", "gpt_neox", 2, 4, 4, 16, 128, 600, false},
        GoldenCase{"mpt", "mpt", 2, 6, 6, 8, 192, 600, true, 48}, GoldenCase{"starcoder2", "starcoder2", 2, 4, 2, 16, 112, 600, true},
        GoldenCase{"stablelm", "stablelm", 2, 4, 2, 16, 112, 640, false},
        GoldenCase{"stablelm-parallel", "stablelm", 2, 4, 2, 16, 112, 640, false}, GoldenCase{"olmo", "olmo", 2, 4, 4, 16, 112, 640, true},
        GoldenCase{"olmo2", "olmo2", 2, 4, 2, 16, 112, 640, false}, GoldenCase{"olmo3", "olmo2", 4, 4, 2, 16, 64, 640, true},
        GoldenCase{"cohere", "cohere", 2, 4, 2, 16, 112, 640, true}, GoldenCase{"cohere2", "cohere2", 4, 4, 2, 16, 64, 640, true},
        GoldenCase{"glm", "glm4", 2, 4, 2, 16, 112, 640, false}, GoldenCase{"glm4", "glm4", 2, 4, 2, 16, 112, 640, false},
        GoldenCase{"smollm3", "smollm3", 4, 4, 2, 16, 64, 640, true}, GoldenCase{"gemma", "gemma", 2, 4, 1, 32, 112, 640, true},
        GoldenCase{"phi4-mini", "phi3", 2, 4, 2, 16, 112, 640, true}, GoldenCase{"llama-yarn", "llama", 2, 4, 2, 16, 112, 640, true},
        GoldenCase{"mixtral", "mixtral", 2, 4, 2, 16, 160, 640, false}, GoldenCase{"qwen2_moe", "qwen2_moe", 2, 4, 2, 16, 48, 640, false},
        GoldenCase{"qwen3_moe", "qwen3_moe", 2, 4, 2, 16, 16, 640, true}, GoldenCase{"olmoe", "olmoe", 2, 4, 4, 16, 32, 640, true},
        GoldenCase{"granite_moe", "granite_moe", 2, 4, 2, 16, 32, 640, true},
        GoldenCase{"granite_moe_shared", "granite_moe", 2, 4, 2, 16, 32, 640, true},
        GoldenCase{"gpt_oss", "gpt_oss", 2, 4, 2, 16, 32, 640, false}, GoldenCase{"gpt_oss-mxfp4", "gpt_oss", 2, 4, 2, 16, 32, 640, false}),
    [](const auto& golden) {
      std::string name = golden.param.name;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

}  // namespace
}  // namespace millrace
