// Load-time quantization: of every golden model, and against checkpoints in published formats whose codes a plain loop made of the same
// weights.
#include "millrace/model/quantize.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "millrace/base/json.h"
#include "millrace/base/temporary_directory.h"
#include "millrace/base/test_data.h"
#include "millrace/model/cpu_executor.h"
#include "millrace/model/family.h"
#include "millrace/model/name_pattern.h"
#include "millrace/model/sequence_runner.h"
#include "millrace/model/verify.h"
#include "millrace/tensor/dequantize.h"
#include "millrace/tensor/half.h"
#include "millrace/tensor/round_to_nearest.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr QuantizationType kTypes[] = {QuantizationType::kInt8, QuantizationType::kInt4, QuantizationType::kNf4, QuantizationType::kFp8};

struct Model {
  Checkpoint checkpoint;
  Network network;
  std::string words;  // what quantize_network said
};

// Quantized where there are options. Errors of quantizing go to `status`.
std::unique_ptr<Model> open_model(const fs::path& directory, const std::optional<QuantizationOptions>& options = {},
                                  Status* status = nullptr) {
  auto checkpoint = Checkpoint::open(directory.string());
  MR_CHECK(checkpoint.is_ok(), checkpoint.status().message());
  auto model = std::make_unique<Model>(Model{std::move(checkpoint).value(), {}, {}});
  const auto family = choose_family(model->checkpoint, std::nullopt);
  MR_CHECK(family.is_ok(), family.status().message());
  auto network = bind_network(*family, model->checkpoint);
  MR_CHECK(network.is_ok(), network.status().message());
  model->network = std::move(network).value();
  if (!options) return model;
  auto words = quantize_network(model->checkpoint, *options, model->network);
  if (status != nullptr) *status = words.is_ok() ? Status::ok() : words.status();
  MR_CHECK(words.is_ok() || status != nullptr, words.status().message());
  if (words.is_ok()) model->words = *words;
  return model;
}

std::shared_ptr<const Weights> pack(const Model& model, ThreadPool& pool) {
  auto packed = Weights::pack(model.network, model.checkpoint, pool);
  MR_CHECK(packed.is_ok(), packed.status().message());
  return std::make_shared<const Weights>(std::move(packed).value());
}

std::vector<float> logits(const Model& model, std::shared_ptr<const Weights> weights, GemmPath path, ThreadPool& pool) {
  const Isa isa = *choose_isa();
  Program program = lower_network(model.network, *weights, isa, path);
  fuse(program);
  auto executor = CpuExecutor::create(model.network, std::move(weights), std::move(program), pool,
                                      {isa, path, path == GemmPath::kExact ? KvDType::kF32 : KvDType::kBf16, 32});
  auto runner = SequenceRunner::create(**executor, 32);
  runner->reset(32);
  std::vector<int32_t> tokens(20);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 13 % 64);
  std::vector<float> out;
  EXPECT_TRUE(runner->append(tokens, 32, true, [&](int64_t, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); })
                  .is_ok());
  return out;
}

fs::path golden(std::string_view name) { return source_dir() / "tests/golden/models" / name; }

// Those whose weights are stored plainly.
std::vector<fs::path> plain_goldens() {
  std::vector<fs::path> models;
  for (const char* kind : {"models", "encoders", "seq2seq"}) {
    for (const auto& entry : fs::directory_iterator(source_dir() / "tests/golden" / kind)) {
      auto checkpoint = Checkpoint::open(entry.path().string());
      MR_CHECK(checkpoint.is_ok(), checkpoint.status().message());
      if (!checkpoint->config().contains("quantization_config")) models.push_back(entry.path());
    }
  }
  std::sort(models.begin(), models.end());
  return models;
}

// The largest distance of a weight from the nearest code, as a share of its row's largest weight.
double share_of_row(QuantizationType type) {
  switch (type) {
    case QuantizationType::kInt8: return 0.5 / 127.5;
    case QuantizationType::kInt4: return 0.5 * 2 / 15;  // zero points: from the lowest to the highest weight, at most twice the largest
    case QuantizationType::kNf4: return (1 - 0.6961928) / 2;
    case QuantizationType::kFp8: return 16.0 / 448;
  }
  return 0;
}

