// Mixtures of experts whose matrices are stored in other formats than the rest of the network: on the exact path they must give what their
// numbers give as f32, and the fast path must stay near it. The formula itself is judged by the golden models (engine/golden_test.cc), its
// independence of company by engine/determinism_test.cc.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <numeric>
#include <random>

#include "millrace/base/test_data.h"
#include "millrace/model/cpu_executor.h"
#include "millrace/model/family.h"
#include "millrace/model/sequence_runner.h"
#include "millrace/tensor/dequantize.h"

namespace millrace {
namespace {

// Random codes with a scale (and a minimum) that gives numbers of some tenths.
std::vector<std::byte> random_blocks(DType dtype, int64_t elements, std::mt19937& random) {
  const DTypeInfo& info = dtype_info(dtype);
  std::vector<std::byte> bytes(static_cast<std::size_t>(elements / info.block_elements * info.block_bytes));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  const auto put = [&](std::size_t at, int half) {
    bytes[at] = static_cast<std::byte>(half & 255), bytes[at + 1] = static_cast<std::byte>(half >> 8);
  };
  const auto block_bytes = static_cast<std::size_t>(info.block_bytes);
  for (std::size_t block = 0; block < bytes.size(); block += block_bytes) {
    switch (dtype) {
      case DType::kF16: put(block, 0xb000 ^ static_cast<int>(random() & 0x83ff)); break;  // 0.125 to 0.25 of either sign
      case DType::kQ4_0: put(block, 0x2400); break;                                       // 1 / 64
      case DType::kQ8_0: put(block, 0x1400); break;                                       // 1 / 1024
      default:                                                                            // Q5_1
        put(block, 0x2000);                                                               // 1 / 128
        put(block + 2, 0xb000);                                                           // -1 / 8
    }
  }
  return bytes;
}

// Tensors in memory of their own.
struct Made {
  SourceTensor tensor;
  std::vector<std::byte> bytes;
};

const SourceTensor* make(std::deque<Made>& made, const SourceTensor& like, DType dtype, std::vector<std::byte> bytes) {
  made.push_back({like, std::move(bytes)});
  made.back().tensor.dtype = dtype;
  made.back().tensor.data = made.back().bytes;
  return &made.back().tensor;
}

std::vector<float> logits_of(const Network& network, const Checkpoint& checkpoint, GemmPath path) {
  ThreadPool pool(2);
  Result<Weights> packed = Weights::pack(network, checkpoint, pool);
  EXPECT_TRUE(packed.is_ok()) << packed.status().message();
  const auto weights = std::make_shared<const Weights>(std::move(packed).value());
  const Isa isa = *choose_isa();
  Program program = lower_network(network, *weights, isa, path);
  fuse(program);
  const CpuExecutorOptions options{isa, path, KvDType::kF32, 64};
  auto executor = CpuExecutor::create(network, weights, std::move(program), pool, options);
  auto runner = SequenceRunner::create(**executor, 64);
  runner->reset(64);
  std::vector<int32_t> tokens(40);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 13 % 500);
  std::vector<float> logits;
  EXPECT_TRUE(
      runner->append(tokens, 17, true, [&](int64_t, std::span<const float> row) { logits.insert(logits.end(), row.begin(), row.end()); })
          .is_ok());
  return logits;
}

// What is stored gives what its numbers give as f32; the fast path is near it.
void expect_same_logits(const Network& stored, const Network& numbers, const Checkpoint& checkpoint) {
  const std::vector<float> want = logits_of(numbers, checkpoint, GemmPath::kExact), exact = logits_of(stored, checkpoint, GemmPath::kExact);
  const std::vector<float> fast = logits_of(stored, checkpoint, GemmPath::kFast);
  ASSERT_EQ(exact.size(), want.size());
  double difference = 0, size = 0, largest = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    largest = std::max(largest, static_cast<double>(std::abs(exact[i] - want[i])));
    difference += (fast[i] - want[i]) * (fast[i] - want[i]);
    size += want[i] * want[i];
  }
  EXPECT_LE(largest, 1e-4);
  EXPECT_GT(size, 1.0);
  EXPECT_LT(std::sqrt(difference / size), 0.1);  // a few tokens near the border between two experts take the other one
}

