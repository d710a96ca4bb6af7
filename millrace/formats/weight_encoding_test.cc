#include "millrace/formats/weight_encoding.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "millrace/base/test_data.h"
#include "millrace/formats/test_files.h"
#include "millrace/tensor/dequantize.h"

namespace millrace {
namespace {

using testing::HasSubstr;

std::string from_hex(std::string_view hex) {
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) bytes += static_cast<char>(digit(hex[i]) * 16 + digit(hex[i + 1]));
  return bytes;
}

// Of tests/golden/weight_encodings.json, which tools/make_encoding_golden.py made with the libraries that write these formats.
struct StoredTensor {
  std::string dtype, bytes;
  std::vector<int64_t> shape;
};
struct EncodingCase {
  std::string name;
  json::object config;
  int64_t rows = 0, k = 0;
  std::map<std::string, StoredTensor> tensors;
  std::vector<float> expected;  // [rows, k]
};

std::vector<EncodingCase> golden_cases() {
  const auto text = read_text_file((source_dir() / "tests/golden/weight_encodings.json").string());
  MR_CHECK(text.is_ok(), text.status().message());
  const json::value parsed = parse_json(*text).value();
  std::vector<EncodingCase> cases;
  for (const json::value& value : parsed.at("cases").as_array()) {
    EncodingCase c{std::string(value.at("name").as_string()),
                   value.at("quantization_config").as_object(),
                   value.at("rows").as_int64(),
                   value.at("k").as_int64(),
                   {},
                   {}};
    for (const auto& [name, tensor] : value.at("tensors").as_object()) {
      StoredTensor stored{std::string(tensor.at("dtype").as_string()), from_hex(std::string_view(tensor.at("hex").as_string())), {}};
      for (const json::value& size : tensor.at("shape").as_array()) stored.shape.push_back(size.as_int64());
      c.tensors.emplace(name, std::move(stored));
    }
    const std::string expected = from_hex(std::string_view(value.at("expected").as_string()));
    c.expected.resize(expected.size() / 4);
    std::memcpy(c.expected.data(), expected.data(), expected.size());
    cases.push_back(std::move(c));
  }
  return cases;
}

EncodingCase golden_case(std::string_view name) {
  for (EncodingCase& c : golden_cases()) {
    if (c.name == name) return c;
  }
  ADD_FAILURE() << "no case " << name;
  return {};
}

// A checkpoint that holds the case's tensors under module "m".
struct OpenedCase {
  explicit OpenedCase(const EncodingCase& c) {
    json::object header;
    std::string data;
    for (const auto& [name, tensor] : c.tensors) {
      header["m." + name] = json::object{{"dtype", tensor.dtype},
                                         {"shape", json::array(tensor.shape.begin(), tensor.shape.end())},
                                         {"data_offsets", json::array{data.size(), data.size() + tensor.bytes.size()}}};
      data += tensor.bytes;
    }
    directory.write("config.json", json::serialize(json::object{{"quantization_config", c.config}}));
    std::string text = json::serialize(header);
    text.resize((text.size() + 7) / 8 * 8, ' ');
    directory.write("model.safetensors", safetensors_bytes(text, data));
    auto opened = Checkpoint::open(directory.path());
    MR_CHECK(opened.is_ok(), opened.status().message());
    checkpoint = std::make_unique<Checkpoint>(std::move(opened).value());
  }

  Result<std::optional<EncodedMatrix>> find(int64_t rows, int64_t k) const {
    MR_ASSIGN_OR_RETURN(const auto encoding, WeightEncoding::read(*checkpoint));
    return encoding->find(*checkpoint, "m", rows, k);
  }