// Transposed, stacked, split and permuted matrices too: whatever the file's order, a row is that row of the plain model, rounded.
TEST(Quantize, EveryMatrixOfEveryFamilyIsItsPlainSelfRounded) {
  ThreadPool pool(2);
  int num_models = 0;
  for (const fs::path& path : plain_goldens()) {
    const auto plain = open_model(path);
    const auto plain_weights = pack(*plain, pool);
    for (const QuantizationType type : kTypes) {
      SCOPED_TRACE(fmt::format("{} {}", path.filename().string(), quantization_name(type)));
      const auto quantized = open_model(path, QuantizationOptions{.type = type});
      const auto weights = pack(*quantized, pool);
      ASSERT_EQ(weights->size(), plain_weights->size());
      int64_t num_quantized = 0;
      for (std::size_t i = 0; i < weights->size(); ++i) {
        const auto id = static_cast<WeightId>(i);
        const PackedMatrix &matrix = (*weights)[id], &was = (*plain_weights)[id];
        const bool coded = weights->linear(id).weight.grouped != nullptr;
        if (!coded) {
          ASSERT_EQ(matrix.weight_class(), was.weight_class());
        }
        num_quantized += coded;
        const bool is_head = !quantized->network.is_encoder() && &weights->linear(id) == &quantized->network.head;
        const double share =
            share_of_row(is_head && (type == QuantizationType::kInt4 || type == QuantizationType::kNf4) ? QuantizationType::kInt8 : type);
        std::vector<float> got(static_cast<std::size_t>(matrix.k())), want(got.size());
        for (int64_t row = 0; row < matrix.rows(); ++row) {
          matrix.unpack_row(row, got.data());
          was.unpack_row(row, want.data());
          double largest = 0;
          for (const float weight : want) largest = std::max(largest, std::abs(double{weight}));
          // 2^-8: scales in bf16, which may end the codes so much before the last weight.
          const double bound = coded ? 1.001 * (share + 0x1p-8) * largest + 1e-9 : 0;
          for (std::size_t c = 0; c < got.size(); ++c) {
            ASSERT_LE(std::abs(double{got[c]} - want[c]), bound)
                << weights->linear(id).weight.tensor->name << " [" << row << ", " << c << "] was " << want[c] << ", is " << got[c];
          }
        }
      }
      EXPECT_GT(num_quantized, 0);
      EXPECT_LT(weights->bytes(), plain_weights->bytes());
      for (const DecoderLayer& layer : quantized->network.layers) {
        if (!layer.mlp.mixture) continue;
        EXPECT_EQ(layer.mlp.mixture->router.weight.grouped, nullptr);
        EXPECT_NE(layer.mlp.mixture->experts[0].up.weight.grouped, nullptr);
      }
    }
    ++num_models;
  }
  EXPECT_GE(num_models, 50);
}

struct Distance {
  double l2 = 0, kl = 0;  // relative; mean over positions, nats
};

Distance distance(std::span<const float> from, std::span<const float> to, std::size_t vocab_size) {
  double square = 0, norm = 0, kl = 0;
  for (std::size_t at = 0; at < from.size(); at += vocab_size) {
    double sum_from = 0, sum_to = 0, top_from = -INFINITY, top_to = -INFINITY;
    for (std::size_t i = at; i < at + vocab_size; ++i) {
      top_from = std::max(top_from, double{from[i]});
      top_to = std::max(top_to, double{to[i]});
    }
    for (std::size_t i = at; i < at + vocab_size; ++i) {
      sum_from += std::exp(from[i] - top_from);
      sum_to += std::exp(to[i] - top_to);
    }
    const double log_from = top_from + std::log(sum_from), log_to = top_to + std::log(sum_to);
    for (std::size_t i = at; i < at + vocab_size; ++i) {
      kl += std::exp(from[i] - log_from) * ((from[i] - log_from) - (to[i] - log_to));
      square += (double{to[i]} - from[i]) * (double{to[i]} - from[i]);
      norm += double{from[i]} * from[i];
    }
  }
  return {std::sqrt(square / norm), kl / static_cast<double>(from.size() / vocab_size)};
}

