#include "millrace/tensor/round_to_nearest.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>
#include <random>

#include "millrace/base/json.h"
#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/tensor/dequantize.h"
#include "millrace/tensor/half.h"

namespace millrace {
namespace {

struct Rounded {
  std::vector<uint8_t> codes, zero_points;
  std::vector<float> scales;
  std::optional<int64_t> wrong;
};

Rounded round_row(const RoundToNearest& how, const std::vector<float>& weights) {
  const auto k = static_cast<int64_t>(weights.size());
  const auto groups = static_cast<std::size_t>((k + how.group_size - 1) / how.group_size);
  Rounded out{std::vector<uint8_t>(weights.size()), std::vector<uint8_t>(groups), std::vector<float>(groups, NAN), {}};
  out.wrong = round_to_nearest(how, weights.data(), k, out.codes.data(), out.scales.data(), out.zero_points.data());
  return out;
}

float f8_to_f32(uint8_t code) {
  const auto byte = static_cast<std::byte>(code);
  float value;
  dequantize_row(DType::kF8E4M3, &byte, 1, &value);
  return value;
}

// What a code stands for, in units of the scale: the judge, by the words of grouped_weights.h.
double unit_of(CodeKind kind, int code, int zero_point) {
  if (kind == CodeKind::kCodebook4) return kNormalFloat4[static_cast<std::size_t>(code)];
  if (kind == CodeKind::kF8E4M3) return f8_to_f32(static_cast<uint8_t>(code));
  return code - zero_point;
}

// The distance from `unit` to the nearest number that has a code, by trying all.
double nearest_distance(CodeKind kind, double unit, int zero_point) {
  double best = INFINITY;
  for (int code = 0; code < 1 << code_bits(kind); ++code) {
    if (kind == CodeKind::kF8E4M3 && (code & 0x7f) == 0x7f) continue;
    best = std::min(best, std::abs(unit_of(kind, code, zero_point) - unit));
  }
  return best;
}

const std::vector<std::pair<CodeKind, bool>> kKinds = {{CodeKind::kInt8, true},  {CodeKind::kInt8, false},     {CodeKind::kInt4, true},
                                                       {CodeKind::kInt4, false}, {CodeKind::kCodebook4, true}, {CodeKind::kF8E4M3, true}};

// Half of the largest step between neighbours, in units of the scale, and what rounding the scale may add at the ends.
double error_bound(CodeKind kind, DType scale_dtype) {
  const double scale_error = scale_dtype == DType::kBf16 ? 0x1p-8 : scale_dtype == DType::kF16 ? 0x1p-11 : 0x1p-23;
  switch (kind) {
    case CodeKind::kCodebook4: return (1 - 0.6961928) / 2 + scale_error;
    case CodeKind::kF8E4M3: return 16 + 448 * scale_error;
    default: return 0.5 + ((1 << code_bits(kind)) - 1) * scale_error;
  }
}

TEST(RoundToNearest, TakesTheNearestCodeOfEveryWeight) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  for (const auto& [kind, symmetric] : kKinds) {
    for (const DType scale_dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
      for (const int64_t group_size : {32, 64, 128, 160}) {
        SCOPED_TRACE(fmt::format("kind {}, {}, scales {}, groups of {}", static_cast<int>(kind),
                                 symmetric ? "symmetric" : "with zero points", dtype_name(scale_dtype), group_size));
        const RoundToNearest how{kind, symmetric, group_size, scale_dtype};
        for (int row = 0; row < 4; ++row) {
          std::vector<float> weights(160);
          const float shift = row == 1 ? 0.05f : row == 2 ? -0.3f : 0.0f;
          for (float& weight : weights) weight = normal(random) + shift;
          if (row == 3) weights[100] = 5.0f;  // an outlier
          const Rounded rounded = round_row(how, weights);
          ASSERT_FALSE(rounded.wrong);
          for (std::size_t i = 0; i < weights.size(); ++i) {
            const auto group = i / static_cast<std::size_t>(group_size);
            const double scale = rounded.scales[group], unit = weights[i] / scale;
            const int zero = is_integer_code(kind) ? rounded.zero_points[group] : 0;
            const double distance = std::abs(unit_of(kind, rounded.codes[i], zero) - unit);
            // f32 quotients and sums are rounded, so that a weight half way between two codes may go to either.
            ASSERT_LE(distance, nearest_distance(kind, unit, zero) + 1e-4)
                << "weight " << i << " is " << weights[i] << ", code " << int{rounded.codes[i]} << ", scale " << scale;
            ASSERT_LE(distance, error_bound(kind, scale_dtype)) << i;
            if (is_integer_code(kind) && symmetric) {
              ASSERT_EQ(zero, 1 << (code_bits(kind) - 1));
            }
          }
        }
      }
    }
  }
}

TEST(RoundToNearest, RowsOfZerosAndOfTheSmallestNumbersAreZeros) {
  for (const auto& [kind, symmetric] : kKinds) {
    for (const DType scale_dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
      for (const float weight : {0.0f, -0.0f, FLT_TRUE_MIN, FLT_MIN / 4}) {
        SCOPED_TRACE(fmt::format("kind {}, scales {}, weights {}", static_cast<int>(kind), dtype_name(scale_dtype), weight));
        const Rounded rounded = round_row({kind, symmetric, 32, scale_dtype}, std::vector<float>(64, weight));
        ASSERT_FALSE(rounded.wrong);
        for (std::size_t i = 0; i < 64; ++i) {
          ASSERT_EQ(rounded.scales[i / 32], 0.0f);
          ASSERT_EQ(unit_of(kind, rounded.codes[i], rounded.zero_points[i / 32]), 0.0);
        }
      }
    }
  }
}

TEST(RoundToNearest, TheLargestFloatsHaveFiniteScales) {
  for (const auto& [kind, symmetric] : kKinds) {
    std::vector<float> weights(32, FLT_MAX);
    weights[5] = -FLT_MAX;
    const Rounded rounded = round_row({kind, symmetric, 32, DType::kF32}, weights);
    ASSERT_FALSE(rounded.wrong);
    ASSERT_TRUE(std::isfinite(rounded.scales[0]));
    const double largest = rounded.scales[0] * unit_of(kind, rounded.codes[0], rounded.zero_points[0]);
    EXPECT_NEAR(largest / FLT_MAX, 1.0, 0.07) << static_cast<int>(kind);
  }
}

TEST(RoundToNearest, SaysWhichWeightIsNotFinite) {
  for (const auto& [kind, symmetric] : kKinds) {
    for (const float weight : {NAN, -NAN, INFINITY, -INFINITY}) {
      for (const int64_t place : {0, 31, 32, 63, 95}) {
        std::vector<float> weights(96, 0.5f);
        weights[static_cast<std::size_t>(place)] = weight;
        const Rounded rounded = round_row({kind, symmetric, 64, DType::kF32}, weights);
        ASSERT_TRUE(rounded.wrong);
        EXPECT_EQ(*rounded.wrong, place);
      }
    }
  }
}

TEST(RoundToNearest, EightBitFloatsAreTheNearestWithTiesToEven) {
  std::vector<float> tried;
  for (int code = 0; code < 0x7e; ++code) {  // every number, the middle of every two, and what lies beside it
    const float low = f8_to_f32(static_cast<uint8_t>(code)), high = f8_to_f32(static_cast<uint8_t>(code + 1)), middle = (low + high) / 2;
    for (const float value : {low, high, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) tried.push_back(value);
  }
  for (uint32_t bits = 0; bits < 0x43e00000; bits += 0x1337) tried.push_back(std::bit_cast<float>(bits));
  for (const float magnitude : tried) {
    int nearest = 0;
    for (int code = 1; code < 0x7f; ++code) {
      const double here = std::abs(double{f8_to_f32(static_cast<uint8_t>(code))} - magnitude),
                   best = std::abs(double{f8_to_f32(static_cast<uint8_t>(nearest))} - magnitude);
      if (here < best || (here == best && code % 2 == 0)) nearest = code;
    }
    ASSERT_EQ(int{f32_to_f8e4m3(magnitude)}, nearest) << magnitude;
    ASSERT_EQ(int{f32_to_f8e4m3(-magnitude)}, nearest | 0x80) << -magnitude;
  }
}

template <class T>
std::vector<T> from_hex(const json::value& text) {
  const std::string_view hex = text.as_string();
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  std::vector<T> values(hex.size() / 2 / sizeof(T));
  auto* bytes = reinterpret_cast<uint8_t*>(values.data());
  for (std::size_t i = 0; i < hex.size() / 2; ++i) bytes[i] = static_cast<uint8_t>(digit(hex[2 * i]) * 16 + digit(hex[2 * i + 1]));
  return values;
}

// tests/golden/rounding.json, which tools/make_rounding_golden.py made with compressed-tensors and bitsandbytes.
TEST(RoundToNearest, MakesTheNumbersOfTheLibrariesThatPublishCheckpoints) {
  const auto text = read_text_file((source_dir() / "tests/golden/rounding.json").string());
  ASSERT_TRUE(text.is_ok()) << text.status().message();
  const json::value golden = parse_json(*text).value();
  const int64_t rows = golden.at("rows").as_int64(), k = golden.at("k").as_int64();
  const std::vector<float> weights = from_hex<float>(golden.at("weights"));
  ASSERT_GE(golden.at("cases").as_array().size(), 12u);
  for (const json::value& value : golden.at("cases").as_array()) {
    const std::string_view kind = value.at("kind").as_string();
    const bool symmetric = value.at("symmetric").as_bool();
    const int64_t group_size = value.at("group_size").as_int64();
    SCOPED_TRACE(fmt::format("{} {} in groups of {}", kind, symmetric ? "symmetric" : "with zero points", group_size));
    RoundToNearest how{CodeKind::kInt8, symmetric, group_size, DType::kF32};
    if (kind == "int4") how.kind = CodeKind::kInt4;
    if (kind == "nf4") how.kind = CodeKind::kCodebook4;
    if (kind == "fp8") how.kind = CodeKind::kF8E4M3;
    const auto codes = from_hex<uint8_t>(value.at("codes"));
    const auto scales = from_hex<float>(value.at("scales"));
    const auto zeros = is_integer_code(how.kind) ? from_hex<uint8_t>(value.at("zero_points")) : std::vector<uint8_t>();
    const auto groups = static_cast<std::size_t>(k / group_size);
    for (int64_t row = 0; row < rows; ++row) {
      const auto at = static_cast<std::size_t>(row);
      const Rounded rounded = round_row(how, {weights.begin() + row * k, weights.begin() + (row + 1) * k});
      ASSERT_FALSE(rounded.wrong);
      for (std::size_t group = 0; group < groups; ++group) {
        ASSERT_EQ(rounded.scales[group], scales[at * groups + group]) << "row " << row << ", group " << group;
        if (zeros.empty()) continue;
        ASSERT_EQ(int{rounded.zero_points[group]}, int{zeros[at * groups + group]}) << "row " << row << ", group " << group;
      }
      for (std::size_t i = 0; i < static_cast<std::size_t>(k); ++i) {
        ASSERT_EQ(int{rounded.codes[i]}, int{codes[at * static_cast<std::size_t>(k) + i]})
            << "row " << row << ", weight " << i << ": " << weights[at * static_cast<std::size_t>(k) + i];
      }
    }
  }
}

}  // namespace
}  // namespace millrace
