// What binding makes of layers with a state in place of attention: short convolutions and state spaces, from directories and as llama.cpp's
// converter writes them; and what it says about those that are not what they should be.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "millrace/base/test_data.h"
#include "millrace/model/family.h"
#include "millrace/model/gguf_test_writer.h"
#include "millrace/model/program.h"
#include "millrace/tensor/dequantize.h"

namespace millrace {
namespace {

using gguf_test::Tensor;
using gguf_test::Writer;
using testing::HasSubstr;

// Both outlive the network.
struct Bound {
  Checkpoint checkpoint;
  Network network;
};

Result<std::unique_ptr<Bound>> bind(const std::filesystem::path& path) {
  MR_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(path.string()));
  auto bound = std::make_unique<Bound>(Bound{std::move(checkpoint), {}});
  MR_ASSIGN_OR_RETURN(const Family family, choose_family(bound->checkpoint, std::nullopt));
  MR_ASSIGN_OR_RETURN(bound->network, bind_network(family, bound->checkpoint));
  return bound;
}

std::unique_ptr<Bound> golden(std::string_view name) {
  auto bound = bind(source_dir() / "tests/golden/models" / name);
  MR_CHECK(bound.is_ok(), bound.status().message());
  return std::move(bound).value();
}

TEST(BindState, ShortConvolutionsStandBetweenAttention) {
  const auto bound = golden("lfm2");
  const Network& network = bound->network;
  ASSERT_EQ(network.layers.size(), 3u);
  EXPECT_TRUE(network.layers[0].convolution && network.layers[2].convolution && network.layers[1].has_attention());
  EXPECT_EQ(network.layers[1].attention.num_kv_heads, 2);
  const ShortConvolution& layer = *network.layers[0].convolution;
  EXPECT_EQ(layer.in.weight.rows(), 3 * 64);
  EXPECT_EQ(layer.convolution.num_taps, 3);
  EXPECT_EQ(layer.convolution.weights.size(), 3u * 64u);
  EXPECT_TRUE(layer.convolution.bias.empty() && layer.norm && network.layers[0].mlp.norm);
  EXPECT_EQ(network.bindings.size(), bound->checkpoint.tensors().size());
  // [channels, 1, taps] -> [taps, channels], the oldest token's first as stored.
  const SourceTensor& stored = *bound->checkpoint.find("model.layers.0.conv.conv.weight");
  std::vector<float> numbers(3 * 64);
  dequantize_row(stored.dtype, stored.data.data(), 3 * 64, numbers.data());
  EXPECT_EQ(layer.convolution.weights[2 * 64 + 5], numbers[5 * 3 + 2]);
}

TEST(BindState, TheMlpOfLfm2IsComputedAsTheConfigurationSays) {
  const auto bound = golden("lfm2-adjusted");
  const Network& network = bound->network;
  ASSERT_EQ(network.layers.size(), 3u);
  // 144 * 2 / 3 * 1.2 = 115, rounded up to a multiple of 16.
  EXPECT_EQ(network.layers[0].mlp.up.weight.rows(), 128);
  EXPECT_TRUE(network.layers[1].has_attention() && !network.layers[2].has_attention());
  EXPECT_EQ(network.layers[0].convolution->convolution.bias.size(), 48u);
  EXPECT_EQ(network.layers[0].convolution->in.bias.size(), 3u * 48u);
}

TEST(BindState, StateSpacesHaveADecayForEachStateOrEachHead) {
  const auto mamba = golden("mamba"), mamba2 = golden("mamba2"), limited = golden("mamba2-limited");
  const StateSpace& space = *mamba->network.layers[0].state_space;
  EXPECT_FALSE(mamba->network.layers[0].has_mlp);
  EXPECT_EQ(std::tuple(space.num_channels, space.num_heads, space.num_groups, space.num_states), std::tuple(128, 128, 1, 8));
  ASSERT_TRUE(space.selection);
  EXPECT_EQ(space.selection->dt_down.weight.rows(), 8);
  EXPECT_EQ(space.selection->b_c.weight.row_map.front(), 8);
  EXPECT_EQ(space.selection->dt_up.bias.size(), 128u);
  EXPECT_EQ(space.a.size(), 8u * 128u);
  EXPECT_TRUE(std::all_of(space.a.begin(), space.a.end(), [](float a) { return a < 0; }));
  EXPECT_EQ(mamba->network.max_positions, 1048576);
  EXPECT_EQ(mamba->network.bindings.size(), mamba->checkpoint.tensors().size());

  const StateSpace& heads = *mamba2->network.layers[1].state_space;
  EXPECT_EQ(std::tuple(heads.num_channels, heads.num_heads, heads.num_groups, heads.num_states), std::tuple(128, 8, 2, 16));
  EXPECT_TRUE(heads.decay_per_head && !heads.selection && heads.gated_norm);
  EXPECT_EQ(std::tuple(heads.gate_column, heads.x_column, heads.dt_column), std::tuple(0, 128, 2 * 128 + 2 * 2 * 16));
  EXPECT_EQ(heads.a[0], heads.a[15]);
  EXPECT_NE(heads.a[0], heads.a[16]);
  EXPECT_EQ(heads.dt_bias.size(), 8u);
  EXPECT_EQ(heads.dt_max, std::numeric_limits<float>::infinity());
  EXPECT_EQ(std::pair(limited->network.layers[0].state_space->dt_min, limited->network.layers[0].state_space->dt_max),
            std::pair(0.5f, 0.8f));
}

// All states of a network lie in one group, whose blocks hold one state each.
TEST(BindState, StatesAreAGroupOfTheirOwn) {
  ThreadPool pool(1);
  const auto check = [&](std::string_view name, std::size_t num_groups, int64_t num_layers, int64_t state_floats) {
    SCOPED_TRACE(name);
    const auto bound = golden(name);
    const auto weights = Weights::plan(bound->network, pool);
    ASSERT_TRUE(weights.is_ok()) << weights.status().message();
    const Program program = lower_network(bound->network, *weights, Isa::kScalar, GemmPath::kFast);
    ASSERT_EQ(program.kv_groups.size(), num_groups);
    const auto group =
        std::find_if(program.kv_groups.begin(), program.kv_groups.end(), [](const KvGroupSpec& g) { return g.state_floats > 0; });
    ASSERT_NE(group, program.kv_groups.end());
    EXPECT_EQ(group->window, 1);
    EXPECT_EQ(group->num_layers, num_layers);
    EXPECT_EQ(group->state_floats, state_floats);
  };
  check("lfm2", 2, 2, 2 * 2 * 64);
  check("mamba", 1, 2, 2 * (3 * 128 + 8 * 128));
  check("mamba2", 1, 2, 2 * (3 * 192 + 16 * 128));
}

// The directory's tensors as the converter writes them: other names, kernels without their middle dimension, decays computed.
class Converted {
 public:
  using Names = std::vector<std::pair<std::string_view, std::string_view>>;