// What a quantized model may be away from the exact path of the plain one. The goldens are small and random, so that nothing averages out:
// rows of 64 weights that all count, and in a mixture a router that chooses other experts. docs/quality.md has numbers of trained models.
// A state adds up what was rounded over all tokens.
Distance bound_of(QuantizationType type, bool has_mixture, bool has_state) {
  Distance bound;
  switch (type) {
    case QuantizationType::kInt8: bound = {0.06, 0.02}; break;
    case QuantizationType::kFp8: bound = {0.22, 0.2}; break;
    case QuantizationType::kInt4:
    case QuantizationType::kNf4: bound = {0.55, 1.4}; break;
  }
  if (has_mixture) bound = {3 * bound.l2, 3 * bound.kl};
  if (has_state) bound = {2 * bound.l2, 2 * bound.kl};
  return bound;
}

TEST(Quantize, LogitsOfEveryDecoderStayWithinBounds) {
  ThreadPool pool(2);
  std::map<QuantizationType, Distance> worst;
  for (const fs::path& path : plain_goldens()) {
    const auto plain = open_model(path);
    if (plain->network.is_encoder() || plain->network.encoder != nullptr) continue;  // of which these logits would say nothing
    const std::vector<float> want = logits(*plain, pack(*plain, pool), GemmPath::kExact, pool);
    const auto vocab_size = static_cast<std::size_t>(plain->network.vocab_size);
    const auto& layers = plain->network.layers;
    const bool has_state =
        std::any_of(layers.begin(), layers.end(), [](const DecoderLayer& layer) { return layer.state_space.has_value(); });
    for (const QuantizationType type : kTypes) {
      SCOPED_TRACE(fmt::format("{} {}", path.filename().string(), quantization_name(type)));
      const auto quantized = open_model(path, QuantizationOptions{.type = type});
      const auto weights = pack(*quantized, pool);
      const std::vector<float> exact = logits(*quantized, weights, GemmPath::kExact, pool),
                               fast = logits(*quantized, weights, GemmPath::kFast, pool);
      const Distance bound = bound_of(type, plain->network.has_mixture(), has_state);
      for (const auto* path_logits : {&exact, &fast}) {
        const Distance found = distance(want, *path_logits, vocab_size);
        EXPECT_LE(found.l2, bound.l2);
        EXPECT_LE(found.kl, bound.kl);
        worst[type] = {std::max(worst[type].l2, found.l2), std::max(worst[type].kl, found.kl)};
      }
      // And the fast path no farther from the exact one than `verify` allows any model; of 20 tokens of a mixture one that takes another
      // expert is much.
      const VerifyTolerance tolerance = default_tolerance(true, KvDType::kBf16, plain->network.has_mixture());
      const Distance rounding = distance(exact, fast, vocab_size);
      const double slack = plain->network.has_mixture() ? 3 : 1;
      EXPECT_LE(rounding.l2, slack * tolerance.fast_relative_l2);
      EXPECT_LE(rounding.kl, slack * tolerance.fast_kl);
    }
  }
  for (const auto& [type, found] : worst)
    fmt::print("{}: largest relative L2 {:.4f}, largest mean KL {:.5f}\n", quantization_name(type), found.l2, found.kl);
}

// Copies a checkpoint of one file, with other tensors in the place of some.
struct NewTensor {
  std::string suffix, dtype;  // in the place of ".weight"
  std::vector<int64_t> shape;
  std::string bytes;
};
using Replace = std::function<std::vector<NewTensor>(const std::vector<float>& weights, int64_t rows, int64_t k, DType dtype)>;