TEST(Experts, AreComputedInTheFormatTheyAreStoredIn) {
  std::mt19937 random(3);
  for (const char* golden : {"olmoe", "granite_moe", "gpt_oss"}) {  // a tensor for each expert; stacked ones; those transposed
    for (const DType dtype : {DType::kF16, DType::kQ4_0, DType::kQ5_1, DType::kQ8_0}) {
      SCOPED_TRACE(fmt::format("{} {}", golden, dtype_name(dtype)));
      const Checkpoint checkpoint = Checkpoint::open((source_dir() / "tests/golden/models" / golden).string()).value();
      Network stored = bind_network(choose_family(checkpoint, std::nullopt).value(), checkpoint).value();
      Network numbers = bind_network(choose_family(checkpoint, std::nullopt).value(), checkpoint).value();
      std::deque<Made> made;
      std::map<const SourceTensor*, std::pair<const SourceTensor*, const SourceTensor*>> replaced;
      for (std::size_t layer = 0; layer < stored.layers.size(); ++layer) {
        for (std::size_t e = 0; e < stored.layers[layer].mlp.mixture->experts.size(); ++e) {
          Expert &a = stored.layers[layer].mlp.mixture->experts[e], &b = numbers.layers[layer].mlp.mixture->experts[e];
          for (const auto& [packed, plain] : {std::pair{&a.gate, &b.gate}, {&a.up, &b.up}, {&a.down, &b.down}}) {
            const SourceTensor* original = packed->weight.tensor;
            if (!replaced.contains(original)) {
              int64_t elements = 1;
              for (const int64_t size : original->shape) elements *= size;
              const SourceTensor* blocks = make(made, *original, dtype, random_blocks(dtype, elements, random));
              std::vector<std::byte> floats(static_cast<std::size_t>(elements) * sizeof(float));
              dequantize_row(dtype, blocks->data.data(), elements, reinterpret_cast<float*>(floats.data()));
              replaced[original] = {blocks, make(made, *original, DType::kF32, std::move(floats))};
            }
            packed->weight.tensor = replaced[original].first;
            plain->weight.tensor = replaced[original].second;
          }
        }
      }
      expect_same_logits(stored, numbers, checkpoint);
    }
  }
}

// 8-bit codes in groups of 32 with columns in random order, as GPTQ's act-order leaves them.
class ShuffledWeights final : public GroupedWeights {
 public:
  ShuffledWeights(int64_t num_rows, int64_t num_columns, std::mt19937& random) {
    kind = CodeKind::kInt8;
    rows = num_rows;
    k = num_columns;
    group_size = 32;
    for (int32_t i = 0; i < k; ++i) columns.push_back(i);
    std::shuffle(columns.begin(), columns.end(), random);
    for (int64_t i = 0; i < rows * k; ++i) codes_.push_back(static_cast<uint8_t>(random()));
    for (int64_t i = 0; i < rows * num_groups(); ++i) scales_.push_back(static_cast<float>(1 + random() % 8) / 1024);
  }

  void read_codes(int64_t row, uint8_t* codes) const override { std::copy_n(codes_.begin() + row * k, k, codes); }
  void read_scales(int64_t row, float* scales) const override { std::copy_n(scales_.begin() + row * num_groups(), num_groups(), scales); }
  void read_zero_points(int64_t, uint8_t* zero_points) const override { std::fill_n(zero_points, num_groups(), uint8_t{128}); }

  // [rows, k], f32, the columns where they belong.
  std::vector<std::byte> numbers() const {
    std::vector<std::byte> bytes(codes_.size() * sizeof(float));
    auto* floats = reinterpret_cast<float*>(bytes.data());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < k; ++i) {
        floats[row * k + columns[static_cast<std::size_t>(i)]] = static_cast<float>(codes_[static_cast<std::size_t>(row * k + i)] - 128) *
                                                                 scales_[static_cast<std::size_t>(row * num_groups() + i / 32)];
      }
    }
    return bytes;
  }

 private:
  std::vector<uint8_t> codes_;  // [rows, k]
  std::vector<float> scales_;   // [rows, num_groups]
};