  Converted(const Bound& directory, const Names& names, bool per_head)
      : path_(std::filesystem::path(testing::TempDir()) / "millrace_state.gguf") {
    for (const SourceTensor& tensor : directory.checkpoint.tensors()) {
      Tensor plain{tensor.shape, {}};
      int64_t elements = 1;
      for (const int64_t size : tensor.shape) elements *= size;
      plain.data.resize(static_cast<std::size_t>(elements));
      dequantize_row(tensor.dtype, tensor.data.data(), elements, plain.data.data());
      if (plain.shape.size() == 3) plain.shape.erase(plain.shape.begin() + 1);
      const std::string_view name = tensor.name;
      if (name.ends_with("A_log")) {
        for (float& number : plain.data) number = -std::exp(number);
      }
      if (per_head && (name.ends_with("A_log") || name.ends_with(".D"))) plain.shape.push_back(1);
      const StateSpace* space = directory.network.layers[0].state_space ? &*directory.network.layers[0].state_space : nullptr;
      if (per_head && name.ends_with("mixer.norm.weight")) plain.shape = {space->num_groups, space->num_channels / space->num_groups};
      writer.tensor(converted_name(names, tensor.name), plain);
    }
  }
  ~Converted() { std::filesystem::remove(path_); }

  Result<std::unique_ptr<Bound>> bind_file() {
    writer.write(path_);
    return bind(path_);
  }

  Writer writer;

 private:
  static std::string converted_name(const Names& names, std::string name) {
    for (const std::string_view before : {"model.layers.", "backbone.layers."}) {
      if (name.starts_with(before)) name.replace(0, before.size(), "blk.");
    }
    for (const auto& [from, to] : names) {
      if (const std::size_t at = name.find(from); at != std::string::npos && (at == 0 || name[at - 1] == '.')) {
        name.replace(at, from.size(), to);
        return name;
      }
    }
    ADD_FAILURE() << "no GGUF name for " << name;
    return name;
  }