void write_checkpoint(const fs::path& from, const fs::path& to, const json::object& quantization_config, const Replace& replace) {
  const Checkpoint checkpoint = std::move(Checkpoint::open(from.string())).value();
  fs::create_directories(to);
  json::object header;
  std::string data;
  const auto add = [&](const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape, std::string_view bytes) {
    header[name] = json::object{{"dtype", dtype},
                                {"shape", json::array(shape.begin(), shape.end())},
                                {"data_offsets", json::array{data.size(), data.size() + bytes.size()}}};
    data += bytes;
  };
  for (const SourceTensor& tensor : checkpoint.tensors()) {
    const std::string_view bytes(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
    if (!matches_pattern("*layers.*_proj.weight", tensor.name)) {
      add(tensor.name, std::string(dtype_name(tensor.dtype)), tensor.shape, bytes);
      continue;
    }
    const int64_t rows = tensor.shape[0], k = tensor.shape[1];
    std::vector<float> weights(static_cast<std::size_t>(rows * k));
    dequantize_row(tensor.dtype, tensor.data.data(), rows * k, weights.data());
    const std::string module = tensor.name.substr(0, tensor.name.size() - std::strlen(".weight"));
    for (const NewTensor& made : replace(weights, rows, k, tensor.dtype)) add(module + made.suffix, made.dtype, made.shape, made.bytes);
  }
  json::object config = checkpoint.config();
  config["quantization_config"] = quantization_config;
  std::ofstream(to / "config.json") << json::serialize(config);
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t size = text.size();
  std::ofstream file(to / "model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&size), sizeof size) << text << data;
}

template <class T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_scale(std::string& bytes, DType dtype, float& scale) {
  if (dtype == DType::kF32) return append(bytes, scale);
  const uint16_t half = dtype == DType::kF16 ? f32_to_f16(scale) : f32_to_bf16(scale);
  scale = dtype == DType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
  append(bytes, half);
}

float largest_of(std::span<const float> weights) {
  float largest = 0;
  for (const float weight : weights) largest = std::max(largest, std::abs(weight));
  return largest;
}

std::vector<NewTensor> int8_channels(const std::vector<float>& weights, int64_t rows, int64_t k, DType) {
  std::string codes, scales;
  for (int64_t row = 0; row < rows; ++row) {
    const std::span<const float> w(weights.data() + row * k, static_cast<std::size_t>(k));
    const float scale = largest_of(w) / 127.5f;
    append(scales, scale);
    for (const float weight : w) append(codes, static_cast<int8_t>(std::clamp(std::nearbyint(weight / scale), -128.0f, 127.0f)));
  }
  return {{".weight", "I8", {rows, k}, codes}, {".weight_scale", "F32", {rows, 1}, scales}};
}

std::vector<NewTensor> fp8_channels(const std::vector<float>& weights, int64_t rows, int64_t k, DType) {
  std::string codes, scales;
  for (int64_t row = 0; row < rows; ++row) {
    const std::span<const float> w(weights.data() + row * k, static_cast<std::size_t>(k));
    const float scale = largest_of(w) / 448.0f;
    append(scales, scale);
    for (const float weight : w) {
      uint8_t nearest = 0;
      double best = INFINITY;
      for (int code = 0; code < 256; ++code) {
        if ((code & 0x7f) == 0x7f) continue;
        float value;
        const auto byte = static_cast<std::byte>(code);
        dequantize_row(DType::kF8E4M3, &byte, 1, &value);
        const double off = std::abs(double{value} - weight / scale);
        if (off > best || (off == best && code % 2 != 0) || std::signbit(value) != std::signbit(weight)) continue;
        best = off;
        nearest = static_cast<uint8_t>(code);
      }
      append(codes, nearest);
    }
  }
  return {{".weight", "F8_E4M3", {rows, k}, codes}, {".weight_scale", "F32", {rows, 1}, scales}};
}

template <int64_t kGroup, bool kSymmetric>
std::vector<NewTensor> int4_groups(const std::vector<float>& weights, int64_t rows, int64_t k, DType dtype) {
  std::string codes, scales, zeros;
  const int64_t groups = k / kGroup;
  std::vector<int> stored_zeros;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      const std::span<const float> w(weights.data() + row * k + group * kGroup, static_cast<std::size_t>(kGroup));
      const float low = std::min(0.0f, *std::min_element(w.begin(), w.end())), high = std::max(0.0f, *std::max_element(w.begin(), w.end()));
      float scale = kSymmetric ? largest_of(w) / 7.5f : (high - low) / 15.0f;
      append_scale(scales, dtype, scale);
      const float zero = kSymmetric ? 0.0f : std::nearbyint(std::clamp(-8.0f - low / scale, -8.0f, 7.0f));
      stored_zeros.push_back(static_cast<int>(zero) + 8);
      for (std::size_t i = 0; i < w.size(); i += 8) {
        uint32_t word = 0;
        for (std::size_t j = 0; j < 8; ++j)
          word |= static_cast<uint32_t>(std::clamp(std::nearbyint(w[i + j] / scale + zero), -8.0f, 7.0f) + 8) << (4 * j);
        append(codes, word);
      }
    }
  }
  for (int64_t row = 0; row < rows; row += 8) {
    for (int64_t group = 0; group < groups; ++group) {
      uint32_t word = 0;
      for (int64_t j = 0; j < 8; ++j)
        word |= static_cast<uint32_t>(stored_zeros[static_cast<std::size_t>((row + j) * groups + group)]) << (4 * j);
      append(zeros, word);
    }
  }
  std::vector<NewTensor> tensors = {{".weight_packed", "I32", {rows, k / 8}, codes},
                                    {".weight_scale", std::string(dtype_name(dtype)), {rows, groups}, scales}};
  if (!kSymmetric) tensors.push_back({".weight_zero_point", "I32", {rows / 8, groups}, zeros});
  return tensors;
}

