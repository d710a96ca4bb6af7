#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "millrace/base/test_data.h"
#include "millrace/model/family.h"

// What binding says about checkpoints that are not what their configuration or family promises, and what it makes of each family.
namespace millrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::filesystem::path golden(std::string_view name) { return source_dir() / "tests/golden/models" / name; }

// A golden model under another configuration or with other tensors.
class ChangedModel {
 public:
  explicit ChangedModel(std::string_view name)
      : directory_(std::filesystem::path(testing::TempDir()) / fmt::format("millrace_bind_{}", name)) {
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    config_ = parse_json(read_text(golden(name) / "config.json")).value().get_object();
    weights_ = read_text(golden(name) / "model.safetensors");
  }
  ~ChangedModel() { std::filesystem::remove_all(directory_); }

  json::object& config() { return config_; }

  // Renames a tensor to another name of the same length, in the header of the file.
  void rename_tensor(std::string_view from, std::string_view to) {
    ASSERT_EQ(from.size(), to.size());
    const std::size_t at = weights_.find(fmt::format("\"{}\"", from));
    ASSERT_NE(at, std::string::npos);
    weights_.replace(at + 1, to.size(), to);
  }

  // Removes `prefix` from every tensor's name; spaces after the names keep the header's length.
  void drop_prefix(std::string_view prefix) {
    const std::string start = fmt::format("\"{}", prefix);
    for (std::size_t at = weights_.find(start); at != std::string::npos; at = weights_.find(start, at + 1)) {
      const std::size_t end = weights_.find('"', at + 1);
      const std::string name = weights_.substr(at + start.size(), end - at - start.size());
      weights_.replace(at, end + 1 - at, fmt::format("\"{}\"{}", name, std::string(prefix.size(), ' ')));
    }
  }

  // Puts a 4-bit GPTQ matrix [rows, k] in the place of a plain one, of zeros in groups of 32, whose columns are in order or have their
  // groups in reverse.
  void add_gptq(const std::string& module, int64_t rows, int64_t k, bool act_order) {
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, weights_.data(), sizeof(header_bytes));
    json::object header = parse_json(weights_.substr(sizeof(header_bytes), header_bytes)).value().get_object();
    std::string data = weights_.substr(sizeof(header_bytes) + header_bytes);
    const auto add = [&](std::string_view part, std::string_view dtype, const std::vector<int64_t>& shape,
                         const std::vector<int32_t>& numbers) {
      const auto begin = static_cast<int64_t>(data.size());
      data.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(int32_t));
      header[fmt::format("{}.{}", module, part)] = {
          {"dtype", dtype}, {"shape", json::value_from(shape)}, {"data_offsets", {begin, static_cast<int64_t>(data.size())}}};
    };
    const auto zeros = [](int64_t count) { return std::vector<int32_t>(static_cast<std::size_t>(count)); };
    std::vector<int32_t> groups(static_cast<std::size_t>(k));
    for (int64_t i = 0; i < k; ++i) groups[static_cast<std::size_t>(i)] = static_cast<int32_t>((act_order ? k - 1 - i : i) / 32);
    add("qweight", "I32", {k / 8, rows}, zeros(k / 8 * rows));
    add("qzeros", "I32", {k / 32, rows / 8}, zeros(k / 32 * rows / 8));
    add("scales", "F32", {k / 32, rows}, zeros(k / 32 * rows));
    add("g_idx", "I32", {k}, groups);
    if (const json::value* plain = header.if_contains(module + ".weight")) {  // whose bytes need a name, and one that nobody reads
      header[module + ".input_scale"] = json::value(*plain);
      header.erase(module + ".weight");
    }
    const std::string text = json::serialize(header);
    header_bytes = text.size();
    weights_.assign(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes)).append(text).append(data);
  }

  Result<Network> bind() {
    std::filesystem::remove(directory_ / "config.json");  // ext4 waits for the disk when a file is truncated and written again
    std::ofstream(directory_ / "config.json") << json::serialize(config_);
    if (!weights_.empty()) std::ofstream(directory_ / "model.safetensors", std::ios::binary) << std::exchange(weights_, {});
    Result<Checkpoint> checkpoint = Checkpoint::open(directory_.string());
    if (!checkpoint.is_ok()) return checkpoint.status();
    checkpoint_ = std::make_unique<Checkpoint>(std::move(checkpoint).value());
    MR_ASSIGN_OR_RETURN(const Family family, choose_family(*checkpoint_, std::nullopt));
    return bind_network(family, *checkpoint_);
  }

 private:
  std::filesystem::path directory_;
  json::object config_;
  std::string weights_;                     // not yet written
  std::unique_ptr<Checkpoint> checkpoint_;  // the network views it
};

