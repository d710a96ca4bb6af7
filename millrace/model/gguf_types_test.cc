// A GGUF file whose matrices are all of one type, for every type that files use, through the whole engine: on the exact path it must give,
// bit for bit, what its numbers give as f32; the fast path and the one for prompts must stay near it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

#include "millrace/formats/test_files.h"
#include "millrace/kernels/gemm_test_data.h"
#include "millrace/model/cpu_executor.h"
#include "millrace/model/family.h"
#include "millrace/model/sequence_runner.h"
#include "millrace/tensor/dequantize.h"

namespace millrace {
namespace {

constexpr int64_t kHidden = 256, kIntermediate = 512, kVocabulary = 96, kLayers = 2, kKvRows = 128;

uint32_t gguf_id(DType dtype) {
  for (uint32_t id = 0; id < 64; ++id) {
    if (dtype_from_gguf_id(id) == dtype) return id;
  }
  return 0;
}

// A llama with random matrices, as stored or as the numbers they stand for.
std::string file_of(DType dtype, bool as_numbers) {
  GgufParts parts;
  const auto integer = [&](std::string_view key, uint32_t value) { parts.entries.push_back(gguf_scalar(key, 4, value)); };
  parts.entries.push_back(gguf_text("general.architecture", "llama"));
  integer("llama.block_count", kLayers);
  integer("llama.context_length", 128);
  integer("llama.embedding_length", kHidden);
  integer("llama.feed_forward_length", kIntermediate);
  integer("llama.attention.head_count", 4);
  integer("llama.attention.head_count_kv", 2);
  integer("llama.vocab_size", kVocabulary);
  parts.entries.push_back(gguf_scalar("llama.attention.layer_norm_rms_epsilon", 6, 1e-5f));
  parts.data.clear();
  const auto add = [&](std::string_view name, const std::vector<uint64_t>& dimensions, DType type, const void* data, std::size_t bytes) {
    parts.tensors.push_back(gguf_tensor(name, dimensions, gguf_id(type), parts.data.size()));
    parts.data.append(static_cast<const char*>(data), bytes);
    parts.data.resize((parts.data.size() + 31) / 32 * 32);
  };
  uint32_t seed = 1;
  double largest_rms = 0;
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t k) {
    const StoredRows stored = random_rows(dtype, rows, k, ++seed);
    std::vector<float> numbers(static_cast<std::size_t>(rows * k));
    double squares = 0;
    for (int64_t row = 0; row < rows; ++row) dequantize_row(dtype, stored.row(row), k, numbers.data() + row * k);
    for (const float number : numbers) squares += static_cast<double>(number) * number;
    largest_rms = std::max(largest_rms, std::sqrt(squares / static_cast<double>(numbers.size())));
    const std::vector<uint64_t> dimensions = {static_cast<uint64_t>(k), static_cast<uint64_t>(rows)};
    if (as_numbers) {
      add(name, dimensions, DType::kF32, numbers.data(), numbers.size() * sizeof(float));
    } else {
      add(name, dimensions, dtype, stored.bytes.data(), stored.bytes.size());
    }
  };
  for (int layer = 0; layer < kLayers; ++layer) {
    const std::string block = fmt::format("blk.{}.", layer);
    matrix(block + "attn_q.weight", kHidden, kHidden);
    matrix(block + "attn_k.weight", kKvRows, kHidden);
    matrix(block + "attn_v.weight", kKvRows, kHidden);
    matrix(block + "attn_output.weight", kHidden, kHidden);
    matrix(block + "ffn_gate.weight", kIntermediate, kHidden);
    matrix(block + "ffn_up.weight", kIntermediate, kHidden);
    matrix(block + "ffn_down.weight", kHidden, kIntermediate);
  }
  matrix("token_embd.weight", kVocabulary, kHidden);
  matrix("output.weight", kVocabulary, kHidden);
  // Norms bring what reaches a matrix to a size at which its results are about one, whatever the size of the type's numbers.
  const std::vector<float> norm(kHidden, static_cast<float>(1 / (16 * largest_rms)));
  for (int layer = 0; layer < kLayers; ++layer) {
    for (const char* name : {"attn_norm", "ffn_norm"})
      add(fmt::format("blk.{}.{}.weight", layer, name), {kHidden}, DType::kF32, norm.data(), kHidden * sizeof(float));
  }
  add("output_norm.weight", {kHidden}, DType::kF32, norm.data(), kHidden * sizeof(float));
  return parts.bytes();
}

struct Computed {
  std::vector<float> logits;
  std::string weight_class;
};

Computed compute(const std::string& path, GemmPath gemm_path) {
  const Checkpoint checkpoint = Checkpoint::open(path).value();
  const Result<Network> network = bind_network(choose_family(checkpoint, std::nullopt).value(), checkpoint);
  EXPECT_TRUE(network.is_ok()) << network.status().message();
  ThreadPool pool(2);
  Result<Weights> packed = Weights::pack(*network, checkpoint, pool);
  EXPECT_TRUE(packed.is_ok()) << packed.status().message();
  const auto weights = std::make_shared<const Weights>(std::move(packed).value());
  const Isa isa = *choose_isa();
  Program program = lower_network(*network, *weights, isa, gemm_path);
  fuse(program);
  auto executor = CpuExecutor::create(*network, weights, std::move(program), pool, {isa, gemm_path, KvDType::kF32, 64});
  auto runner = SequenceRunner::create(**executor, 64);
  runner->reset(64, 40);
  std::vector<int32_t> tokens(48);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 13 % kVocabulary);
  Computed computed;
  computed.weight_class = weight_class_name((*weights)[0].weight_class());
  EXPECT_TRUE(
      runner
          ->append(tokens, 17, true,
                   [&](int64_t, std::span<const float> row) { computed.logits.insert(computed.logits.end(), row.begin(), row.end()); })
          .is_ok());
  return computed;
}

class GgufTypes : public testing::TestWithParam<DType> {};

TEST_P(GgufTypes, AreComputedAsStored) {
  const TemporaryDirectory directory;
  const std::string stored = directory.write("stored.gguf", file_of(GetParam(), false)),
                    numbers = directory.write("numbers.gguf", file_of(GetParam(), true));
  const Computed want = compute(numbers, GemmPath::kExact), exact = compute(stored, GemmPath::kExact),
                 fast = compute(stored, GemmPath::kFast);
  EXPECT_EQ(exact.weight_class, GetParam() == DType::kTQ1_0 ? "TQ2_0" : dtype_name(GetParam()));
  ASSERT_EQ(want.logits.size(), static_cast<std::size_t>(48 * kVocabulary));
  ASSERT_EQ(exact.logits, want.logits);
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < want.logits.size(); ++i) {
    difference += (fast.logits[i] - want.logits[i]) * (fast.logits[i] - want.logits[i]);
    size += want.logits[i] * want.logits[i];
  }
  EXPECT_GT(size, 1.0);
  EXPECT_LT(std::sqrt(difference / size), 0.05);  // int8 activations
}

INSTANTIATE_TEST_SUITE_P(All, GgufTypes, testing::ValuesIn(kGemmDTypes),
                         [](const auto& dtype) { return std::string(dtype_name(dtype.param)); });

}  // namespace
}  // namespace millrace