// Blocks of the whole matrix: 32, so that none begins within a row.
std::vector<NewTensor> nf4_blocks(const std::vector<float>& weights, int64_t rows, int64_t k, DType) {
  std::string codes, scales, map;
  uint8_t pending = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const float scale = largest_of({weights.data() + i / 32 * 32, 32});
    if (i % 32 == 0) append(scales, scale);
    uint8_t nearest = 0;
    for (uint8_t code = 1; code < 16; ++code) {
      if (std::abs(double{kNormalFloat4[code]} - weights[i] / scale) < std::abs(double{kNormalFloat4[nearest]} - weights[i] / scale))
        nearest = code;
    }
    if (i % 2 == 1) append(codes, static_cast<uint8_t>(pending << 4 | nearest));
    pending = nearest;
  }
  for (const float number : kNormalFloat4) append(map, number);
  const std::string state =
      json::serialize(json::object{{"quant_type", "nf4"}, {"blocksize", 32}, {"dtype", "float32"}, {"shape", json::array{rows, k}}});
  return {{".weight", "U8", {rows * k / 2, 1}, codes},
          {".weight.absmax", "F32", {rows * k / 32}, scales},
          {".weight.quant_map", "F32", {16}, map},
          {".weight.quant_state.bitsandbytes__nf4", "U8", {static_cast<int64_t>(state.size())}, state}};
}

json::object compressed_tensors(const char* format, const char* type, int bits, bool symmetric, std::optional<int64_t> group) {
  json::object weights{{"num_bits", bits}, {"type", type}, {"symmetric", symmetric}, {"strategy", group ? "group" : "channel"}};
  if (group) weights["group_size"] = *group;
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"ignore", json::array{"lm_head"}},
          {"config_groups", json::object{{"group_0", json::object{{"targets", json::array{"Linear"}}, {"weights", std::move(weights)}}}}}};
}