struct BadConfig {
  std::string_view field;
  std::string_view value;  // JSON; empty: the field is removed
  std::string_view message;
};

TEST(BindNetwork, RefusesHostileConfigurations) {
  const BadConfig table[] = {
      {"num_hidden_layers", "1000000", "layers[0].count: \"num_hidden_layers\" is 1000000, expected an integer from 0 to 4096"},
      {"num_hidden_layers", "-1", "expected an integer from 0 to 4096"},
      {"num_hidden_layers", "0", "no layers"},
      {"num_hidden_layers", "\"3\"", "is '3', expected an integer"},
      {"num_hidden_layers", "2.5", "is 2.5, expected an integer"},
      {"num_hidden_layers", "", "llama.json: layers[0].count: the configuration has no field \"num_hidden_layers\""},
      {"num_hidden_layers", "4", "missing tensor \"model.layers.3.input_layernorm.weight\" (llama.json: layers[0].attention.norm)"},
      {"num_hidden_layers", "2", "tensor(s) have no use in llama.json: \"model.layers.2."},
      {"hidden_size", "0", "hidden_size: \"hidden_size\" is 0"},
      {"hidden_size", "-64", "expected an integer from 1 to 262144"},
      {"hidden_size", "1e30", "expected an integer"},
      {"hidden_size", "18446744073709551615", "expected an integer"},
      {"hidden_size", "32", "\"model.embed_tokens.weight\" is [640, 64], expected [vocab_size, hidden_size] = [640, 32]"},
      {"vocab_size", "641", "is [640, 64], expected [vocab_size, hidden_size] = [641, 64]"},
      {"vocab_size", "0", "vocab_size"},
      {"num_attention_heads", "0", "num_heads"},
      {"num_attention_heads", "-4", "expected an integer from 1 to 4096"},
      {"num_attention_heads", "8",
       "\"model.layers.0.self_attn.q_proj.weight\" is [64, 64], expected [num_heads * head_dim, hidden_size] = [128, 64]"},
      {"num_attention_heads", "[4]", "is a list, expected an integer"},
      {"num_key_value_heads", "3", "expected a multiple of num_kv_heads = 3"},
      {"num_key_value_heads", "0", "expected an integer from 1 to 4096"},
      {"num_key_value_heads", "", "k_proj.weight\" is [32, 64], expected [num_kv_heads * head_dim, hidden_size] = [64, 64]"},
      {"head_dim", "0", "head_dim"},
      {"head_dim", "1", "rotary dimension is 1"},
      {"head_dim", "100000", "expected an integer from 1 to 512"},
      {"head_dim", "true", "is true, expected an integer"},
      {"intermediate_size", "161", "expected [intermediate_size, hidden_size] = [161, 64]"},
      {"intermediate_size", "9999999", "expected an integer from 1 to 4194304"},
      {"max_position_embeddings", "0", "max_positions"},
      {"max_position_embeddings", "1e15", "max_positions"},
      {"rms_norm_eps", "-1", "norm.eps"},
      {"rms_norm_eps", "1e300", "norm.eps"},
      {"rope_theta", "0", "theta"},
      {"rope_theta", "\"big\"", "is 'big', expected a number"},
      {"rope_scaling", "[]", "is a list, expected an object or none"},
      {"rope_scaling", R"({"rope_type": "llama3", "factor": null})", "needs the parameter \"factor\""},
      {"rope_scaling", R"({"rope_type": "linear", "factor": -1e308})", "\"factor\" is -1E308"},
      {"hidden_act", "\"swoosh\"", "is 'swoosh', expected one of silu, swish, gelu"},
      {"attention_bias", "true", "missing tensor \"model.layers.0.self_attn.q_proj.bias\""},
      {"attention_bias", "1", "is 1, expected true or false"},
      {"partial_rotary_factor", "7", "partial_rotary_factor"},
      {"quantization_config", R"({"quant_method": "quip"})", "quant_method is \"quip\", supported are gptq"},
      {"quantization_config", R"({"quant_method": "gptq"})", "quantization_config.bits is missing, expected an integer from 2 to 8"},
      {"architectures", "[]", "does not name an architecture"},
      {"architectures", "null", "does not name an architecture"},
  };
  for (const BadConfig& bad : table) {
    SCOPED_TRACE(fmt::format("{} = {}", bad.field, bad.value));
    ChangedModel model("llama");
    if (bad.value.empty()) {
      model.config().erase(bad.field);
    } else {
      model.config()[bad.field] = json::parse(bad.value);
    }
    const Result<Network> network = model.bind();
    ASSERT_FALSE(network.is_ok());
    EXPECT_THAT(network.status().message(), HasSubstr(bad.message));
  }
}

