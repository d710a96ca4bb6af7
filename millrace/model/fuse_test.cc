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

std::vector<float> logits(const Model& model, Program program, ThreadPool& pool, const CpuExecutorOptions& options) {
  std::vector<float> out;
  auto executor = CpuExecutor::create(model.network, model.weights, std::move(program), pool, options);
  auto runner = SequenceRunner::create(**executor, 64);
  runner->reset(64);
  std::vector<int32_t> tokens(40);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 13 % 500);
  EXPECT_TRUE(runner->append(tokens, 17, true, [&](int64_t, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); }).is_ok());
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
      for (KvDType kv_dtype : {KvDType::kF32, KvDType::kBf16, KvDType::kInt8}) {
        SCOPED_TRACE(fmt::format("{} path {} kv {}", entry.path().filename().string(), static_cast<int>(path), static_cast<int>(kv_dtype)));
        const Program unfused = lower_network(model->network, *model->weights, isa, path);
        Program fused = unfused;
        fuse(fused);
        EXPECT_LT(fused.ops.size(), unfused.ops.size());
        EXPECT_TRUE(std::none_of(fused.ops.begin(), fused.ops.end(), [](const Op& op) { return op.kind == OpKind::kAdd || op.kind == OpKind::kActivate; }));
        const CpuExecutorOptions options{isa, path, kv_dtype, 64};
        EXPECT_EQ(logits(*model, fused, pool, options), logits(*model, unfused, pool, options));
      }
    }
  }
}

}  // namespace
}  // namespace millrace
