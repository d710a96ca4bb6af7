// An operation left unfused is legal, slower, and gives the same bits: every family, every path and KV dtype, fused against unfused.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "millrace/base/test_data.h"
#include "millrace/model/cpu_executor.h"
#include "millrace/model/family.h"
#include "millrace/model/sequence_runner.h"

namespace millrace {
namespace {

struct Model {
  Checkpoint checkpoint;
  Network network;
  std::shared_ptr<const Weights> weights;
};

void load(const std::filesystem::path& directory, ThreadPool& pool, std::optional<Model>& model) {
  auto checkpoint = Checkpoint::open(directory.string());
  ASSERT_TRUE(checkpoint.is_ok()) << checkpoint.status().message();
  model.emplace(Model{std::move(checkpoint).value(), {}, nullptr});
  const auto family = choose_family(model->checkpoint, std::nullopt);
  ASSERT_TRUE(family.is_ok()) << family.status().message();
  auto network = bind_network(*family, model->checkpoint);
  ASSERT_TRUE(network.is_ok()) << network.status().message();
  model->network = std::move(network).value();
  auto weights = Weights::pack(model->network, model->checkpoint, pool);
  ASSERT_TRUE(weights.is_ok()) << weights.status().message();
  model->weights = std::make_shared<const Weights>(std::move(weights).value());
}

// `chunk` tokens a step. num_stages: of the last step.
std::vector<float> logits(const Model& model, Program program, ThreadPool& pool, const CpuExecutorOptions& options, int64_t chunk = 17,
                          int64_t* num_stages = nullptr) {
  std::vector<float> out;
  auto executor = CpuExecutor::create(model.network, model.weights, std::move(program), pool, options);
  auto runner = SequenceRunner::create(**executor, 64);
  runner->reset(64);
  std::vector<int32_t> tokens(40);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 13 % 500);
  EXPECT_TRUE(
      runner->append(tokens, chunk, true, [&](int64_t, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); })
          .is_ok());
  if (num_stages != nullptr) *num_stages = (*executor)->num_stages();
  return out;
}

TEST(Fuse, ChangesNoBitOfAnyFamily) {
  const Isa isa = *choose_isa();
  ThreadPool pool(2);
  for (const auto& entry : std::filesystem::directory_iterator(source_dir() / "tests/golden/models")) {
    std::optional<Model> model;
    load(entry.path(), pool, model);
    ASSERT_TRUE(model && model->weights);
    for (GemmPath path : {GemmPath::kFast, GemmPath::kExact}) {
      for (KvDType kv_dtype : kAllKvDTypes) {
        SCOPED_TRACE(fmt::format("{} path {} kv {}", entry.path().filename().string(), static_cast<int>(path), static_cast<int>(kv_dtype)));
        const Program unfused = lower_network(model->network, *model->weights, isa, path);
        Program fused = unfused;
        fuse(fused);
        EXPECT_LT(fused.ops.size(), unfused.ops.size());
        // Only gate and up in different act-orders are two operations, which an activation cannot join.
        const bool act_order = std::any_of(fused.ops.begin(), fused.ops.end(), [](const Op& op) { return op.columns != nullptr; });
        EXPECT_TRUE(std::none_of(fused.ops.begin(), fused.ops.end(),
                                 [&](const Op& op) { return op.kind == OpKind::kAdd || (op.kind == OpKind::kActivate && !act_order); }));
        const CpuExecutorOptions options{isa, path, kv_dtype, 64};
        EXPECT_EQ(logits(*model, fused, pool, options), logits(*model, unfused, pool, options));
      }
    }
  }
}

// Small operations of a step of few rows are done along with the next one: the threads wait for each other five times a layer.
TEST(Fuse, AStepOfOneTokenHasFiveStagesALayer) {
  const Isa isa = *choose_isa();
  ThreadPool pool(2);
  for (const char* name : {"llama", "qwen3", "gemma2", "bloom"}) {
    SCOPED_TRACE(name);
    std::optional<Model> model;
    load(source_dir() / "tests/golden/models" / name, pool, model);
    ASSERT_TRUE(model && model->weights);
    Program program = lower_network(model->network, *model->weights, isa, GemmPath::kFast);
    fuse(program);
    const CpuExecutorOptions options{isa, GemmPath::kFast, KvDType::kBf16, 64};
    int64_t many = 0, one = 0;
    EXPECT_EQ(logits(*model, program, pool, options, 17, &many), logits(*model, program, pool, options, 1, &one));
    const auto layers = static_cast<int64_t>(model->network.layers.size());
    // And the embedding, the gathered rows, the head and sampling; Gemma norms what it adds to the residual, twice a layer.
    EXPECT_EQ(one, (std::string_view(name) == "gemma2" ? 7 : 5) * layers + 4);
    EXPECT_GE(many, one + 2 * layers) << "the norms of more rows are shared out";
  }
}

}  // namespace
}  // namespace millrace