// Every field of every golden configuration with values that strangers send: an answer, whichever, and no crash.
TEST(BindNetwork, SurvivesAnyValueOfAnyField) {
  const std::string_view nasty[] = {"null",
                                    "true",
                                    "0",
                                    "-1",
                                    "0.5",
                                    "9223372036854775807",
                                    "-9223372036854775808",
                                    "18446744073709551615",
                                    "1e308",
                                    "-1e308",
                                    "\"\"",
                                    "\"9\"",
                                    "[]",
                                    "[1, null]",
                                    "{}",
                                    R"({"rope_type": "yarn", "factor": 1e308})",
                                    R"({"full_attention": []})"};
  for (const char* name : {"llama", "gemma3_text", "phi3", "gpt2", "falcon", "qwen2_moe", "olmo3"}) {
    ChangedModel model(name);
    const json::object original = model.config();
    int refused = 0;
    for (const auto& [field, value] : original) {
      for (const std::string_view text : nasty) {
        model.config()[field] = json::parse(text);
        const Result<Network> network = model.bind();
        refused += network.is_ok() ? 0 : 1;
        EXPECT_TRUE(network.is_ok() || !network.status().message().empty()) << field;
      }
      model.config()[field] = value;
    }
    EXPECT_GT(refused, 30) << name;
    EXPECT_TRUE(model.bind().is_ok()) << name;
  }
}

TEST(BindNetwork, MissingAndUnusedTensorsAreNamed) {
  ChangedModel model("llama");
  model.rename_tensor("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.gate_prok.weight");
  const Result<Network> network = model.bind();
  ASSERT_FALSE(network.is_ok());
  EXPECT_THAT(network.status().message(),
              HasSubstr("missing tensor \"model.layers.1.mlp.gate_proj.weight\" (llama.json: layers[0].mlp.gate)"));
}

TEST(BindNetwork, AlternativeNamesAreAllInTheMessage) {
  ChangedModel model("gpt2");
  model.rename_tensor("transformer.ln_f.weight", "transformer.ln_g.weight");
  EXPECT_THAT(model.bind().status().message(),
              HasSubstr("missing tensor \"transformer.ln_f.weight\" or \"ln_f.weight\" (gpt2.json: final_norm)"));
}

