// What is bound of encoder-decoders, and that fusing changes no bit of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "millrace/base/test_data.h"
#include "millrace/model/cpu_executor.h"
#include "millrace/model/family.h"
#include "millrace/model/relative_bias.h"
#include "millrace/model/sequence_runner.h"

namespace millrace {
namespace {

using testing::ElementsAre, testing::HasSubstr;

struct Bound {
  Checkpoint checkpoint;
  Network network;
};

std::unique_ptr<Bound> bind(const std::filesystem::path& directory) {
  auto bound = std::make_unique<Bound>(Bound{Checkpoint::open(directory.string()).value(), {}});
  bound->network = bind_network(choose_family(bound->checkpoint, std::nullopt).value(), bound->checkpoint).value();
  return bound;
}

std::filesystem::path golden(std::string_view name) { return source_dir() / "tests/golden/seq2seq" / name; }

TEST(BindSource, T5HasTwoStacks) {
  const auto bound = bind(golden("t5"));
  const Network& decoder = bound->network;
  ASSERT_NE(decoder.encoder, nullptr);
  const Network& encoder = *decoder.encoder;
  EXPECT_THAT(decoder.start_tokens, ElementsAre(0));
  EXPECT_TRUE(encoder.is_encoder() && encoder.feeds_decoder && !decoder.is_encoder());
  EXPECT_EQ(encoder.layers.size(), 2u);
  EXPECT_EQ(decoder.layers.size(), 2u);
  EXPECT_EQ(encoder.embedding.tensor, decoder.embedding.tensor);
  EXPECT_TRUE(encoder.final_norm && decoder.final_norm);
  const DecoderLayer& layer = decoder.layers[1];
  ASSERT_TRUE(layer.cross);
  EXPECT_TRUE(layer.cross->cross && !layer.cross->causal && !layer.cross->relative_bias && layer.attention.causal);
  EXPECT_FALSE(encoder.layers[0].cross || encoder.layers[0].attention.causal);
  EXPECT_FLOAT_EQ(layer.attention.scale, 1.0f);
  EXPECT_EQ(layer.cross->k.weight.tensor->name, "decoder.block.1.layer.1.EncDecAttention.k.weight");
  EXPECT_FLOAT_EQ(decoder.logits_multiplier, 1.0f);
  // Every layer has the first one's biases: both ways in the encoder, back only in the decoder.
  const RelativeBias &both = *encoder.layers[1].attention.relative_bias, &back = *layer.attention.relative_bias;
  EXPECT_EQ(both.reach, 128);
  ASSERT_EQ(both.table.size(), 4u * 257u);
  EXPECT_NE(both.table[128 + 1], both.table[128 - 1]);
  EXPECT_EQ(back.table[128 + 1], back.table[128]);
  EXPECT_NE(back.table[128 - 1], back.table[128]);
}

TEST(BindSource, TiedLogitsOfTheFirstT5AreScaled) {
  const auto bound = bind(golden("t5-relu"));
  EXPECT_FLOAT_EQ(bound->network.logits_multiplier, 1 / std::sqrt(48.0f));
  EXPECT_TRUE(bound->network.tied_head);
  EXPECT_FALSE(bound->network.layers[0].mlp.gated);
  EXPECT_EQ(bound->network.layers[0].mlp.activation, Activation::kRelu);
}

TEST(BindSource, BartAndMarian) {
  const auto bart = bind(golden("bart"));
  EXPECT_THAT(bart->network.start_tokens, ElementsAre(2, 0));
  EXPECT_EQ(bart->network.position_offset, 2);
  EXPECT_EQ(bart->network.encoder->max_positions, 128);
  EXPECT_NE(bart->network.positions->tensor, bart->network.encoder->positions->tensor);
  EXPECT_EQ(bart->network.head.bias.size(), 600u);
  EXPECT_TRUE(bart->network.layers[0].cross->sum_norm && bart->network.embedding_norm);
  const auto marian = bind(golden("marian"));
  EXPECT_THAT(marian->network.start_tokens, ElementsAre(599));
  EXPECT_FALSE(marian->network.positions.has_value());
  ASSERT_EQ(marian->network.sinusoids.size(), 128u * 48u);
  EXPECT_FLOAT_EQ(marian->network.sinusoids[48 * 3 + 0], std::sin(3.0f));
  EXPECT_FLOAT_EQ(marian->network.sinusoids[48 * 3 + 24], std::cos(3.0f));
  EXPECT_FLOAT_EQ(marian->network.sinusoids[48 * 3 + 23], static_cast<float>(std::sin(3 / std::pow(10000.0, 46.0 / 48))));
}

// The encoder's last hidden states and the decoder's logits after a few tokens.
std::vector<float> outputs(const Network& network, const std::shared_ptr<const Weights>& weights, bool fused, ThreadPool& pool,
                           const CpuExecutorOptions& options) {
  Program decoder = lower_network(network, *weights, options.isa, options.path);
  Program encoder = lower_encoder(network, *weights, options.isa, options.path);
  if (fused) {
    fuse(decoder);
    fuse(encoder);
  }
  auto executor = CpuExecutor::create(network, weights, std::move(decoder), pool, options).value();
  executor->take_encoder(CpuExecutor::create(*network.encoder, weights, std::move(encoder), pool, options).value());
  auto runner = SequenceRunner::create(*executor, 64).value();
  std::vector<int32_t> source, tokens;
  for (int32_t i = 0; i < 50; ++i) source.push_back(5 + 7 * i % 500);
  for (int32_t i = 0; i < 40; ++i) tokens.push_back(9 + 11 * i % 500);
  EXPECT_TRUE(runner.reset_with_source(source, 64, 1).is_ok());
  std::vector<float> all;
  const Status status = runner.append(tokens, 17, true, [&](int64_t position, std::span<const float> logits) {
    if (position == 0) all.assign(executor->wait().hidden.begin(), executor->wait().hidden.end());
    all.insert(all.end(), logits.begin(), logits.end());
  });
  EXPECT_TRUE(status.is_ok()) << status.message();
  for (const float x : all) EXPECT_TRUE(std::isfinite(x));
  return all;
}

TEST(BindSource, FusingChangesNoBit) {
  ThreadPool pool(2);
  for (const auto& entry : std::filesystem::directory_iterator(source_dir() / "tests/golden/seq2seq")) {
    const auto bound = bind(entry.path());
    const auto weights = std::make_shared<const Weights>(Weights::pack(bound->network, bound->checkpoint, pool).value());
    for (const GemmPath path : {GemmPath::kFast, GemmPath::kExact}) {
      SCOPED_TRACE(testing::Message() << entry.path().filename() << " path " << static_cast<int>(path));
      const CpuExecutorOptions options{*choose_isa(), path, KvDType::kBf16, 64};
      EXPECT_EQ(outputs(bound->network, weights, true, pool, options), outputs(bound->network, weights, false, pool, options));
    }
  }
}

TEST(BindSource, ASequenceNeedsASourceThatFits) {
  const auto bound = bind(golden("bart"));
  ThreadPool pool(1);
  const auto weights = std::make_shared<const Weights>(Weights::pack(bound->network, bound->checkpoint, pool).value());
  const CpuExecutorOptions options{Isa::kScalar, GemmPath::kFast, KvDType::kBf16, 256};
  auto executor =
      CpuExecutor::create(bound->network, weights, lower_network(bound->network, *weights, Isa::kScalar, options.path), pool, options)
          .value();
  executor->take_encoder(CpuExecutor::create(*bound->network.encoder, weights,
                                             lower_encoder(bound->network, *weights, Isa::kScalar, options.path), pool, options)
                             .value());
  auto runner = SequenceRunner::create(*executor, 500).value();
  const std::vector<int32_t> tokens = {2}, outside = {600}, long_text(129, 7);
  EXPECT_THAT(std::string(runner.append(tokens, 8, false, {}).message()), HasSubstr("answers a source text, and has none"));
  EXPECT_THAT(std::string(runner.reset_with_source(long_text, 8, 1).message()), HasSubstr("129 tokens, expected 1 to 128"));
  EXPECT_THAT(std::string(runner.reset_with_source(outside, 8, 1).message()), HasSubstr("token id 600 is outside"));
}

}  // namespace
}  // namespace millrace
