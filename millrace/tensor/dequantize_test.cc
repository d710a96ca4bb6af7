#include "millrace/tensor/dequantize.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/tensor/half.h"

namespace millrace {
namespace {

std::vector<std::byte> decode_base64(std::string_view text) {
  std::vector<std::byte> bytes;
  uint32_t bits = 0;
  int num_bits = 0;
  for (const char c : text) {
    if (c == '=') break;
    const std::size_t digit = std::string_view("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/").find(c);
    EXPECT_NE(digit, std::string_view::npos);
    bits = bits << 6 | static_cast<uint32_t>(digit);
    num_bits += 6;
    if (num_bits >= 8) {
      num_bits -= 8;
      bytes.push_back(static_cast<std::byte>(bits >> num_bits & 0xff));
    }
  }
  return bytes;
}

TEST(Dequantize, RandomBlocksEqualTheReferenceBitForBit) {
  const auto text = read_text_file((source_dir() / "tests/golden/gguf_dequant.json").string());
  ASSERT_TRUE(text.is_ok()) << text.status().message();
  const auto golden = parse_json(*text);
  ASSERT_TRUE(golden.is_ok()) << golden.status().message();
  std::set<std::string> checked;
  for (const auto& [name, entry] : golden->at("types").as_object()) {
    SCOPED_TRACE(std::string(name));
    const auto dtype = dtype_from_gguf_id(static_cast<uint32_t>(entry.at("type_id").as_int64()));
    ASSERT_TRUE(dtype.has_value());
    EXPECT_EQ(dtype_name(*dtype), std::string_view(name));
    EXPECT_EQ(dtype_info(*dtype).block_elements, entry.at("block_elements").as_int64());
    EXPECT_EQ(dtype_info(*dtype).block_bytes, entry.at("block_bytes").as_int64());
    ASSERT_TRUE(can_dequantize(*dtype));
    const auto row = decode_base64(std::string_view(entry.at("bytes_base64").as_string()));
    const auto want = decode_base64(std::string_view(entry.at("float32_base64").as_string()));
    const int64_t count = entry.at("count").as_int64();
    ASSERT_EQ(row_bytes(*dtype, count), static_cast<int64_t>(row.size()));
    ASSERT_EQ(want.size(), static_cast<std::size_t>(count) * 4);
    std::vector<float> got(static_cast<std::size_t>(count));
    dequantize_row(*dtype, row.data(), count, got.data());
    for (int64_t i = 0; i < count; ++i) {
      uint32_t want_bits = 0;
      std::memcpy(&want_bits, want.data() + i * 4, 4);
      ASSERT_EQ(std::bit_cast<uint32_t>(got[static_cast<std::size_t>(i)]), want_bits) << "element " << i;
    }
    checked.insert(std::string(name));
  }
  for (const char* name :
       {"Q4_0", "Q4_1",  "Q5_0",  "Q5_1",  "Q8_0",  "Q2_K",  "Q3_K",  "Q4_K",    "Q5_K",   "Q6_K",  "IQ4_NL",  "IQ4_XS",
        "BF16", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}) {
    EXPECT_TRUE(checked.contains(name)) << name << " was not checked";
  }
}

TEST(Dequantize, ActivationBlocksAreRefusedBeforehand) {
  EXPECT_FALSE(can_dequantize(DType::kQ8_1));
  EXPECT_TRUE(can_dequantize(DType::kQ8_K));
}

TEST(Dequantize, Q8KUsesItsF32Scale) {
  std::array<std::byte, 292> block{};
  const float d = 0.3f;
  std::memcpy(block.data(), &d, 4);
  for (int i = 0; i < 256; ++i) block[static_cast<std::size_t>(4 + i)] = static_cast<std::byte>(i);
  std::array<float, 256> out{};
  dequantize_row(DType::kQ8_K, block.data(), 256, out.data());
  for (int i = 0; i < 256; ++i) EXPECT_EQ(out[static_cast<std::size_t>(i)], 0.3f * static_cast<float>(i < 128 ? i : i - 256)) << i;
}

template <class T>
float one(DType dtype, T stored) {
  float out = 0;
  dequantize_row(dtype, reinterpret_cast<const std::byte*>(&stored), 1, &out);
  return out;
}

TEST(Dequantize, PlainTypesAreTheirNumbers) {
  EXPECT_EQ(one(DType::kF32, -1.5f), -1.5f);
  EXPECT_EQ(one(DType::kF64, 0.1), 0.1f);
  EXPECT_EQ(one(DType::kI8, int8_t{-128}), -128.0f);
  EXPECT_EQ(one(DType::kU8, uint8_t{255}), 255.0f);
  EXPECT_EQ(one(DType::kI16, int16_t{-300}), -300.0f);
  EXPECT_EQ(one(DType::kI32, int32_t{16777217}), 16777216.0f);
  EXPECT_EQ(one(DType::kI64, int64_t{-5}), -5.0f);
  EXPECT_EQ(one(DType::kF16, uint16_t{0x3c00}), 1.0f);
  EXPECT_EQ(one(DType::kBool, uint8_t{1}), 1.0f);
  EXPECT_EQ(one(DType::kF8E4M3, uint8_t{0x7e}), 448.0f);
  EXPECT_EQ(one(DType::kF8E4M3, uint8_t{0x81}), -0x1p-9f);
  EXPECT_EQ(one(DType::kF8E4M3, uint8_t{0x38}), 1.0f);
  EXPECT_TRUE(std::isnan(one(DType::kF8E4M3, uint8_t{0xff})));
  EXPECT_EQ(one(DType::kF8E5M2, uint8_t{0x7b}), 57344.0f);
  EXPECT_TRUE(std::isinf(one(DType::kF8E5M2, uint8_t{0xfc})));
}

TEST(Half, EveryF16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = f16_to_f32(half);
    const uint16_t back = f32_to_f16(value);
    if ((half & 0x7fff) > 0x7c00) {
      ASSERT_TRUE(std::isnan(value) && (back & 0x7fff) > 0x7c00) << bits;
    } else {
      ASSERT_EQ(back, half);
    }
  }
}

// Between neighbours a < b: below the middle gives a, above gives b, the middle itself the even one. All are exact in f32.
TEST(Half, F16RoundsToNearestEven) {
  for (uint16_t half = 0; half < 0x7bff; ++half) {
    const auto next = static_cast<uint16_t>(half + 1);
    const float middle = (f16_to_f32(half) + f16_to_f32(next)) / 2;
    ASSERT_EQ(f32_to_f16(middle), half % 2 == 0 ? half : next) << half;
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 0.0f)), half);
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 1e9f)), next);
    ASSERT_EQ(f32_to_f16(-middle), f32_to_f16(middle) | 0x8000);
  }
  EXPECT_EQ(f32_to_f16(65519.996f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(INFINITY), 0x7c00);
  EXPECT_EQ(f32_to_f16(1e-30f), 0);
}

TEST(Half, Bf16RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7f7f; ++bits) {
    const uint32_t middle = bits << 16 | 0x8000;
    ASSERT_EQ(f32_to_bf16(std::bit_cast<float>(middle)), bits + bits % 2);
    ASSERT_EQ(f32_to_bf16(std::bit_cast<float>(middle - 1)), bits);
    ASSERT_EQ(f32_to_bf16(std::bit_cast<float>(middle + 1)), bits + 1);
  }
  EXPECT_EQ(f32_to_bf16(-INFINITY), 0xff80);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

}  // namespace
}  // namespace millrace