TEST(BindNetwork, Gpt2WithoutItsPrefix) {
  ChangedModel model("gpt2");  // as openai-community/gpt2 was published
  model.drop_prefix("transformer.");
  const Result<Network> network = model.bind();
  ASSERT_TRUE(network.is_ok()) << network.status().message();
  EXPECT_EQ(network->embedding.tensor->name, "wte.weight");
  EXPECT_EQ(network->layers[1].mlp.up.weight.tensor->name, "h.1.mlp.c_fc.weight");
}

// Definitions that double at every level would take 2^40 steps.
TEST(BindNetwork, DefinitionsThatExplodeRunOutOfFuel) {
  const Checkpoint checkpoint = Checkpoint::open(golden("llama").string()).value();
  json::object description = choose_family(checkpoint, std::nullopt)->description();
  json::object definitions;
  for (int level = 0; level < 40; ++level) definitions[fmt::format("f{}", level)] = fmt::format("f{} + f{}", level + 1, level + 1);
  definitions["f40"] = "1";
  description["config"] = definitions;
  description["hidden_size"] = "f0";
  const Family family = Family::parse(json::serialize(description), "bomb.json").value();
  EXPECT_EQ(bind_network(family, checkpoint).status().code(), StatusCode::kResourceExhausted);
}

// Inside its own definition a name is the file's field; a circle of definitions ends there too.
TEST(BindNetwork, DefinitionsMayUseTheFieldTheyReplace) {
  const Checkpoint checkpoint = Checkpoint::open(golden("llama").string()).value();
  json::object description = choose_family(checkpoint, std::nullopt)->description();
  description["config"] = json::parse(R"({"hidden_size": "hidden_size * one", "one": "two", "two": "one ?? 1"})");
  const Family family = Family::parse(json::serialize(description), "circle.json").value();
  const Result<Network> network = bind_network(family, checkpoint);
  ASSERT_TRUE(network.is_ok()) << network.status().message();
  EXPECT_EQ(network->hidden_size, 64);
}

// The stored numbers of one row of a matrix.
std::vector<float> stored_row(const MatrixSource& matrix, int64_t row) {
  std::vector<float> numbers;
  const float* data = reinterpret_cast<const float*>(matrix.tensor->data.data());
  const int64_t source = matrix.row_map[static_cast<std::size_t>(row)];
  for (int64_t i = 0; i < matrix.k; ++i) {
    numbers.push_back(matrix.transposed ? data[i * matrix.tensor->shape[1] + source] : data[source * matrix.k + i]);
  }
  return numbers;
}

struct BoundGolden {
  Checkpoint checkpoint;
  Network network;
};

std::unique_ptr<BoundGolden> bind_golden(std::string_view name) {
  auto bound = std::make_unique<BoundGolden>(BoundGolden{Checkpoint::open(golden(name).string()).value(), {}});
  bound->network = bind_network(choose_family(bound->checkpoint, std::nullopt).value(), bound->checkpoint).value();
  return bound;
}

TEST(BindNetwork, Llama3Rope) {
  const auto bound = bind_golden("llama");
  const Network& network = bound->network;
  const AttentionLayer& attention = network.layers[2].attention;
  ASSERT_TRUE(attention.rope);
  EXPECT_EQ(attention.rope->pairing, Rope::Pairing::kHalf);
  EXPECT_EQ(attention.rope->rotary_dim, 16);
  EXPECT_FLOAT_EQ(attention.rope->inv_freq[0], 1.0f);
  EXPECT_FLOAT_EQ(attention.rope->inv_freq[7] * 8, std::pow(500000.0f, -14.0f / 16));
  EXPECT_FLOAT_EQ(attention.scale, 0.25f);
  EXPECT_FALSE(attention.window || attention.softcap || attention.q_norm || attention.post_norm);
  EXPECT_EQ(network.max_positions, 256);
  EXPECT_FALSE(network.layers[0].parallel_residual);
  EXPECT_EQ(network.layers[0].mlp.activation, Activation::kSilu);
  EXPECT_TRUE(network.layers[0].mlp.gated);
}