// The same numbers as a published checkpoint of the same weights: the same panels where the scales are stored in the same type, and the
// same logits bit for bit.
TEST(Quantize, EqualsAPublishedCheckpointOfTheSameWeights) {
  struct Case {
    const char* name;
    QuantizationOptions options;
    json::object config;
    Replace replace;
    bool same_panels;
  };
  const std::vector<std::string> head = {"lm_head"};
  const std::vector<Case> cases = {
      {"int8",
       {.type = QuantizationType::kInt8, .exclude = head},
       compressed_tensors("int-quantized", "int", 8, true, {}),
       int8_channels,
       true},
      {"fp8",
       {.type = QuantizationType::kFp8, .exclude = head},
       compressed_tensors("float-quantized", "float", 8, true, {}),
       fp8_channels,
       true},
      {"int4 symmetric",
       {.type = QuantizationType::kInt4, .group_size = 32, .symmetric = true, .exclude = head},
       compressed_tensors("pack-quantized", "int", 4, true, 32),
       int4_groups<32, true>,
       true},
      {"int4",
       {.type = QuantizationType::kInt4, .group_size = 32, .exclude = head},
       compressed_tensors("pack-quantized", "int", 4, false, 32),
       int4_groups<32, false>,
       true},
      {"nf4",
       {.type = QuantizationType::kNf4, .group_size = 32, .exclude = head},
       json::object{{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}, {"load_in_8bit", false}, {"bnb_4bit_quant_type", "nf4"}},
       nf4_blocks,
       false},
  };
  ThreadPool pool(2);
  const TemporaryDirectory folder;
  for (const char* name : {"llama", "llama2-spm", "qwen3"}) {  // stored in BF16, F16 and F32
    for (const Case& c : cases) {
      SCOPED_TRACE(fmt::format("{} {}", name, c.name));
      const fs::path published = folder.file(fmt::format("{} {}", name, c.name));
      write_checkpoint(golden(name), published, c.config, c.replace);
      const auto there = open_model(published), here = open_model(golden(name), c.options);
      const auto there_weights = pack(*there, pool), here_weights = pack(*here, pool);
      if (c.same_panels) {
        const auto a = there_weights->panels(), b = here_weights->panels();
        EXPECT_TRUE(a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0);
      }
      for (const GemmPath path : {GemmPath::kExact, GemmPath::kFast}) {
        const std::vector<float> want = logits(*there, there_weights, path, pool);
        ASSERT_FALSE(want.empty());
        EXPECT_EQ(logits(*here, here_weights, path, pool), want);
      }
    }
  }
}

TEST(Quantize, GroupSizesAndZeroPointsAreTheUsersChoice) {
  ThreadPool pool(1);
  const auto bytes = [&](QuantizationOptions options) { return pack(*open_model(golden("qwen3"), options), pool)->bytes(); };
  const int64_t rows = bytes({.type = QuantizationType::kInt4, .group_size = -1}),
                large = bytes({.type = QuantizationType::kInt4, .group_size = 64}),
                small = bytes({.type = QuantizationType::kInt4, .group_size = 32}),
                plain = bytes({.type = QuantizationType::kInt4, .group_size = 32, .symmetric = true});
  EXPECT_LT(rows, large);
  EXPECT_LT(large, small);
  EXPECT_LT(plain, small);
  EXPECT_EQ(rows, bytes({.type = QuantizationType::kInt4, .group_size = 1 << 20}));
}

TEST(Quantize, ExcludedMatricesStayAsStored) {
  struct Case {
    std::vector<std::string> exclude;
    std::function<bool(std::string_view)> stays;
  };
  const auto contains = [](const char* part) {
    return [part](std::string_view name) { return name.find(part) != std::string_view::npos; };
  };
  const std::vector<Case> cases = {
      {{"down_proj"}, contains("down_proj")},
      {{"mlp.*"}, contains(".mlp.")},
      {{"layers.1"}, contains("layers.1.")},
      {{"model.layers.0.self_attn.q_proj.weight"}, [](std::string_view name) { return name == "model.layers.0.self_attn.q_proj.weight"; }},
      {{"*"}, [](std::string_view) { return true; }},
      {{"lm_head"}, [](std::string_view name) { return name == "lm_head.weight" || name == "model.embed_tokens.weight"; }},
  };
  for (const char* name : {"llama", "qwen3"}) {
    ThreadPool pool(1);
    for (const Case& c : cases) {
      SCOPED_TRACE(fmt::format("{} {}", name, c.exclude[0]));
      const auto model = open_model(golden(name), QuantizationOptions{.type = QuantizationType::kInt8, .exclude = c.exclude});
      const auto weights = pack(*model, pool);
      for (std::size_t i = 0; i < weights->size(); ++i) {
        const Linear& linear = weights->linear(static_cast<WeightId>(i));
        EXPECT_EQ(linear.weight.grouped == nullptr, c.stays(linear.weight.tensor->name)) << linear.weight.tensor->name;
      }
      EXPECT_NE(model->words.find("excluded"), std::string::npos) << model->words;
    }
  }
}

