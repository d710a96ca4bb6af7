#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>

#include "millrace/base/test_data.h"
#include "millrace/model/family.h"
#include "millrace/model/gguf_test_conversions.h"

// Binding a GGUF file that llama.cpp's converter makes of a golden model must give the network that the Hugging Face directory gives,
// number by number.
namespace millrace {
namespace {

using gguf_test::Conversion, gguf_test::conversion_of, gguf_test::converted, gguf_test::kConversions, gguf_test::numbers_of,
    gguf_test::kEncoderConversions, gguf_test::Tensor, gguf_test::Writer;
using testing::HasSubstr;

std::vector<float> numbers_of(const MatrixSource& matrix) {
  if (matrix.tensor == nullptr) return {};
  const Tensor stored = numbers_of(*matrix.tensor);
  std::vector<float> numbers;
  for (const int32_t row : matrix.row_map) {
    for (int64_t i = 0; i < matrix.k; ++i) {
      const int64_t rows = stored.shape.back();  // of one matrix of a transposed stack
      numbers.push_back(
          stored.data[static_cast<std::size_t>(matrix.transposed ? (row / rows * matrix.k + i) * rows + row % rows : row * matrix.k + i)]);
    }
  }
  return numbers;
}

void expect_same(const Linear& a, const Linear& b) {
  EXPECT_EQ(numbers_of(a.weight), numbers_of(b.weight));
  EXPECT_EQ(a.bias, b.bias);
}

void expect_same(const std::optional<Norm>& a, const std::optional<Norm>& b) {
  ASSERT_EQ(a.has_value(), b.has_value());
  if (!a) return;
  EXPECT_EQ(a->kind, b->kind);
  EXPECT_EQ(a->weight, b->weight);
  EXPECT_EQ(a->bias, b->bias);
  EXPECT_FLOAT_EQ(a->eps, b->eps);
}

void expect_same(const Expert& a, const Expert& b) {
  expect_same(a.gate, b.gate);
  expect_same(a.up, b.up);
  expect_same(a.down, b.down);
}

void expect_same(const Mixture& a, const Mixture& b) {
  EXPECT_EQ(a.rule.num_experts, b.rule.num_experts);
  EXPECT_EQ(a.rule.experts_per_token, b.rule.experts_per_token);
  EXPECT_EQ(a.rule.scoring, b.rule.scoring);
  EXPECT_EQ(a.rule.correction, b.rule.correction);
  EXPECT_EQ(a.rule.group_score, b.rule.group_score);
  EXPECT_EQ(a.rule.normalize, b.rule.normalize);
  EXPECT_EQ(a.rule.scale, b.rule.scale);
  EXPECT_EQ(a.rule.num_groups, b.rule.num_groups);
  EXPECT_EQ(a.rule.groups_per_token, b.rule.groups_per_token);
  expect_same(a.router, b.router);
  ASSERT_EQ(a.experts.size(), b.experts.size());
  for (std::size_t e = 0; e < a.experts.size(); ++e) expect_same(a.experts[e], b.experts[e]);
  ASSERT_EQ(a.shared.has_value(), b.shared.has_value());
  if (a.shared) expect_same(*a.shared, *b.shared);
  ASSERT_EQ(a.shared_gate.has_value(), b.shared_gate.has_value());
  if (a.shared_gate) expect_same(*a.shared_gate, *b.shared_gate);
}

void expect_same(const LatentAttention& a, const LatentAttention& b) {
  ASSERT_EQ(a.q_down.has_value(), b.q_down.has_value());
  if (a.q_down) expect_same(*a.q_down, *b.q_down);
  expect_same(a.q_norm, b.q_norm);
  expect_same(a.kv_down, b.kv_down);
  expect_same(a.kv_norm, b.kv_norm);
  expect_same(a.k_rope, b.k_rope);
  expect_same(a.k_up, b.k_up);
  expect_same(a.v_up, b.v_up);
  EXPECT_EQ(a.rope_dim, b.rope_dim);
  EXPECT_EQ(a.value_dim, b.value_dim);
  EXPECT_EQ(a.value_columns, b.value_columns);
}

void expect_same(const DecoderLayer& a, const DecoderLayer& b, std::string_view golden) {
  EXPECT_EQ(a.parallel_residual, b.parallel_residual);
  EXPECT_EQ(a.shared_norm, b.shared_norm);
  EXPECT_FLOAT_EQ(a.residual_multiplier, b.residual_multiplier);
  if (a.attention.rope || golden != "smollm3") {
    expect_same(a.attention.q, b.attention.q);
    expect_same(a.attention.k, b.attention.k);
  } else {
    // The converter reorders q and k also where nothing turns: they stay in a common order that is not the directory's, and q . k is the
    // same.
    const auto sorted = [](const Linear& linear) {
      std::vector<float> numbers = numbers_of(linear.weight);
      std::sort(numbers.begin(), numbers.end());
      return numbers;
    };
    EXPECT_EQ(sorted(a.attention.q), sorted(b.attention.q));
    EXPECT_EQ(sorted(a.attention.k), sorted(b.attention.k));
  }
  expect_same(a.attention.v, b.attention.v);
  expect_same(a.attention.o, b.attention.o);
  expect_same(a.attention.norm, b.attention.norm);
  expect_same(a.attention.post_norm, b.attention.post_norm);
  expect_same(a.attention.sum_norm, b.attention.sum_norm);
  EXPECT_EQ(a.attention.causal, b.attention.causal);
  ASSERT_EQ(a.attention.latent.has_value(), b.attention.latent.has_value());
  if (a.attention.latent) expect_same(*a.attention.latent, *b.attention.latent);
  expect_same(a.attention.q_norm, b.attention.q_norm);
  expect_same(a.attention.k_norm, b.attention.k_norm);
  if (golden != "gemma2") {  // that golden has a scale that no published size has, and the converter drops it
    EXPECT_FLOAT_EQ(a.attention.scale, b.attention.scale);
  }
  EXPECT_EQ(a.attention.softcap, b.attention.softcap);
  EXPECT_EQ(a.attention.clip, b.attention.clip);
  EXPECT_EQ(a.attention.head_norm, b.attention.head_norm);
  EXPECT_EQ(a.attention.window, b.attention.window);
  EXPECT_EQ(a.attention.alibi_slopes, b.attention.alibi_slopes);
  EXPECT_EQ(a.attention.sinks, b.attention.sinks);
  ASSERT_EQ(a.attention.rope.has_value(), b.attention.rope.has_value());
  if (a.attention.rope) {
    EXPECT_EQ(a.attention.rope->pairing, b.attention.rope->pairing);
    ASSERT_EQ(a.attention.rope->inv_freq.size(), b.attention.rope->inv_freq.size());
    for (std::size_t i = 0; i < a.attention.rope->inv_freq.size(); ++i) {
      EXPECT_NEAR(a.attention.rope->inv_freq[i], b.attention.rope->inv_freq[i], 1e-6f * a.attention.rope->inv_freq[i]);
    }
  }
  EXPECT_EQ(a.mlp.gated, b.mlp.gated);
  EXPECT_EQ(a.mlp.activation, b.mlp.activation);
  EXPECT_EQ(a.mlp.gate_limit.has_value(), b.mlp.gate_limit.has_value());
  expect_same(a.mlp.gate, b.mlp.gate);
  expect_same(a.mlp.up, b.mlp.up);
  expect_same(a.mlp.down, b.mlp.down);
  ASSERT_EQ(a.mlp.mixture.has_value(), b.mlp.mixture.has_value());
  if (a.mlp.mixture) expect_same(*a.mlp.mixture, *b.mlp.mixture);
  expect_same(a.mlp.norm, b.mlp.norm);
  expect_same(a.mlp.post_norm, b.mlp.post_norm);
  expect_same(a.mlp.sum_norm, b.mlp.sum_norm);
}

class BindConvertedGguf : public testing::TestWithParam<Conversion> {};

void expect_network_of_directory(const Conversion& conversion, const std::filesystem::path& goldens) {
  const Result<Checkpoint> directory = Checkpoint::open((goldens / conversion.golden).string());
  ASSERT_TRUE(directory.is_ok()) << directory.status().message();
  const Result<Network> want = bind_network(choose_family(*directory, std::nullopt).value(), *directory);
  ASSERT_TRUE(want.is_ok()) << want.status().message();

  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / fmt::format("millrace_{}.gguf", conversion.golden);
  const Checkpoint file = converted(conversion, *directory, *want, path);
  const Result<Network> got = bind_network(choose_family(file, std::nullopt).value(), file);
  ASSERT_TRUE(got.is_ok()) << got.status().message();

  // GGUF has one architecture for both.
  EXPECT_EQ(got->family, want->family == "mixtral" ? "llama" : want->family == "deepseek_v3" ? "deepseek_v2" : want->family);
  EXPECT_EQ(got->vocab_size, want->vocab_size);
  EXPECT_EQ(got->max_positions, want->max_positions);
  EXPECT_EQ(got->tied_head, want->tied_head);
  EXPECT_EQ(got->embedding_multiplier, want->embedding_multiplier);
  EXPECT_EQ(got->logits_softcap, want->logits_softcap);
  EXPECT_FLOAT_EQ(got->logits_multiplier, want->logits_multiplier);
  EXPECT_EQ(numbers_of(got->embedding), numbers_of(want->embedding));
  EXPECT_EQ(got->positions.has_value(), want->positions.has_value());
  expect_same(got->embedding_norm, want->embedding_norm);
  expect_same(got->final_norm, want->final_norm);
  expect_same(got->head, want->head);
  ASSERT_EQ(got->layers.size(), want->layers.size());
  for (std::size_t layer = 0; layer < got->layers.size(); ++layer) {
    SCOPED_TRACE(layer);
    expect_same(got->layers[layer], want->layers[layer], conversion.golden);
  }
  ASSERT_EQ(got->token_types.has_value(), want->token_types.has_value());
  EXPECT_EQ(numbers_of(got->token_types.value_or(MatrixSource())), numbers_of(want->token_types.value_or(MatrixSource())));
  EXPECT_EQ(numbers_of(got->positions.value_or(MatrixSource())), numbers_of(want->positions.value_or(MatrixSource())));
  ASSERT_EQ(got->pooled.has_value(), want->pooled.has_value());
  if (got->pooled) {
    EXPECT_EQ(got->pooled->pooling, want->pooled->pooling);
    EXPECT_EQ(got->pooled->unit_norm.has_value(), want->pooled->unit_norm.has_value());
  }
  std::filesystem::remove(path);
}

TEST_P(BindConvertedGguf, IsTheNetworkOfTheDirectory) { expect_network_of_directory(GetParam(), source_dir() / "tests/golden/models"); }

class BindConvertedEncoder : public testing::TestWithParam<Conversion> {};

TEST_P(BindConvertedEncoder, IsTheNetworkOfTheDirectory) {
  expect_network_of_directory(GetParam(), source_dir() / "tests/golden/encoders");
}

INSTANTIATE_TEST_SUITE_P(Families, BindConvertedEncoder, testing::ValuesIn(kEncoderConversions),
                         [](const auto& conversion) { return std::string(conversion.param.golden); });

TEST(BindGguf, TheFileSaysHowAnEncoderIsPooled) {
  const Checkpoint directory = Checkpoint::open((source_dir() / "tests/golden/encoders/bert").string()).value();
  const Network network = bind_network(choose_family(directory, std::nullopt).value(), directory).value();
  const auto bound_with = [&](uint32_t pooling_type) {
    Conversion conversion = kEncoderConversions[0];
    conversion.metadata = [&](Writer& gguf, const std::string& prefix) { gguf_test::encoder_metadata(gguf, prefix, pooling_type); };
    const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / fmt::format("millrace_pooling_{}.gguf", pooling_type);
    const Checkpoint file = converted(conversion, directory, network, path);
    Result<Network> bound = bind_network(choose_family(file, std::nullopt).value(), file);
    std::filesystem::remove(path);
    return bound;
  };
  EXPECT_EQ(bound_with(2)->pooled->pooling, Pooling::kFirst);
  EXPECT_EQ(bound_with(3)->pooled->pooling, Pooling::kLast);
  EXPECT_THAT(bound_with(4).status().message(), HasSubstr("pooling_type"));
  EXPECT_THAT(bound_with(0).status().message(), HasSubstr("pooling_type"));
}

INSTANTIATE_TEST_SUITE_P(Families, BindConvertedGguf, testing::ValuesIn(kConversions), [](const auto& conversion) {
  std::string name(conversion.param.golden);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

// The first step would have ended the process: positions were read without asking whether their type can be.
TEST(BindGguf, LearnedPositionsOfAnUnreadableTypeAreRefused) {
  const Conversion& conversion = conversion_of("gpt2");
  const Checkpoint directory = Checkpoint::open((source_dir() / "tests/golden/models/gpt2").string()).value();
  const Network network = bind_network(choose_family(directory, std::nullopt).value(), directory).value();
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "millrace_positions.gguf";
  static_cast<void>(converted(conversion, directory, network, path).tensors());
  std::ostringstream read;
  read << std::ifstream(path, std::ios::binary).rdbuf();
  std::string bytes = read.str();
  const std::string name = "position_embd.weight";
  const std::size_t type = bytes.find(name) + name.size() + sizeof(uint32_t) + 2 * sizeof(uint64_t);
  ASSERT_EQ(bytes.compare(type, 4, std::string(4, '\0')), 0) << "the type id of f32 is expected here";
  bytes[type] = 9;  // Q8_1, which is smaller and is no type of stored weights
  std::ofstream(path, std::ios::binary) << bytes;
  const Checkpoint changed = Checkpoint::open(path.string()).value();
  const Result<Network> bound = bind_network(choose_family(changed, std::nullopt).value(), changed);
  ASSERT_FALSE(bound.is_ok());
  EXPECT_THAT(bound.status().message(), HasSubstr("\"position_embd.weight\" is stored as Q8_1, which cannot be read as numbers"));
}

// Which layers slide, and how far YaRN reaches, as newer files say it.
TEST(BindGguf, PatternsAndMultipliersOfTheFileCount) {
  const auto network_of = [](std::string_view golden, const std::function<void(Writer&, const std::string&)>& more) {
    const Conversion& conversion = conversion_of(golden);
    const Checkpoint directory = Checkpoint::open((source_dir() / "tests/golden/models" / golden).string()).value();
    const Network network = bind_network(choose_family(directory, std::nullopt).value(), directory).value();
    const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / fmt::format("millrace_{}_more.gguf", golden);
    const Checkpoint file = converted(conversion, directory, network, path, more);
    Network got = bind_network(choose_family(file, std::nullopt).value(), file).value();
    std::filesystem::remove(path);
    return got;
  };
  const auto slides = [](const Network& network) {
    std::vector<bool> layers;
    for (const DecoderLayer& layer : network.layers) layers.push_back(layer.attention.window.has_value());
    return layers;
  };
  const std::vector<bool> usual = slides(network_of("gemma2", {})), other = {false, false, true, true};
  ASSERT_EQ(usual, (std::vector<bool>{true, false, true, false}));
  EXPECT_EQ(slides(network_of("gemma2",
                              [&](auto& gguf, const auto& prefix) { gguf.booleans(prefix + "attention.sliding_window_pattern", other); })),
            other);
  EXPECT_EQ(
      slides(network_of("gemma2", [](auto& gguf, const auto& prefix) { gguf.integer(prefix + "attention.sliding_window_pattern", 3); })),
      (std::vector<bool>{true, true, false, true}));

  const auto attention_factor = [&](float log_multiplier) {
    return network_of("qwen2",
                      [&](auto& gguf, const auto& prefix) {
                        gguf.text(prefix + "rope.scaling.type", "yarn");
                        gguf.real(prefix + "rope.scaling.factor", 4);
                        gguf.integer(prefix + "rope.scaling.original_context_length", 64);
                        if (log_multiplier != 0) gguf.real(prefix + "rope.scaling.yarn_log_multiplier", log_multiplier);
                      })
        .layers[0]
        .attention.rope->attention_factor;
  };
  const float plain = 0.1f * std::log(4.0f) + 1;
  EXPECT_FLOAT_EQ(attention_factor(0), plain);
  EXPECT_FLOAT_EQ(attention_factor(1), 1.0f);
  EXPECT_FLOAT_EQ(attention_factor(0.5f), plain / (0.05f * std::log(4.0f) + 1));
}

TEST(BindGguf, OlderFilesHaveATensorForEachExpert) {
  Conversion conversion = conversion_of("mixtral");
  conversion.stacks = false;
  const std::vector<std::pair<std::string, std::string>> names = [] {
    std::vector<std::pair<std::string, std::string>> all;
    for (int e = 0; e < 4; ++e) {
      for (const auto& [from, to] : {std::pair{"w1", "ffn_gate"}, {"w3", "ffn_up"}, {"w2", "ffn_down"}}) {
        all.emplace_back(fmt::format("block_sparse_moe.experts.{}.{}", e, from), fmt::format("{}.{}", to, e));
      }
    }
    return all;
  }();
  for (const auto& [from, to] : names) conversion.names[from] = to;
  const Checkpoint directory = Checkpoint::open((source_dir() / "tests/golden/models/mixtral").string()).value();
  const Network want = bind_network(choose_family(directory, std::nullopt).value(), directory).value();
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "millrace_mixtral_older.gguf";
  const Checkpoint file = converted(conversion, directory, want, path);
  const Result<Network> got = bind_network(choose_family(file, std::nullopt).value(), file);
  ASSERT_TRUE(got.is_ok()) << got.status().message();
  for (std::size_t layer = 0; layer < want.layers.size(); ++layer) expect_same(got->layers[layer], want.layers[layer], "mixtral");
  std::filesystem::remove(path);
}

TEST(BindGguf, FamilyWithoutGgufSaysSo) {
  Writer builder;
  builder.text("general.architecture", "marble");
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "millrace_marble.gguf";
  builder.write(path);
  const Result<Checkpoint> file = Checkpoint::open(path.string());
  ASSERT_TRUE(file.is_ok()) << file.status().message();
  EXPECT_THAT(choose_family(*file, std::nullopt).status().message(), HasSubstr("architecture \"marble\" is not known"));
  const Result<Family> mistral = choose_family(*file, (source_dir() / "millrace/model/families/mistral.json").string());
  EXPECT_THAT(bind_network(*mistral, *file).status().message(), HasSubstr("mistral.json: the family has no \"gguf\" section"));
  std::filesystem::remove(path);
}

Result<Network> bind_path(const std::string& path, std::unique_ptr<Checkpoint>& checkpoint) {
  MR_ASSIGN_OR_RETURN(Checkpoint opened, Checkpoint::open(path));
  checkpoint = std::make_unique<Checkpoint>(std::move(opened));
  MR_ASSIGN_OR_RETURN(const Family family, choose_family(*checkpoint, std::nullopt));
  return bind_network(family, *checkpoint);
}

TEST(BindGguf, DemoModel) {
  const char* path = std::getenv("MILLRACE_DEMO_MODEL");
  if (path == nullptr) GTEST_SKIP() << "MILLRACE_DEMO_MODEL does not name the demo model's GGUF";
  std::unique_ptr<Checkpoint> checkpoint;
  const Result<Network> network = bind_path(path, checkpoint);
  ASSERT_TRUE(network.is_ok()) << network.status().message();
  EXPECT_EQ(network->hidden_size, 576);
  EXPECT_EQ(network->vocab_size, 49152);
  ASSERT_EQ(network->layers.size(), 30u);
  const AttentionLayer& attention = network->layers[29].attention;
  EXPECT_EQ(attention.num_heads, 9);
  EXPECT_EQ(attention.num_kv_heads, 3);
  EXPECT_EQ(attention.head_dim, 64);
  ASSERT_TRUE(attention.rope);
  EXPECT_EQ(attention.rope->rotary_dim, 64);
  // llama.cpp's converter stores q and k for interleaved pairing: the second half of a head's dimensions are the odd rows.
  EXPECT_EQ(attention.q.weight.row_map[1], 2);
  EXPECT_EQ(attention.q.weight.row_map[32], 1);
  EXPECT_EQ(attention.k.weight.row_map[64 + 33], 64 + 3);
  EXPECT_EQ(attention.v.weight.row_map[1], 1);
  EXPECT_TRUE(network->tied_head);
}

struct RealGguf {
  const char *variable, *family;
  int64_t hidden_size, layers;
};

TEST(BindGguf, OtherPublishedModels) {
  const RealGguf models[] = {{"MILLRACE_GEMMA3_MODEL", "gemma3", 640, 18}, {"MILLRACE_QWEN2_MODEL", "qwen2", 896, 24}};
  int found = 0;
  for (const RealGguf& model : models) {
    const char* path = std::getenv(model.variable);
    if (path == nullptr) continue;
    ++found;
    std::unique_ptr<Checkpoint> checkpoint;
    const Result<Network> network = bind_path(path, checkpoint);
    ASSERT_TRUE(network.is_ok()) << network.status().message();
    EXPECT_EQ(network->family, model.family);
    EXPECT_EQ(network->hidden_size, model.hidden_size);
    EXPECT_EQ(static_cast<int64_t>(network->layers.size()), model.layers);
  }
  if (found == 0) GTEST_SKIP() << "neither MILLRACE_GEMMA3_MODEL nor MILLRACE_QWEN2_MODEL names a GGUF";
}

}  // namespace
}  // namespace millrace