TEST(BindNetwork, LlamaOfTheNewerConfigHasBiasesAndLinearRope) {
  const auto bound = bind_golden("llama-v5cfg");
  const DecoderLayer& layer = bound->network.layers[0];
  EXPECT_EQ(layer.attention.q.bias.size(), 96u);
  EXPECT_EQ(layer.attention.o.bias.size(), 64u);
  EXPECT_EQ(layer.mlp.down.bias.size(), 64u);
  EXPECT_FLOAT_EQ(layer.attention.rope->inv_freq[0], 0.25f);
  EXPECT_EQ(bound->network.head.weight.tensor->name, "model.embed_tokens.weight");
}

// Published configurations leave out what equals the class's default in transformers.
TEST(BindNetwork, FieldsLeftOutTakeTheDefaultsOfTransformers) {
  const struct {
    const char* model;
    int64_t max_positions;
    float eps;
  } cases[] = {{"llama-v5cfg", 2048, 1e-6f}, {"mistral", 131072, 1e-6f},     {"qwen2", 32768, 1e-6f}, {"qwen3", 32768, 1e-6f},
               {"gemma2", 8192, 1e-6f},      {"gemma3_text", 131072, 1e-6f}, {"phi3", 4096, 1e-5f}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.model);
    ChangedModel model(c.model);
    model.config().erase("max_position_embeddings");
    model.config().erase("rms_norm_eps");
    const Result<Network> network = model.bind();
    ASSERT_TRUE(network.is_ok()) << network.status().message();
    EXPECT_EQ(network->max_positions, c.max_positions);
    EXPECT_FLOAT_EQ(network->final_norm->eps, c.eps);
  }
}

TEST(BindNetwork, DynamicRopeHasALongVariant) {
  const auto bound = bind_golden("llama2-spm");
  const Rope& rope = *bound->network.layers[0].attention.rope;
  EXPECT_EQ(rope.short_length, 256);
  EXPECT_EQ(bound->network.max_positions, 512);
  EXPECT_LT(rope.long_inv_freq[7], rope.inv_freq[7]);
}

TEST(BindNetwork, MistralSlidesEverywhere) {
  const auto bound = bind_golden("mistral");
  for (const DecoderLayer& layer : bound->network.layers) EXPECT_EQ(layer.attention.window, 16);
}

TEST(BindNetwork, QwenSlidesWhereAskedTo) {
  ChangedModel model("qwen2");
  model.config()["use_sliding_window"] = true;
  model.config()["sliding_window"] = 32;
  model.config()["max_window_layers"] = 1;
  EXPECT_FALSE(model.bind()->layers[1].attention.window) << "layer_types say full_attention and count before max_window_layers";
  model.config().erase("layer_types");
  const Result<Network> network = model.bind();
  ASSERT_TRUE(network.is_ok()) << network.status().message();
  EXPECT_FALSE(network->layers[0].attention.window);
  EXPECT_EQ(network->layers[1].attention.window, 32);
  EXPECT_EQ(network->layers[1].attention.q.bias.size(), 64u);
  EXPECT_TRUE(network->layers[1].attention.o.bias.empty());
}