  TemporaryDirectory directory;
  std::unique_ptr<Checkpoint> checkpoint;
};

// FP4 (E2M1), OCP Microscaling Formats specification 1.0.
constexpr float kFp4Numbers[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

// Row `row`, by the formula of grouped_weights.h, columns where they belong.
std::vector<float> numbers_of(const GroupedWeights& weights, int64_t row) {
  std::vector<uint8_t> codes(static_cast<std::size_t>(weights.k)), zeros(static_cast<std::size_t>(weights.num_groups()));
  std::vector<float> scales(zeros.size()), float_zeros(zeros.size()), numbers(codes.size());
  weights.read_codes(row, codes.data());
  weights.read_scales(row, scales.data());
  if (weights.float_zeros) {
    weights.read_float_zeros(row, float_zeros.data());
  } else if (is_integer_code(weights.kind)) {
    weights.read_zero_points(row, zeros.data());
  }
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const auto group = i / static_cast<std::size_t>(weights.group_size);
    float number = static_cast<float>(codes[i]) - (weights.float_zeros ? float_zeros[group] : static_cast<float>(zeros[group]));
    if (weights.kind == CodeKind::kCodebook4) number = weights.codebook[codes[i]];
    if (weights.kind == CodeKind::kMxfp4 || weights.kind == CodeKind::kNvfp4) number = kFp4Numbers[codes[i]];
    if (weights.kind == CodeKind::kF8E4M3) {
      const auto byte = static_cast<std::byte>(codes[i]);
      dequantize_row(DType::kF8E4M3, &byte, 1, &number);
    }
    numbers[weights.columns.empty() ? i : static_cast<std::size_t>(weights.columns[i])] = scales[group] * weights.unit * number;
  }
  return numbers;
}

TEST(WeightEncoding, EveryFormatMeansWhatTheLibrariesThatWriteItMeant) {
  const auto cases = golden_cases();
  ASSERT_GE(cases.size(), 30u);
  for (const EncodingCase& c : cases) {
    SCOPED_TRACE(c.name);
    const OpenedCase opened(c);
    const auto found = opened.find(c.rows, c.k);
    ASSERT_TRUE(found.is_ok()) << found.status().message();
    ASSERT_TRUE(found->has_value());
    const GroupedWeights& weights = *(*found)->weights;
    int64_t stored = 0, unused = 0;
    for (const auto& [name, tensor] : c.tensors)
      (WeightEncoding::reason_unused("m." + name).empty() ? stored : unused) += static_cast<int64_t>(tensor.bytes.size());
    EXPECT_EQ(weights.stored_bytes, stored) << "every tensor is a part";
    for (int64_t row = 0; row < c.rows; ++row) {
      const std::vector<float> got = numbers_of(weights, row);
      ASSERT_EQ(std::memcmp(got.data(), c.expected.data() + row * c.k, got.size() * sizeof(float)), 0)
          << "row " << row << ": " << got[0] << " " << c.expected[static_cast<std::size_t>(row * c.k)];
    }
  }
}

TEST(WeightEncoding, ActOrderSaysWhereColumnsBelong) {
  const EncodingCase c = golden_case("gptq_4bit_asym_32_act_order");
  const OpenedCase opened(c);
  const auto found = opened.find(c.rows, c.k);
  ASSERT_TRUE(found.is_ok() && found->has_value());
  EXPECT_EQ((*found)->weights->columns.size(), static_cast<std::size_t>(c.k));
}

TEST(WeightEncoding, ModulesWithoutPartsArePlain) {
  for (const char* name : {"gptq_4bit_sym_32", "awq_32", "bitsandbytes_nf4", "compressed_pack_4bit_sym_32", "compressed_fp8_channel",
                           "compressed_nvfp4", "hqq_4bit_64"}) {
    EncodingCase c = golden_case(name);
    c.tensors = {{"weight", {"F32", std::string(32, '\0'), {2, 4}}}};
    const auto found = OpenedCase(c).find(2, 4);
    ASSERT_TRUE(found.is_ok()) << name << ": " << found.status().message();
    EXPECT_FALSE(found->has_value()) << name;
  }
}

struct Damage {
  const char* name;  // of the golden case
  std::function<void(EncodingCase&)> apply;
  const char* error;
};
std::function<void(EncodingCase&)> without(const char* tensor) {
  return [=](EncodingCase& c) { ASSERT_EQ(c.tensors.erase(tensor), 1u) << tensor; };
}
std::function<void(EncodingCase&)> reshaped(const char* tensor, std::vector<int64_t> shape) {
  return [=](EncodingCase& c) { c.tensors.at(tensor).shape = shape; };
}
std::function<void(EncodingCase&)> as_dtype(const char* tensor, const char* dtype) {
  return [=](EncodingCase& c) { c.tensors.at(tensor).dtype = dtype; };
}
std::function<void(EncodingCase&)> with_bytes(const char* tensor, std::size_t at, std::string bytes) {
  return [=](EncodingCase& c) { c.tensors.at(tensor).bytes.replace(at, bytes.size(), bytes); };
}
std::function<void(EncodingCase&)> configured(const char* field, json::value value) {
  return [=](EncodingCase& c) { c.config[field] = value; };
}
std::function<void(EncodingCase&)> sized(int64_t rows, int64_t k) {
  return [=](EncodingCase& c) { c.rows = rows, c.k = k; };
}

TEST(WeightEncoding, WhatDoesNotFitIsRefusedByName) {
  const Damage table[] = {
      {"gptq_4bit_sym_32", without("qzeros"), "missing tensor \"m.qzeros\" (zero points of a quantized matrix)"},
      {"gptq_4bit_sym_32", without("scales"), "missing tensor \"m.scales\""},
      {"gptq_4bit_sym_32", as_dtype("qweight", "F32"), "\"m.qweight\" is F32, expected I32"},
      {"gptq_4bit_sym_32", reshaped("qweight", {4, 64}),
       "\"m.qweight\" is [4, 64], expected [in_features * bits / 32, out_features] = [8, 32]"},
      {"gptq_4bit_sym_32", reshaped("scales", {32, 2}), "\"m.scales\" is [32, 2], expected [groups, out_features] = [2, 32]"},
      {"gptq_4bit_sym_32", reshaped("g_idx", {64, 1}), "\"m.g_idx\" is [64, 1], expected [in_features] = [64]"},
      {"gptq_4bit_sym_32", with_bytes("g_idx", 8, std::string("\x07\0\0\0", 4)), "\"m.g_idx\"[2] is 7, expected 0 to 1"},
      {"gptq_4bit_sym_32", with_bytes("g_idx", 8, std::string("\xff\xff\xff\xff", 4)), "\"m.g_idx\"[2] is -1, expected 0 to 1"},
      {"gptq_4bit_sym_32", with_bytes("g_idx", 8, std::string("\x01\0\0\0", 4)), "does not put 32 columns into each group"},
      {"gptq_4bit_sym_32", configured("bits", 5), "quantization_config.bits is 5, expected 2, 3, 4 or 8"},
      {"gptq_4bit_sym_32", configured("bits", "four"), "quantization_config.bits is \"four\", expected an integer"},
      {"gptq_4bit_sym_32", configured("bits", nullptr), "quantization_config.bits is null, expected an integer"},
      {"gptq_4bit_sym_32", configured("bits", 8), "\"m.qweight\" is [8, 32], expected [in_features * bits / 32, out_features] = [16, 32]"},
      {"gptq_4bit_sym_32", configured("group_size", 16), "quantization_config.group_size is 16, expected -1 or a multiple of 32"},
      {"gptq_4bit_sym_32", configured("group_size", 0), "quantization_config.group_size is 0"},
      {"gptq_4bit_sym_32", configured("group_size", -2), "quantization_config.group_size is -2"},
      {"gptq_4bit_sym_32", configured("checkpoint_format", "marlin"),
       "quantization_config.checkpoint_format is \"marlin\", expected \"gptq\" or \"gptq_v2\""},
      {"gptq_4bit_sym_32", configured("quant_method", "quip"),
       "quant_method is \"quip\", supported are gptq, awq, bitsandbytes, compressed-tensors, fp8, fbgemm_fp8, mxfp4, hqq"},
      {"gptq_4bit_sym_32", sized(32, 72), "a GPTQ matrix of 32 x 72"},
      {"awq_32", configured("version", "gemv"), "quantization_config.version is \"gemv\", expected \"gemm\""},
      {"awq_32", configured("bits", 8), "quantization_config.bits is 8, expected 4"},
      {"awq_32", without("qzeros"), "missing tensor \"m.qzeros\""},
      {"awq_32", reshaped("qweight", {32, 8}), "\"m.qweight\" is [32, 8], expected [in_features, out_features / 8] = [64, 4]"},
      {"awq_32", configured("group_size", 128), "\"m.qzeros\" is [2, 4], expected [groups, out_features / 8] = [1, 4]"},
      {"compressed_pack_4bit_sym_32", without("weight_scale"), "missing tensor \"m.weight_scale\""},
      {"compressed_pack_4bit_sym_32", reshaped("weight_scale", {64}),
       "\"m.weight_scale\" is [64], expected [], [out_features, 1] or [out_features, groups] = [32, 2]"},
      {"compressed_pack_4bit_sym_32", as_dtype("weight_scale", "I16"), "\"m.weight_scale\" is I16, expected F16 or BF16 or F32"},
      {"compressed_pack_4bit_sym_32", with_bytes("weight_shape", 0, "\x21"), "\"m.weight_shape\" says [33, 64], expected [32, 64]"},
      {"compressed_pack_4bit_asym_32", reshaped("weight_zero_point", {2, 4}),
       "\"m.weight_zero_point\" is [2, 4], expected [out_features * bits / 32, groups] = [4, 2]"},
      {"compressed_pack_4bit_sym_32", configured("format", "mxfp6-pack-quantized"),
       "quantization_config.format is \"mxfp6-pack-quantized\", expected pack-quantized"},
      {"compressed_nvfp4", without("weight_scale"), "missing tensor \"m.weight_scale\""},
      {"compressed_nvfp4", without("weight_global_scale"), "missing tensor \"m.weight_global_scale\" (the divisor of all scales"},
      {"compressed_nvfp4", reshaped("weight_packed", {48, 32}),
       "\"m.weight_packed\" is [48, 32], expected [out_features, in_features / 2] = [32, 48]"},
      {"compressed_nvfp4", reshaped("weight_scale", {6, 32}),
       "\"m.weight_scale\" is [6, 32], expected [out_features, in_features / 16] = [32, 6]"},
      {"compressed_nvfp4", as_dtype("weight_scale", "I8"), "\"m.weight_scale\" is I8, expected F8_E4M3 or U8"},
      {"compressed_nvfp4", as_dtype("weight_scale", "U8"),
       "\"m.weight_scale\" is [32, 6], expected [out_features, in_features / 32] = [32, 3]"},
      {"compressed_nvfp4", with_bytes("weight_global_scale", 0, std::string(4, '\0')),
       "\"m.weight_global_scale\" is 0, expected a positive number"},
      {"compressed_nvfp4", with_bytes("weight_global_scale", 2, "\xc0\x7f"), "\"m.weight_global_scale\" is nan"},
      {"compressed_nvfp4", sized(32, 80), "80 columns, expected a multiple of 32"},
      {"compressed_mxfp4", without("weight_scale"), "missing tensor \"m.weight_scale\""},
      {"compressed_mxfp4", reshaped("weight_scale", {3, 32}),
       "\"m.weight_scale\" is [3, 32], expected [out_features, in_features / 32] = [32, 3]"},
      {"compressed_pack_4bit_sym_32", configured("config_groups", 1), "quantization_config.config_groups is 1, expected an object"},
      {"compressed_pack_4bit_sym_32", configured("sparsity_config", json::object{{"format", "sparse-24-bitmask"}}), "sparsity_config"},
      {"compressed_int8_sym", without("weight_scale"), "missing tensor \"m.weight_scale\""},
      {"compressed_int8_sym", reshaped("weight", {64, 32}), "\"m.weight\" is [64, 32], expected [out_features, in_features] = [32, 64]"},
      {"compressed_int8_asym", reshaped("weight_zero_point", {32}),
       "\"m.weight_zero_point\" is [32], expected the shape of the scales = [32, 1]"},
      {"fp8_blocks", reshaped("weight_scale_inv", {3, 2}),
       "\"m.weight_scale_inv\" is [3, 2], expected [], [out_features, 1] or one scale for 16 x 64 weights = [2, 3]"},
      {"fp8_blocks", configured("weight_block_size", json::array{16}),
       "quantization_config.weight_block_size is [16], expected two integers"},
      {"fp8_blocks", configured("weight_block_size", json::array{0, 64}), "expected two integers from 1"},
      {"fp8_blocks", configured("weight_block_size", json::array{16, 48}), "blocks of a multiple of 32 columns"},
      {"fp8_blocks", without("weight_scale_inv"), "missing tensor \"m.weight_scale\""},
      {"bitsandbytes_nf4", without("weight.quant_map"), "missing tensor \"m.weight.quant_map\""},
      {"bitsandbytes_nf4", without("weight.quant_state.bitsandbytes__nf4"), "missing tensor \"m.weight.quant_state.bitsandbytes__nf4\""},
      {"bitsandbytes_nf4", with_bytes("weight.quant_state.bitsandbytes__nf4", 0, "[1,2]"),
       "\"m.weight.quant_state.bitsandbytes__nf4\" is no JSON object"},
      {"bitsandbytes_nf4", reshaped("weight.absmax", {32, 2}),
       "\"m.weight.absmax\" is [32, 2], expected [in_features * out_features / blocksize] = [64]"},
      {"bitsandbytes_nf4", sized(32, 64), "\"m.weight\" has 2048 bytes, expected 1024 for [32, 64] in 4 bits"},
      {"bitsandbytes_nf4", sized(64, 64), "says the shape is [32,128], expected [64, 64]"},
      {"bitsandbytes_nf4_nested", without("weight.nested_absmax"), "missing tensor \"m.weight.nested_absmax\""},
      {"bitsandbytes_int8", without("SCB"), "missing tensor \"m.SCB\""},
      {"bitsandbytes_int8", with_bytes("weight_format", 0, "\x01"), "\"m.weight_format\" is not 0"},
      {"bitsandbytes_int8", configured("load_in_4bit", true), "quantization_config.load_in_4bit is true"},
      {"hqq_4bit_64", without("scale"), "missing tensor \"m.scale\" (scales of a quantized matrix)"},
      {"hqq_4bit_64", without("zero"), "missing tensor \"m.zero\" (zero points of a quantized matrix)"},
      {"hqq_4bit_64", without("packing"), "missing tensor \"m.packing\""},
      {"hqq_4bit_64", without("group_size"), "missing tensor \"m.group_size\""},
      {"hqq_4bit_64", with_bytes("axis", 0, std::string(4, '\0')), "groups along axis 0"},
      {"hqq_4bit_64", with_bytes("packing", 0, "5"), "\"m.packing\" is \"5bit_u8\", expected 8bit_u8, 4bit_u8, 3bit_32, 2bit_u8, 1bit_u8"},
      {"hqq_4bit_64", with_bytes("packing", 0, "8"), "\"m.W_q\" has 2048 bytes, expected 4096 for 64 groups of 64 in 8bit_u8"},
      {"hqq_4bit_64", with_bytes("quant_scale", 0, "\x01"), "\"quant_scale\" is set"},
      {"hqq_4bit_64", with_bytes("group_size", 0, std::string(4, '\0')), "groups of 0 weights in a matrix of 32 x 128"},
      {"hqq_4bit_64", with_bytes("group_size", 0, "\x50"), "groups of 80 weights in a matrix of 32 x 128"},
      {"hqq_4bit_64", with_bytes("group_size", 0, "\x10"), "groups of 16 weights in rows of 128: scales would change within 32 weights"},
      {"hqq_4bit_64", with_bytes("group_size", 0, "\x20"), "\"m.scale\" is [64, 1], expected [groups, 1] = [128, 1]"},
      {"hqq_4bit_64", reshaped("scale", {32, 2}), "\"m.scale\" is [32, 2], expected [groups, 1] = [64, 1]"},
      {"hqq_4bit_64", reshaped("shape", {2, 1}), "\"m.shape\" is [2, 1], expected [2]"},
      {"hqq_4bit_64", sized(64, 64), "\"m.shape\" says [32, 128], expected [64, 64]"},
  };
  for (const Damage& damage : table) {
    SCOPED_TRACE(fmt::format("{}: {}", damage.name, damage.error));
    EncodingCase c = golden_case(damage.name);
    damage.apply(c);
    const auto found = OpenedCase(c).find(c.rows, c.k);
    ASSERT_FALSE(found.is_ok());
    EXPECT_THAT(found.status().message(), HasSubstr(damage.error));
  }
}

TEST(WeightEncoding, CheckpointsWithoutAQuantizationConfigHaveNone) {
  EncodingCase c = golden_case("awq_32");
  const OpenedCase opened(c);
  opened.directory.write("config.json", "{}");
  const Checkpoint plain = Checkpoint::open(opened.directory.path()).value();
  EXPECT_EQ(WeightEncoding::read(plain).value(), nullptr);
  opened.directory.write("config.json", R"({"quantization_config": [1]})");
  const Checkpoint odd = Checkpoint::open(opened.directory.path()).value();
  EXPECT_THAT(WeightEncoding::read(odd).status().message(), HasSubstr("quantization_config is [1], expected an object"));
}

}  // namespace
}  // namespace millrace