std::string error_of(const fs::path& path, const QuantizationOptions& options) {
  Status status;
  open_model(path, options, &status);
  return status.is_ok() ? "no error" : status.message();
}

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST(Quantize, RefusesWhatItCannotDoByName) {
  for (const char* name : {"llama-gptq-int4", "llama-awq-int4", "llama-bnb-nf4", "llama-ct-w8a8", "gpt_oss-mxfp4"}) {
    SCOPED_TRACE(name);
    const std::string error = error_of(golden(name), {.type = QuantizationType::kInt8});
    EXPECT_HAS(error, "already quantized");
    const auto checkpoint = Checkpoint::open(golden(name).string());
    ASSERT_TRUE(checkpoint.is_ok());
    EXPECT_HAS(error, std::string_view(checkpoint->config().at("quantization_config").at("quant_method").as_string()));
    EXPECT_HAS(error, "\"model.layers.0.");
  }
  for (const int64_t size : {0, 16, 33, 96, -2})
    EXPECT_HAS(error_of(golden("llama"), {.type = QuantizationType::kInt4, .group_size = size}), fmt::format("group size: {}", size));
  EXPECT_HAS(error_of(golden("llama"), {.type = QuantizationType::kInt8, .exclude = {"mlp.*", "lm_heed"}}), "\"lm_heed\"");
  EXPECT_HAS(error_of(golden("llama"), {.type = QuantizationType::kInt8, .exclude = {"model.layers.?"}}), "\"model.layers.?\"");
  EXPECT_HAS(error_of(golden("qwen3_moe"), {.type = QuantizationType::kInt8, .exclude = {"mlp.gate"}}),
             "\"mlp.gate\"");  // the router is none of them
  EXPECT_EQ(error_of(golden("qwen3_moe"), {.type = QuantizationType::kInt8, .exclude = {"mlp.experts"}}), "no error");
}

TEST(Quantize, RowsThatBlocksDoNotDivideStayAsStoredAndAreCounted) {
  const auto model = open_model(golden("mpt"), QuantizationOptions{.type = QuantizationType::kInt8});  // hidden_size 48
  EXPECT_HAS(model->words, "no multiple of 32");
  const AttentionLayer& attention = model->network.layers[0].attention;
  EXPECT_EQ(attention.q.weight.grouped, nullptr);
  EXPECT_NE(model->network.layers[0].mlp.down.weight.grouped, nullptr);
}

TEST(Quantize, AWeightThatIsNotFiniteIsAnErrorThatNamesIt) {
  const TemporaryDirectory folder;
  ThreadPool pool(2);
  for (const char* name : {"qwen3", "gpt2"}) {  // stored [rows, k] and [k, rows]
    const fs::path copy = folder.file(name);
    fs::copy(golden(name), copy, fs::copy_options::recursive);
    std::string tensor_name;
    {
      const auto model = open_model(copy);
      const SourceTensor& tensor = *model->network.layers[1].mlp.down.weight.tensor;
      tensor_name = tensor.name;
      const auto text = read_text_file((copy / "model.safetensors").string(), std::size_t{1} << 30);
      ASSERT_TRUE(text.is_ok());
      std::string bytes = *text;
      const std::string_view data(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
      const std::size_t at = bytes.find(data);
      ASSERT_NE(at, std::string::npos);
      const float nan = NAN;
      std::memcpy(bytes.data() + at + 4 * static_cast<std::size_t>(3 * tensor.shape[1] + 17), &nan, 4);
      std::ofstream(copy / "model.safetensors", std::ios::binary) << bytes;
    }
    const auto model = open_model(copy, QuantizationOptions{.type = QuantizationType::kInt4});
    const auto packed = Weights::pack(model->network, model->checkpoint, pool);
    ASSERT_FALSE(packed.is_ok());
    EXPECT_HAS(packed.status().message(), tensor_name);
    EXPECT_HAS(packed.status().message(), "[3, 17] is nan");
  }
}

}  // namespace
}  // namespace millrace