TEST(BindNetwork, Gemma2) {
  const auto bound = bind_golden("gemma2");
  const Network& network = bound->network;
  EXPECT_FLOAT_EQ(network.embedding_multiplier, 8.0f);
  EXPECT_FLOAT_EQ(*network.logits_softcap, 10.0f);
  EXPECT_EQ(network.layers[0].attention.window, 16);
  EXPECT_FALSE(network.layers[1].attention.window);
  const DecoderLayer& layer = network.layers[3];
  EXPECT_FLOAT_EQ(layer.attention.scale, 1 / std::sqrt(24.0f));
  EXPECT_FLOAT_EQ(*layer.attention.softcap, 6.0f);
  EXPECT_TRUE(layer.attention.post_norm && layer.mlp.post_norm && layer.mlp.norm);
  EXPECT_EQ(layer.mlp.activation, Activation::kGeluTanh);
  EXPECT_NEAR(layer.attention.norm->weight[0], 1.0f, 0.9f) << "the stored weight is a difference from one";
  const auto transforms =
      std::find_if(network.bindings.begin(), network.bindings.end(), [](const auto& b) { return b.role == "final_norm"; });
  ASSERT_NE(transforms, network.bindings.end());
  EXPECT_EQ(transforms->transforms, "add one");
}

TEST(BindNetwork, Gemma3HasTwoRopes) {
  const auto bound = bind_golden("gemma3_text");
  const auto last = [&](int layer) { return bound->network.layers[static_cast<std::size_t>(layer)].attention.rope->inv_freq[7]; };
  EXPECT_FLOAT_EQ(last(0), std::pow(10000.0f, -14.0f / 16));
  EXPECT_FLOAT_EQ(last(2), std::pow(1000000.0f, -14.0f / 16));
  EXPECT_FALSE(bound->network.layers[2].attention.window);
  EXPECT_EQ(bound->network.layers[3].attention.window, 16);
  EXPECT_TRUE(bound->network.layers[0].attention.q_norm);
  EXPECT_FALSE(bound->network.logits_softcap);
}

TEST(BindNetwork, Gemma3OfTheOlderConfig) {
  ChangedModel model("gemma3_text");
  for (const char* field : {"rope_parameters", "layer_types", "_sliding_window_pattern"}) model.config().erase(field);
  model.config()["sliding_window_pattern"] = 2;
  model.config()["rope_theta"] = 1000000.0;
  model.config()["rope_local_base_freq"] = 10000.0;
  model.config()["rope_scaling"] = json::parse(R"({"rope_type": "linear", "factor": 8.0})");
  const Result<Network> network = model.bind();
  ASSERT_TRUE(network.is_ok()) << network.status().message();
  EXPECT_EQ(network->layers[0].attention.window, 16);
  EXPECT_FLOAT_EQ(network->layers[0].attention.rope->inv_freq[0], 1.0f);
  EXPECT_FALSE(network->layers[1].attention.window);
  EXPECT_FLOAT_EQ(network->layers[1].attention.rope->inv_freq[0], 0.125f);
}

TEST(BindNetwork, Phi3SplitsItsFusedMatrices) {
  const auto bound = bind_golden("phi3");
  const DecoderLayer& layer = bound->network.layers[1];
  EXPECT_EQ(layer.attention.k.weight.row_map.front(), 64);
  EXPECT_EQ(layer.attention.v.weight.row_map.back(), 127);
  EXPECT_EQ(layer.mlp.gate.weight.tensor, layer.mlp.up.weight.tensor);
  EXPECT_EQ(layer.mlp.up.weight.row_map.front(), 160);
}

TEST(BindNetwork, Gpt2IsTransposedAndHasLearnedPositions) {
  const auto bound = bind_golden("gpt2");
  const Network& network = bound->network;
  ASSERT_TRUE(network.positions);
  EXPECT_EQ(network.positions->rows(), 256);
  EXPECT_EQ(network.max_positions, 256);
  const DecoderLayer& layer = network.layers[0];
  EXPECT_TRUE(layer.attention.q.weight.transposed && layer.mlp.down.weight.transposed);
  EXPECT_FALSE(network.head.weight.transposed);
  EXPECT_EQ(layer.attention.norm->kind, Norm::Kind::kLayer);
  EXPECT_EQ(layer.attention.v.bias.size(), 64u);
  EXPECT_FALSE(layer.attention.rope || layer.mlp.gated);
  const float* data = reinterpret_cast<const float*>(layer.attention.k.weight.tensor->data.data());
  EXPECT_EQ(stored_row(layer.attention.k.weight, 3)[2], data[2 * 192 + 64 + 3]);
}

