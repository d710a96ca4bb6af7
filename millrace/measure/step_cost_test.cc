// Against numbers computed by hand for a small network of the golden models.
#include "millrace/measure/step_cost.h"

#include <gtest/gtest.h>

#include "millrace/base/test_data.h"
#include "millrace/model/family.h"

namespace millrace {
namespace {

// tests/golden/models/llama: 3 layers, hidden 64, intermediate 160, 4 heads and 2 KV heads of 16, 640 tokens, an untied head, bf16.
constexpr int64_t kLayers = 3, kHidden = 64, kIntermediate = 160, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kVocabulary = 640;

class StepCostTest : public testing::Test {
 protected:
  void SetUp() override { load("llama", KvDType::kBf16); }

  void load(const char* name, KvDType kv_dtype) {
    executor_.reset();
    auto checkpoint = Checkpoint::open((source_dir() / "tests/golden/models" / name).string());
    ASSERT_TRUE(checkpoint.is_ok()) << checkpoint.status().message();
    checkpoint_.emplace(std::move(checkpoint).value());
    const auto family = choose_family(*checkpoint_, std::nullopt);
    ASSERT_TRUE(family.is_ok()) << family.status().message();
    auto network = bind_network(*family, *checkpoint_);
    ASSERT_TRUE(network.is_ok()) << network.status().message();
    network_ = std::move(network).value();
    auto weights = Weights::pack(network_, *checkpoint_, pool_);
    ASSERT_TRUE(weights.is_ok()) << weights.status().message();
    weights_ = std::make_shared<const Weights>(std::move(weights).value());
    Program program = lower_network(network_, *weights_, *choose_isa(), GemmPath::kFast);
    fuse(program);
    executor_ =
        std::move(CpuExecutor::create(network_, weights_, std::move(program), pool_, {*choose_isa(), GemmPath::kFast, kv_dtype, 64}))
            .value();
  }

  OpCost sum(const StepPlan& plan, std::optional<OpKind> kind = std::nullopt) const {
    OpCost total;
    const auto costs = step_cost(*executor_, plan);
    for (std::size_t i = 0; i < costs.size(); ++i) {
      if (!kind || executor_->program().ops[i].kind == *kind) total += costs[i];
    }
    return total;
  }

