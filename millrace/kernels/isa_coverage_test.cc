// One test an instruction-set level, so that a run on a CPU that lacks one counts it as skipped: the other tests of this room judge the
// variants that the CPU can run, and only those.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "millrace/base/cpu_features.h"
#include "millrace/kernels/gemm.h"

namespace millrace {
namespace {

class IsaCoverage : public testing::TestWithParam<Isa> {};

std::vector<float> multiply(Isa isa, const PackedMatrix& weights, const std::vector<float>& x, GemmPath path) {
  const int64_t k = weights.k(), padded = (k + 31) / 32 * 32;
  std::vector<int8_t> codes(static_cast<std::size_t>(padded));
  std::vector<float> scales(static_cast<std::size_t>(padded / 32)), y(static_cast<std::size_t>(weights.num_panels() * kPanelRows)),
      scratch(static_cast<std::size_t>(padded * kPanelRows));
  std::vector<int16_t> sums(static_cast<std::size_t>(padded / 16));
  quantize_row_int8(isa, x.data(), k, codes.data(), scales.data(), sums.data());
  Activations activations{
      .num_rows = 1, .k = k, .f32 = x.data(), .f32_stride = padded, .codes = codes.data(), .scales = scales.data(), .sums16 = sums.data()};
  gemm(isa, path, weights, activations, 0, weights.num_panels(), 0, 1, y.data(), weights.num_panels() * kPanelRows, scratch.data());
  return y;
}

TEST_P(IsaCoverage, AgreesWithScalarBitForBit) {
  if (!isa_runnable(GetParam())) GTEST_SKIP() << "this CPU cannot run " << isa_name(GetParam()) << ": its kernel variants were not tested";
  constexpr int64_t kRows = 33, kColumns = 96;
  const int64_t row_size = *row_bytes(DType::kQ8_0, kColumns);
  std::vector<std::byte> stored(static_cast<std::size_t>(kRows * row_size));
  for (std::size_t i = 0; i < stored.size(); ++i) stored[i] = static_cast<std::byte>(i * 37 + 11);
  for (std::size_t block = 0; block < stored.size(); block += 34) stored[block + 1] = static_cast<std::byte>(0x2c);  // scales of about 1/16
  std::vector<const std::byte*> rows;
  for (int64_t row = 0; row < kRows; ++row) rows.push_back(stored.data() + row * row_size);
  const auto weights = PackedMatrix::pack(DType::kQ8_0, rows, kColumns);
  ASSERT_TRUE(weights.is_ok()) << weights.status().message();
  std::vector<float> x(kColumns);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(static_cast<int>(i * 29 % 64) - 32) * 0.37f;
  for (GemmPath path : {GemmPath::kFast, GemmPath::kExact})
    EXPECT_EQ(multiply(GetParam(), *weights, x, path), multiply(Isa::kScalar, *weights, x, path));
}

INSTANTIATE_TEST_SUITE_P(Levels, IsaCoverage, testing::ValuesIn(kAllIsas), [](const auto& level) {
  std::string name(isa_name(level.param));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace millrace