  std::filesystem::path path_;
};

std::vector<float> numbers_of(const MatrixSource& matrix) {
  const int64_t stored_rows = matrix.tensor->shape[0];
  std::vector<float> stored(static_cast<std::size_t>(stored_rows * matrix.k)), numbers;
  dequantize_row(matrix.tensor->dtype, matrix.tensor->data.data(), stored_rows * matrix.k, stored.data());
  for (const int32_t row : matrix.row_map)
    numbers.insert(numbers.end(), stored.begin() + row * matrix.k, stored.begin() + (row + 1) * matrix.k);
  return numbers;
}

void expect_same(const Network& got, const Network& want) {
  ASSERT_EQ(got.layers.size(), want.layers.size());
  EXPECT_EQ(got.tied_head, want.tied_head);
  EXPECT_EQ(numbers_of(got.head.weight), numbers_of(want.head.weight));
  for (std::size_t i = 0; i < got.layers.size(); ++i) {
    SCOPED_TRACE(i);
    const DecoderLayer &a = got.layers[i], &b = want.layers[i];
    ASSERT_EQ(a.has_attention(), b.has_attention());
    ASSERT_EQ(a.convolution.has_value(), b.convolution.has_value());
    std::vector<const Linear*> linears_a, linears_b;
    for_each_state_linear(a, [&](const Linear& linear) { linears_a.push_back(&linear); });
    for_each_state_linear(b, [&](const Linear& linear) { linears_b.push_back(&linear); });
    ASSERT_EQ(linears_a.size(), linears_b.size());
    for (std::size_t n = 0; n < linears_a.size(); ++n) {
      EXPECT_EQ(numbers_of(linears_a[n]->weight), numbers_of(linears_b[n]->weight)) << n;
      EXPECT_EQ(linears_a[n]->bias, linears_b[n]->bias) << n;
    }
    if (a.has_attention()) {
      EXPECT_EQ(numbers_of(a.attention.q.weight), numbers_of(b.attention.q.weight));
      EXPECT_EQ(a.attention.rope->inv_freq, b.attention.rope->inv_freq);
    }
    if (a.convolution) {
      EXPECT_EQ(a.convolution->convolution.weights, b.convolution->convolution.weights);
      EXPECT_EQ(a.convolution->convolution.bias, b.convolution->convolution.bias);
      EXPECT_EQ(a.convolution->norm->weight, b.convolution->norm->weight);
      EXPECT_EQ(a.mlp.up.weight.rows(), b.mlp.up.weight.rows());
    }
    if (!a.state_space) continue;
    const StateSpace &p = *a.state_space, &q = *b.state_space;
    EXPECT_EQ(std::tuple(p.num_channels, p.num_heads, p.num_groups, p.num_states),
              std::tuple(q.num_channels, q.num_heads, q.num_groups, q.num_states));
    EXPECT_EQ(p.convolution.weights, q.convolution.weights);
    EXPECT_EQ(p.convolution.bias, q.convolution.bias);
    EXPECT_EQ(p.a, q.a);
    EXPECT_EQ(p.d, q.d);
    EXPECT_EQ(p.dt_bias, q.dt_bias);
    EXPECT_EQ(p.norm->weight, q.norm->weight);
    EXPECT_EQ(p.norm->eps, q.norm->eps);
    ASSERT_EQ(p.gated_norm.has_value(), q.gated_norm.has_value());
    if (p.gated_norm) {
      EXPECT_EQ(p.gated_norm->weight, q.gated_norm->weight);
    }
  }
}

void common_metadata(Writer& writer, const std::string& architecture, const Network& network) {
  writer.text("general.architecture", architecture);
  writer.integer(architecture + ".block_count", static_cast<uint32_t>(network.layers.size()));
  writer.integer(architecture + ".context_length", static_cast<uint32_t>(network.max_positions));
  writer.integer(architecture + ".embedding_length", static_cast<uint32_t>(network.hidden_size));
  writer.real(architecture + ".attention.layer_norm_rms_epsilon", 1e-5f);
}

TEST(BindState, Lfm2FromGguf) {
  for (const char* name : {"lfm2", "lfm2-adjusted"}) {
    SCOPED_TRACE(name);
    const auto directory = golden(name);
    const Network& network = directory->network;
    Converted file(*directory,
                   {{"model.embed_tokens", "token_embd"},
                    {"model.embedding_norm", "token_embd_norm"},
                    {"operator_norm", "attn_norm"},
                    {"conv.in_proj", "shortconv.in_proj"},
                    {"conv.conv", "shortconv.conv"},
                    {"conv.out_proj", "shortconv.out_proj"},
                    {"self_attn.q_proj", "attn_q"},
                    {"self_attn.k_proj", "attn_k"},
                    {"self_attn.v_proj", "attn_v"},
                    {"self_attn.out_proj", "attn_output"},
                    {"self_attn.q_layernorm", "attn_q_norm"},
                    {"self_attn.k_layernorm", "attn_k_norm"},
                    {"ffn_norm", "ffn_norm"},
                    {"feed_forward.w1", "ffn_gate"},
                    {"feed_forward.w3", "ffn_up"},
                    {"feed_forward.w2", "ffn_down"}},
                   false);
    common_metadata(file.writer, "lfm2", network);
    file.writer.integer("lfm2.feed_forward_length", static_cast<uint32_t>(network.layers[0].mlp.up.weight.rows()));
    const auto attention =
        std::find_if(network.layers.begin(), network.layers.end(), [](const DecoderLayer& layer) { return layer.has_attention(); });
    file.writer.integer("lfm2.attention.head_count", static_cast<uint32_t>(attention->attention.num_heads));
    std::vector<int32_t> kv_heads;
    for (const DecoderLayer& layer : network.layers) kv_heads.push_back(static_cast<int32_t>(layer.attention.num_kv_heads));
    file.writer.integers("lfm2.attention.head_count_kv", kv_heads);
    file.writer.integer("lfm2.shortconv.l_cache", static_cast<uint32_t>(network.layers[0].convolution->convolution.num_taps));
    file.writer.real("lfm2.rope.freq_base", 1000000.0f);
    const auto bound = file.bind_file();
    ASSERT_TRUE(bound.is_ok()) << bound.status().message();
    expect_same((*bound)->network, network);
  }
}

const Converted::Names kMambaNames = {{"backbone.embeddings", "token_embd"},
                                      {"backbone.norm_f", "output_norm"},
                                      {"lm_head", "output"},
                                      {"mixer.in_proj", "ssm_in"},
                                      {"mixer.conv1d", "ssm_conv1d"},
                                      {"mixer.x_proj", "ssm_x"},
                                      {"mixer.dt_proj", "ssm_dt"},
                                      {"mixer.dt_bias", "ssm_dt.bias"},
                                      {"mixer.A_log", "ssm_a"},
                                      {"mixer.D", "ssm_d"},
                                      {"mixer.norm", "ssm_norm"},
                                      {"mixer.out_proj", "ssm_out"},
                                      {"norm", "attn_norm"}};

void ssm_metadata(Writer& writer, const std::string& architecture, const StateSpace& space, int64_t rank) {
  writer.integer(architecture + ".feed_forward_length", 0);
  writer.integer(architecture + ".attention.head_count", 0);
  writer.integer(architecture + ".ssm.conv_kernel", static_cast<uint32_t>(space.convolution.num_taps));
  writer.integer(architecture + ".ssm.inner_size", static_cast<uint32_t>(space.num_channels));
  writer.integer(architecture + ".ssm.state_size", static_cast<uint32_t>(space.num_states));
  writer.integer(architecture + ".ssm.time_step_rank", static_cast<uint32_t>(rank));
}

TEST(BindState, MambaFromGguf) {
  const auto directory = golden("mamba");
  const auto with = [&](bool falcon) {
    Converted file(*directory, kMambaNames, false);
    common_metadata(file.writer, "mamba", directory->network);
    ssm_metadata(file.writer, "mamba", *directory->network.layers[0].state_space, 8);
    file.writer.boolean("mamba.ssm.dt_b_c_rms", falcon);
    return file.bind_file();
  };
  const auto bound = with(false);
  ASSERT_TRUE(bound.is_ok()) << bound.status().message();
  expect_same((*bound)->network, directory->network);
  EXPECT_FALSE((*bound)->network.layers[0].state_space->selection->norm);
  const auto falcon = with(true);  // its file is mamba's with norms
  ASSERT_TRUE(falcon.is_ok()) << falcon.status().message();
  EXPECT_TRUE((*falcon)->network.layers[1].state_space->selection->norm);
}

TEST(BindState, Mamba2FromGguf) {
  const auto directory = golden("mamba2");
  const StateSpace& space = *directory->network.layers[0].state_space;
  Converted file(*directory, kMambaNames, true);
  common_metadata(file.writer, "mamba2", directory->network);
  ssm_metadata(file.writer, "mamba2", space, space.num_heads);
  file.writer.integer("mamba2.ssm.group_count", static_cast<uint32_t>(space.num_groups));
  const auto bound = file.bind_file();
  ASSERT_TRUE(bound.is_ok()) << bound.status().message();
  expect_same((*bound)->network, directory->network);
}

// A copy of a golden model whose configuration is changed.
Result<std::unique_ptr<Bound>> bind_changed(std::string_view name, const std::function<void(json::object&)>& change) {
  const std::filesystem::path directory = std::filesystem::path(testing::TempDir()) / fmt::format("millrace_state_{}", name);
  std::filesystem::remove_all(directory);
  std::filesystem::copy(source_dir() / "tests/golden/models" / name, directory);
  json::object config = Checkpoint::open(directory.string()).value().config();
  change(config);
  std::ofstream(directory / "config.json") << json::serialize(config);
  auto bound = bind(directory);
  std::filesystem::remove_all(directory);
  return bound;
}

TEST(BindState, WrongShapesAndNumbersAreNamed) {
  const auto message = [](std::string_view name, std::string_view field, const json::value& value) {
    const auto bound = bind_changed(name, [&](json::object& config) { config[field] = value; });
    return bound.is_ok() ? std::string("bound") : bound.status().message();
  };
  EXPECT_THAT(message("lfm2", "conv_L_cache", 4),
              HasSubstr("\"model.layers.0.conv.conv.weight\" is [64, 1, 3], expected [hidden_size, 1, kernel_size] = [64, 1, 4]"));
  EXPECT_THAT(message("lfm2", "conv_L_cache", 1000), HasSubstr("expected an integer from 1 to 64"));
  EXPECT_THAT(message("lfm2", "conv_bias", true), HasSubstr("missing tensor \"model.layers.0.conv.in_proj.bias\""));
  EXPECT_THAT(message("mamba", "state_size", 16), HasSubstr("dt_rank + 2 * num_states"));
  EXPECT_THAT(message("mamba", "hidden_act", "gelu"), HasSubstr("only silu is supported"));
  EXPECT_THAT(message("mamba2", "n_groups", 3), HasSubstr("expected equal parts"));
  EXPECT_THAT(message("mamba2", "num_heads", 4), HasSubstr("2 * num_channels + 2 * num_groups * num_states + num_heads"));
}

TEST(BindState, FamiliesThatLackAPartAreRefused) {
  const auto message = [](const std::string& layer) {
    const auto family = Family::parse(
        fmt::format(R"({{"family": "x", "embedding": {{"tokens": "e"}}, "layers": [{}], "head": {{"weight": "h"}}}})", layer), "x.json");
    return family.is_ok() ? std::string("parsed") : family.status().message();
  };
  const std::string start = R"({"count": 1, "scope": "s", )", mlp = R"(, "mlp": {"up": "u", "down": "d", "kind": "plain"}})";
  EXPECT_THAT(message(start.substr(0, start.size() - 2) + mlp), HasSubstr("layers[0].attention: this word is missing"));
  EXPECT_THAT(message(start + R"("convolution": {"in": "i", "kernel": "k", "out": "o"})" + mlp),
              HasSubstr("layers[0].convolution.kernel_size: this word is missing"));
  const std::string space =
      R"("state_space": {"num_channels": 8, "num_states": 2, "in": "i", "kernel": "k", "kernel_size": 3, "a": "a", "d": "d", "out": "o")";
  EXPECT_THAT(message(start + space + "}}"), HasSubstr("layers[0].state_space.dt_bias: either"));
  EXPECT_THAT(message(start + space + R"(, "selection": "x", "dt": "t"}})"), HasSubstr("layers[0].state_space.dt_rank: \"selection\""));
  EXPECT_EQ(message(start + space + R"(, "dt_bias": "t"}})"), "parsed");
}

}  // namespace
}  // namespace millrace