  ThreadPool pool_{1};
  std::optional<Checkpoint> checkpoint_;
  Network network_;
  std::shared_ptr<const Weights> weights_;
  std::unique_ptr<CpuExecutor> executor_;
};

// `rows` tokens of one sequence after `depth` others, the last one's logits wanted.
StepPlan plan_of(int32_t rows, int32_t depth, bool wanted = true) {
  StepPlan plan;
  plan.tokens.assign(static_cast<std::size_t>(rows), 1);
  plan.sequences.push_back({0, rows, depth});
  if (wanted) plan.outputs.push_back({rows - 1, nullptr});
  return plan;
}

TEST_F(StepCostTest, CountsEveryMatrixOnce) {
  ASSERT_EQ(network_.hidden_size, kHidden);
  ASSERT_EQ(network_.layers[0].mlp.up.weight.rows(), kIntermediate);
  ASSERT_EQ(network_.layers[0].attention.num_kv_heads, kKvHeads);
  ASSERT_EQ(network_.vocab_size, kVocabulary);
  const int64_t q = kHeads * kHeadDim, kv = kKvHeads * kHeadDim;
  const int64_t layer = kHidden * (q + 2 * kv) + q * kHidden + 3 * kHidden * kIntermediate, head = kVocabulary * kHidden;
  const OpCost decode = sum(plan_of(1, 0), OpKind::kLinear);
  EXPECT_EQ(decode.weight_bytes, 2 * (kLayers * layer + head));
  EXPECT_EQ(decode.kv_bytes, 0);
  EXPECT_DOUBLE_EQ(decode.all_operations(), 2.0 * (kLayers * layer + head));
  // The weights are read once for all rows, and the head computes only the wanted one.
  const OpCost prefill = sum(plan_of(40, 0), OpKind::kLinear);
  EXPECT_EQ(prefill.weight_bytes, decode.weight_bytes);
  EXPECT_DOUBLE_EQ(prefill.all_operations(), 2.0 * (40 * kLayers * layer + head));
}

// tests/golden/models/mixtral: as llama, but 2 layers of 4 experts, of which a token takes 2.
TEST_F(StepCostTest, CountsTheExpertsThatTokensTake) {
  load("mixtral", KvDType::kBf16);
  const int64_t layers = 2, experts = 4, q = kHeads * kHeadDim, kv = kKvHeads * kHeadDim, expert = 3 * kHidden * kIntermediate;
  const int64_t dense = kHidden * (q + 2 * kv) + q * kHidden + experts * kHidden, head = kVocabulary * kHidden;
  const OpCost decode = sum(plan_of(1, 0), OpKind::kLinear);
  EXPECT_EQ(decode.weight_bytes, 2 * (layers * (dense + 2 * expert) + head));
  EXPECT_DOUBLE_EQ(decode.all_operations(), 2.0 * (layers * (dense + 2 * expert) + head));
  // Of two tokens' even choices, 3 of 4 experts are read; of many tokens' all.
  EXPECT_EQ(sum(plan_of(2, 0), OpKind::kLinear).weight_bytes, 2 * (layers * (dense + 3 * expert) + head));
  const OpCost prefill = sum(plan_of(60, 0), OpKind::kLinear);
  EXPECT_EQ(prefill.weight_bytes, 2 * (layers * (dense + 4 * expert) + head));
  EXPECT_DOUBLE_EQ(prefill.all_operations(), 2.0 * (60 * layers * (dense + 2 * expert) + head));
}

TEST_F(StepCostTest, CountsNormsAndEmbeddingRows) {
  EXPECT_EQ(sum(plan_of(5, 0), OpKind::kEmbed).weight_bytes, 5 * kHidden * 2);
  EXPECT_EQ(sum(plan_of(5, 0), OpKind::kNorm).weight_bytes, (2 * kLayers + 1) * kHidden * 4);
}

TEST_F(StepCostTest, CountsKeysAndValues) {
  const int64_t token = 2 * kKvHeads * kHeadDim * 2;  // bytes in one layer: keys and values in bf16
  EXPECT_EQ(sum(plan_of(1, 99), OpKind::kPosition).kv_bytes, kLayers * token);
  const OpCost decode = sum(plan_of(1, 99), OpKind::kAttention);
  EXPECT_EQ(decode.kv_bytes, kLayers * 100 * token);
  EXPECT_DOUBLE_EQ(decode.operations[static_cast<std::size_t>(Arithmetic::kBf16)], kLayers * 4.0 * kHeadDim * kHeads * 100);
  // Rows 10, 11 and 12 see 11, 12 and 13 keys; the 13 are read once.
  const OpCost prefill = sum(plan_of(3, 10), OpKind::kAttention);
  EXPECT_EQ(prefill.kv_bytes, kLayers * 13 * token);
  EXPECT_DOUBLE_EQ(prefill.all_operations(), kLayers * 4.0 * kHeadDim * kHeads * (11 + 12 + 13));
}

TEST_F(StepCostTest, SequencesShareWeightsAndNotKeys) {
  StepPlan plan = plan_of(1, 9);
  plan.tokens.push_back(2);
  plan.sequences.push_back({1, 2, 19});
  plan.outputs.push_back({1, nullptr});
  const OpCost one = sum(plan_of(1, 9)), two = sum(plan), other = sum(plan_of(1, 19));
  EXPECT_EQ(two.kv_bytes, one.kv_bytes + other.kv_bytes);
  EXPECT_EQ(two.weight_bytes, one.weight_bytes + kHidden * 2);  // one more row of the embedding
  EXPECT_DOUBLE_EQ(two.all_operations(), one.all_operations() + other.all_operations());
}

TEST_F(StepCostTest, AChunkWithoutOutputsStopsBeforeTheHead) {
  const OpCost with = sum(plan_of(8, 0)), without = sum(plan_of(8, 0, false));
  EXPECT_EQ(with.weight_bytes - without.weight_bytes, 2 * kVocabulary * kHidden + 4 * kHidden);
  EXPECT_DOUBLE_EQ(with.all_operations() - without.all_operations(), 2.0 * kVocabulary * kHidden);
}

TEST_F(StepCostTest, AWindowHidesKeys) {
  load("mistral", KvDType::kInt8);
  int64_t window = 0;
  for (const DecoderLayer& layer : network_.layers) window = std::max(window, layer.attention.window.value_or(0));
  ASSERT_GT(window, 2);
  const AttentionLayer& layer = network_.layers[0].attention;
  const auto layers = static_cast<double>(network_.layers.size());
  const auto depth = static_cast<int32_t>(2 * window);
  const OpCost decode = sum(plan_of(1, depth), OpKind::kAttention);
  EXPECT_DOUBLE_EQ(decode.operations[static_cast<std::size_t>(Arithmetic::kInt8)],
                   layers * 4.0 * static_cast<double>(layer.head_dim * layer.num_heads * window));
  // Two rows see one key more than one row.
  const OpCost rows = sum(plan_of(2, depth), OpKind::kAttention);
  EXPECT_EQ(rows.kv_bytes * window, decode.kv_bytes * (window + 1));
}

TEST(MachineBound, IsTheSlowerOfReadingAndComputing) {
  MachineBound bound{.bytes_per_second = 10e9};
  bound.operations_per_second = {200e9, 100e9, 50e9};
  OpCost cost{.weight_bytes = 900, .kv_bytes = 100, .operations = {2000, 0, 500}};
  EXPECT_DOUBLE_EQ(bound.memory_seconds(cost), 100e-9);
  EXPECT_DOUBLE_EQ(bound.compute_seconds(cost), 20e-9);
  EXPECT_DOUBLE_EQ(bound.seconds(cost), 100e-9);
  cost.operations[2] = 50'000;
  EXPECT_DOUBLE_EQ(bound.seconds(cost), 1010e-9);
}

}  // namespace
}  // namespace millrace