std::vector<int32_t> in_order(int64_t k) {
  std::vector<int32_t> columns(static_cast<std::size_t>(k));
  std::iota(columns.begin(), columns.end(), 0);
  return columns;
}

TEST(Experts, TheSharedExpertMayBeInActOrder) {
  std::mt19937 random(5);
  const Checkpoint checkpoint = Checkpoint::open((source_dir() / "tests/golden/models/qwen2_moe").string()).value();
  Network stored = bind_network(choose_family(checkpoint, std::nullopt).value(), checkpoint).value();
  Network numbers = bind_network(choose_family(checkpoint, std::nullopt).value(), checkpoint).value();
  std::deque<Made> made;
  for (std::size_t layer = 0; layer < stored.layers.size(); ++layer) {
    Expert &a = *stored.layers[layer].mlp.mixture->shared, &b = *numbers.layers[layer].mlp.mixture->shared;
    // Its down has 80 columns, no multiple of 32.
    for (const auto& [packed, plain] : {std::pair{&a.gate, &b.gate}, {&a.up, &b.up}}) {
      const auto weights = std::make_shared<ShuffledWeights>(packed->weight.rows(), packed->weight.k, random);
      plain->weight.tensor = make(made, *packed->weight.tensor, DType::kF32, weights->numbers());
      packed->weight.grouped = weights;
    }
  }
  expect_same_logits(stored, numbers, checkpoint);
}

// GPTQ gives gate and up of an expert one order, since they have one input, and every expert another.
TEST(Experts, EachMayBeInAnActOrderOfItsOwn) {
  std::mt19937 random(7);
  const Checkpoint checkpoint = Checkpoint::open((source_dir() / "tests/golden/models/mixtral").string()).value();
  enum class Orders { kShared, kEach, kOneExpert, kOnlyDown };
  for (const Orders orders : {Orders::kShared, Orders::kEach, Orders::kOneExpert, Orders::kOnlyDown}) {
    SCOPED_TRACE(static_cast<int>(orders));
    Network stored = bind_network(choose_family(checkpoint, std::nullopt).value(), checkpoint).value();
    Network numbers = bind_network(choose_family(checkpoint, std::nullopt).value(), checkpoint).value();
    std::deque<Made> made;
    for (std::size_t layer = 0; layer < stored.layers.size(); ++layer) {
      auto &packed = stored.layers[layer].mlp.mixture->experts, &plain = numbers.layers[layer].mlp.mixture->experts;
      for (std::size_t e = 0; e < packed.size(); ++e) {
        const auto make_grouped = [&](Linear& a, Linear& b, const std::vector<int32_t>* columns) {
          const auto weights = std::make_shared<ShuffledWeights>(a.weight.rows(), a.weight.k, random);
          if (columns != nullptr) weights->columns = *columns;
          b.weight.tensor = make(made, *a.weight.tensor, DType::kF32, weights->numbers());
          if (weights->columns == in_order(a.weight.k)) weights->columns.clear();
          a.weight.grouped = weights;
          return weights->columns;
        };
        const std::vector<int32_t> plain_order = in_order(64);
        const bool ordered = orders == Orders::kOneExpert ? e == 1 : orders != Orders::kOnlyDown;
        const std::vector<int32_t> of_gate = make_grouped(packed[e].gate, plain[e].gate, ordered ? nullptr : &plain_order);
        make_grouped(packed[e].up, plain[e].up, !ordered ? &plain_order : orders == Orders::kShared ? &of_gate : nullptr);
        make_grouped(packed[e].down, plain[e].down, nullptr);
      }
    }
    expect_same_logits(stored, numbers, checkpoint);
  }
}

}  // namespace
}  // namespace millrace