TEST(BindNetwork, FalconIsParallelWithOneNorm) {
  const auto bound = bind_golden("falcon");
  const DecoderLayer& layer = bound->network.layers[0];
  EXPECT_TRUE(layer.parallel_residual);
  EXPECT_TRUE(layer.shared_norm);
  EXPECT_FALSE(layer.mlp.norm);
  EXPECT_EQ(layer.mlp.activation, Activation::kGeluErf);
  EXPECT_EQ(layer.attention.k.weight.row_map.front(), 64);
}

TEST(BindNetwork, FalconRefusesAlibiByName) {
  ChangedModel model("falcon");
  model.config()["alibi"] = true;
  EXPECT_THAT(model.bind().status().message(), HasSubstr("falcon.json: require[0].that: Falcon-RW's ALiBi"));
}

TEST(BindNetwork, BloomInterleavesItsHeads) {
  const auto bound = bind_golden("bloom");
  const Network& network = bound->network;
  EXPECT_TRUE(network.embedding_norm);
  const AttentionLayer& attention = network.layers[0].attention;
  EXPECT_THAT(attention.alibi_slopes, ElementsAre(0.25f, 0.0625f, 0.015625f, 0.00390625f));
  EXPECT_EQ(attention.q.weight.row_map[16], 48);
  EXPECT_EQ(attention.k.weight.row_map[16], 64);
  EXPECT_EQ(attention.v.weight.row_map[0], 32);
  EXPECT_EQ(attention.k.bias.size(), 64u);
  EXPECT_EQ(network.max_positions, 2048);
}

TEST(BindNetwork, OpenMixturesOfExpertsAreRefusedByName) {
  struct {
    std::string_view model, field, value, message;
  } const table[] = {
      {"mixtral", "num_local_experts", "0",
       "moe.num_experts (layer 0): \"num_experts ?? num_local_experts\" is 0, expected an integer from 1 to 1024"},
      {"mixtral", "num_local_experts", "100000", "expected an integer from 1 to 1024"},
      {"mixtral", "num_local_experts", "5", "block_sparse_moe.gate.weight\" is [4, 64], expected [num_experts, hidden_size] = [5, 64]"},
      {"mixtral", "num_local_experts", "3", "block_sparse_moe.gate.weight\" is [4, 64], expected [num_experts, hidden_size] = [3, 64]"},
      {"mixtral", "num_experts_per_tok", "5",
       "moe.experts_per_token (layer 0): \"num_experts_per_tok\" is 5, expected an integer from 1 to 4"},
      {"mixtral", "num_experts_per_tok", "0", "expected an integer from 1 to 4"},
      {"mixtral", "intermediate_size", "161", "experts.0.w1.weight\" is [160, 64], expected [intermediate_size, hidden_size] = [161, 64]"},
      {"qwen2_moe", "shared_expert_intermediate_size", "81", "expected [intermediate_size, hidden_size] = [81, 64]"},
      {"qwen2_moe", "mlp_only_layers", "[1]",
       "missing tensor \"model.layers.1.mlp.gate_proj.weight\" (qwen2_moe.json: layers[0].mlp.gate)"},
      {"granite_moe", "intermediate_size", "33",
       "input_linear.weight\" is [6, 64, 64], expected [num_experts, 2 * intermediate_size, hidden_size] = [6, 66, 64]"},
      {"granite_moe", "num_local_experts", "7", "expected [num_experts, hidden_size] = [7, 64]"},
  };
  for (const auto& bad : table) {
    SCOPED_TRACE(fmt::format("{} {} = {}", bad.model, bad.field, bad.value));
    ChangedModel model(bad.model);
    model.config()[bad.field] = parse_json(bad.value).value();
    const Result<Network> network = model.bind();
    ASSERT_FALSE(network.is_ok());
    EXPECT_THAT(network.status().message(), HasSubstr(bad.message));
  }
  ChangedModel model("mixtral");
  model.rename_tensor("model.layers.1.block_sparse_moe.experts.2.w3.weight", "model.layers.1.block_sparse_moe.experts.2.w4.weight");
  EXPECT_THAT(model.bind().status().message(),
              HasSubstr("missing tensor \"model.layers.1.block_sparse_moe.experts.2.w3.weight\", expected 4 of them"));
}

