// Latent attention and gpt-oss's experts: what binding makes of the stored rows. That the network then computes what transformers does is
// for the golden models (engine/golden_test.cc).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "millrace/base/test_data.h"
#include "millrace/model/family.h"
#include "millrace/model/program.h"
#include "millrace/tensor/half.h"

namespace millrace {
namespace {

using testing::HasSubstr;

Checkpoint open_golden(const std::string& name) { return Checkpoint::open((source_dir() / "tests/golden/models" / name).string()).value(); }

Result<Network> bind_changed(const Checkpoint& checkpoint, const std::function<void(json::object&)>& change) {
  json::object description = choose_family(checkpoint, std::nullopt).value().description();
  change(description);
  MR_ASSIGN_OR_RETURN(const Family family, Family::parse(json::serialize(description), "changed.json"));
  return bind_network(family, checkpoint);
}

// Heads are stored [8 without rope, 8 with], and what becomes keys and values [8, 12].
TEST(LatentAttention, RopesPartOfEveryHeadComesFirst) {
  const Checkpoint checkpoint = open_golden("deepseek_v2");
  const Network network = bind_changed(checkpoint, [](json::object&) {}).value();
  const AttentionLayer& attention = network.layers[1].attention;
  ASSERT_TRUE(attention.latent);
  const LatentAttention& latent = *attention.latent;
  EXPECT_FALSE(latent.q_down);
  EXPECT_EQ(attention.num_kv_heads, 4);
  EXPECT_EQ(attention.head_dim, 16);
  EXPECT_EQ(attention.q.weight.row_map[0], 8);
  EXPECT_EQ(attention.q.weight.row_map[8], 0);
  EXPECT_EQ(attention.q.weight.row_map[16], 24);
  EXPECT_EQ(latent.kv_down.weight.rows(), 32);
  EXPECT_EQ(latent.k_rope.weight.row_map[0], 32);
  EXPECT_EQ(latent.k_up.weight.row_map[8], 20);
  EXPECT_EQ(latent.v_up.weight.row_map[0], 8);
  EXPECT_EQ(latent.v_up.weight.rows(), 48);
  EXPECT_EQ(attention.o.weight.k, 48);
  ASSERT_EQ(latent.value_columns.size(), 48u);
  EXPECT_EQ(latent.value_columns[12], 16);
  EXPECT_FALSE(network.layers[0].mlp.mixture);
  ASSERT_TRUE(network.layers[1].mlp.mixture);
  EXPECT_EQ(network.layers[1].mlp.mixture->shared->up.weight.rows(), 32);
}

TEST(LatentAttention, QueriesMayHaveALatentToo) {
  const Checkpoint checkpoint = open_golden("deepseek_v3");
  const Network network = bind_changed(checkpoint, [](json::object&) {}).value();
  const AttentionLayer& attention = network.layers[0].attention;
  EXPECT_EQ(attention.latent->q_down->weight.rows(), 24);
  EXPECT_EQ(attention.q.weight.k, 24);
  // YaRN's temperature: (0.1 log 8 + 1)^2 / sqrt(16).
  EXPECT_FLOAT_EQ(attention.scale, 0.36478227f);
  const RoutingRule& rule = network.layers[1].mlp.mixture->rule;
  EXPECT_EQ(rule.num_groups, 4);
  EXPECT_EQ(rule.groups_per_token, 2);
  EXPECT_EQ(rule.group_score, RoutingRule::GroupScore::kTwoLargest);
  EXPECT_EQ(rule.correction.size(), 8u);
}

TEST(LatentAttention, WhatDoesNotFitIsNamed) {
  const Checkpoint checkpoint = open_golden("deepseek_v3");
  const auto message = [&](const std::function<void(json::object & layer)>& change) {
    return bind_changed(checkpoint, [&](json::object& description) { change(description["layers"].get_array()[0].get_object()); })
        .status()
        .message();
  };
  const auto attention = [](json::object& layer) -> json::object& { return layer["attention"].get_object(); };
  EXPECT_THAT(message([&](json::object& layer) { attention(layer)["k"] = "self_attn.k_proj"; }),
              HasSubstr("layers[0].attention.k: is no part of an attention with \"latent\""));
  EXPECT_THAT(message([&](json::object& layer) { attention(layer)["latent"].get_object().erase("q_norm"); }),
              HasSubstr("layers[0].attention.latent.q_norm: \"q_rank\", \"q_down\" and \"q_norm\" belong together"));
  EXPECT_THAT(message([&](json::object& layer) { attention(layer)["position"].get_object()["rotary_dim"] = 4; }),
              HasSubstr("latent attention rotates the 8 dimensions of rope_dim"));
  EXPECT_THAT(message([&](json::object& layer) { attention(layer)["latent"].get_object()["value_dim"] = 13; }),
              HasSubstr("kv_b_proj.weight\" is [80, 32], expected [num_heads * (head_dim - rope_dim + value_dim), kv_rank] = [84, 32]"));
  EXPECT_THAT(message([&](json::object& layer) { layer["moe"].get_object()["num_groups"] = 3; }),
              HasSubstr("8 experts in 3 groups, 3 experts of 2 groups a token"));
  EXPECT_THAT(message([&](json::object& layer) { layer["moe"].get_object()["correction"] = "mlp.gate.other"; }),
              HasSubstr("missing tensor \"model.layers.1.mlp.gate.other\""));
}

TEST(StackedExperts, GateAndUpMayAlternateAndHaveBiases) {
  for (const char* name : {"gpt_oss", "gpt_oss-mxfp4"}) {
    SCOPED_TRACE(name);
    const Checkpoint checkpoint = open_golden(name);
    const Network network = bind_changed(checkpoint, [](json::object&) {}).value();
    const MlpLayer& mlp = network.layers[0].mlp;
    EXPECT_EQ(network.layers[0].attention.sinks.size(), 4u);
    EXPECT_EQ(network.layers[0].attention.window, 16);
    EXPECT_FALSE(network.layers[1].attention.window);
    ASSERT_TRUE(mlp.gate_limit);
    EXPECT_FLOAT_EQ(mlp.gate_limit->limit, 0.8f);
    EXPECT_FLOAT_EQ(mlp.gate_limit->offset, 1);
    const Expert& expert = mlp.mixture->experts[1];
    const bool packed = expert.up.weight.grouped != nullptr;
    EXPECT_EQ(packed, std::string_view(name) == "gpt_oss-mxfp4");
    EXPECT_EQ(expert.gate.weight.row_map[1], (packed ? 0 : 64) + 2);
    EXPECT_EQ(expert.up.weight.row_map[1], (packed ? 0 : 64) + 3);
    EXPECT_EQ(expert.gate.weight.transposed, !packed);
    EXPECT_EQ(expert.down.bias.size(), 64u);
    EXPECT_NE(expert.gate.bias, expert.up.bias);
    EXPECT_NE(mlp.mixture->experts[0].down.bias, expert.down.bias);
  }
}

// Stored as [k, rows] or as blocks of FP4: in both cases what is packed are the numbers.
TEST(StackedExperts, AreThePackedNumbers) {
  const Checkpoint plain = open_golden("gpt_oss"), mxfp4 = open_golden("gpt_oss-mxfp4");
  const Network plain_network = bind_changed(plain, [](json::object&) {}).value(),
                mxfp4_network = bind_changed(mxfp4, [](json::object&) {}).value();
  ThreadPool pool(2);
  const Weights plain_weights = Weights::pack(plain_network, plain, pool).value(),
                mxfp4_weights = Weights::pack(mxfp4_network, mxfp4, pool).value();
  for (int e = 0; e < 4; ++e) {
    const Linear& linear = plain_network.layers[1].mlp.mixture->experts[static_cast<std::size_t>(e)].up;
    std::vector<float> row(64);
    plain_weights[plain_weights.id_of(linear)].unpack_row(5, row.data());
    const SourceTensor& stored = *linear.weight.tensor;
    for (int64_t c = 0; c < 64; ++c) {
      uint16_t bits = 0;
      std::memcpy(&bits, stored.data.data() + 2 * ((e * 64 + c) * 64 + 11), 2);
      ASSERT_EQ(row[static_cast<std::size_t>(c)], bf16_to_f32(bits));
    }
    const Linear& packed = mxfp4_network.layers[1].mlp.mixture->experts[static_cast<std::size_t>(e)].down;
    const PackedMatrix& matrix = mxfp4_weights[mxfp4_weights.id_of(packed)];
    EXPECT_EQ(matrix.weight_class(), WeightClass::kMXFP4);
    EXPECT_EQ(matrix.bytes(), 64 * 17);
    std::vector<float> numbers(32), scales(1);
    std::vector<uint8_t> codes(32);
    constexpr float kFp4[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    matrix.unpack_row(7, numbers.data());
    packed.weight.grouped->read_codes(7, codes.data());
    packed.weight.grouped->read_scales(7, scales.data());
    for (std::size_t i = 0; i < 32; ++i) ASSERT_EQ(numbers[i], scales[0] * kFp4[codes[i]]);
    EXPECT_EQ(packed.weight.grouped->stored_bytes, 64 * 17);
  }
}

}  // namespace
}  // namespace millrace