TEST(BindNetwork, ExpertsMayBeInActOrder) {
  ChangedModel model("mixtral");
  model.config()["quantization_config"] = parse_json(R"({"quant_method": "gptq", "bits": 4, "group_size": 32})").value();
  for (int e = 0; e < 4; ++e) model.add_gptq(fmt::format("model.layers.0.block_sparse_moe.experts.{}.w2", e), 64, 160, e == 2);
  const Result<Network> network = model.bind();
  ASSERT_TRUE(network.is_ok()) << network.status().message();
  const auto& experts = network->layers[0].mlp.mixture->experts;
  EXPECT_TRUE(experts[1].down.weight.grouped->columns.empty());
  EXPECT_EQ(experts[2].down.weight.grouped->columns.size(), 160u);
}

TEST(BindNetwork, SomeLayersOfAMixtureAreDense) {
  ChangedModel model("qwen3_moe-dense");
  const Network network = model.bind().value();
  ASSERT_EQ(network.layers.size(), 2u);
  const MlpLayer &dense = network.layers[0].mlp, &sparse = network.layers[1].mlp;
  EXPECT_FALSE(dense.mixture);
  EXPECT_EQ(dense.up.weight.rows(), 64);
  ASSERT_TRUE(sparse.mixture);
  EXPECT_EQ(sparse.mixture->experts.size(), 5u);
  EXPECT_EQ(sparse.up.weight.tensor, nullptr);
}

TEST(BindNetwork, HeadsHaveNormsOfTheirOwn) {
  ChangedModel stablelm("stablelm-parallel"), cohere("cohere"), olmo2("olmo2");
  for (ChangedModel* model : {&stablelm, &cohere}) {  // a tensor for each head; one of all
    const AttentionLayer attention = model->bind().value().layers[0].attention;
    EXPECT_EQ(attention.head_norm, HeadNorm::kEachHead);
    EXPECT_EQ(attention.q_norm->weight.size(), 64u);
    EXPECT_EQ(attention.k_norm->weight.size(), 32u);
  }
  const AttentionLayer attention = olmo2.bind().value().layers[0].attention;
  EXPECT_EQ(attention.head_norm, HeadNorm::kAllHeads);
  EXPECT_EQ(attention.q_norm->weight.size(), 64u);
  stablelm.config()["num_attention_heads"] = 8;
  EXPECT_THAT(stablelm.bind().status().message(),
              HasSubstr("k_proj.weight\" is [32, 64], expected [num_kv_heads * head_dim, hidden_size] = [16, 64]"));
  cohere.config()["num_key_value_heads"] = 1;
  EXPECT_THAT(cohere.bind().status().message(), HasSubstr("k_proj.weight"));
}

TEST(BindNetwork, ANormWithoutANameHasNoWeights) {
  ChangedModel model("olmo");
  const Network network = model.bind().value();
  ASSERT_TRUE(network.final_norm && network.layers[0].attention.norm);
  EXPECT_EQ(network.final_norm->kind, Norm::Kind::kLayer);
  EXPECT_TRUE(network.final_norm->weight.empty() && network.final_norm->bias.empty());
  EXPECT_FLOAT_EQ(*network.layers[0].attention.clip, 0.8f);
}

}  // namespace
}  // namespace millrace
