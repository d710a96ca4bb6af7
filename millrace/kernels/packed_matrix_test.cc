#include "millrace/kernels/packed_matrix.h"

#include <gtest/gtest.h>

#include "millrace/kernels/gemm_test_data.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/dequantize.h"

namespace millrace {
namespace {

TEST(PackedMatrix, UnpackedRowsEqualTheStoredOnesBitForBit) {
  for (DType dtype : kGemmDTypes) {
    for (int64_t num_rows : {1, 15, 16, 17, 40}) {
      for (int64_t blocks : {1, 2, 3}) {
        const int64_t k = blocks * (dtype_info(dtype).block_elements == 1 ? 37 : dtype_info(dtype).block_elements);
        SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " rows=" << num_rows << " k=" << k);
        const StoredRows rows = random_rows(dtype, num_rows, k, static_cast<uint32_t>(num_rows * 100 + k));
        const PackedMatrix matrix = rows.packed();
        ASSERT_EQ(matrix.rows(), num_rows);
        ASSERT_EQ(matrix.num_panels(), (num_rows + 15) / 16);
        std::vector<float> want(static_cast<std::size_t>(k)), got(static_cast<std::size_t>(k));
        for (int64_t row = 0; row < num_rows; ++row) {
          dequantize_row(dtype, rows.row(row), k, want.data());
          matrix.unpack_row(row, got.data());
          ASSERT_EQ(std::memcmp(want.data(), got.data(), want.size() * sizeof(float)), 0) << "row " << row;
        }
      }
    }
  }
}

TEST(PackedMatrix, RowsFollowTheCallersMap) {
  const StoredRows rows = random_rows(DType::kQ4_1, 20, 64, 7);
  std::vector<const std::byte*> map;
  for (int64_t i = 0; i < 40; ++i) map.push_back(rows.row(i * 7 % 20));
  const auto matrix = PackedMatrix::pack(DType::kQ4_1, map, 64);
  ASSERT_TRUE(matrix.is_ok());
  std::vector<float> want(64), got(64);
  for (int64_t i = 0; i < 40; ++i) {
    dequantize_row(DType::kQ4_1, rows.row(i * 7 % 20), 64, want.data());
    matrix->unpack_row(i, got.data());
    EXPECT_EQ(want, got) << "packed row " << i;
  }
}

TEST(PackedMatrix, MemoryStaysWithinFivePercentOfTheFile) {
  for (DType dtype : kGemmDTypes) {
    const StoredRows rows = random_rows(dtype, 32, 768, 1);
    const PackedMatrix matrix = rows.packed();
    // TQ1_0 has five digits a byte; as TQ2_0, four to a byte, they can be multiplied.
    const double bound = dtype == DType::kTQ1_0 ? 1.23 : 1.05;
    EXPECT_LE(static_cast<double>(matrix.bytes()), bound * static_cast<double>(rows.bytes.size())) << dtype_name(dtype);
    EXPECT_NEAR(bits_per_weight(matrix.weight_class()), 8.0 * static_cast<double>(matrix.bytes()) / (32 * 768), 1e-9) << dtype_name(dtype);
  }
}

TEST(PackedMatrix, RefusesWhatNoKernelComputes) {
  const std::vector<std::byte> bytes(1024);
  const std::vector<const std::byte*> rows = {bytes.data()};
  EXPECT_EQ(PackedMatrix::pack(DType::kQ8_K, rows, 256).status().message(), "Q8_K weights: no kernel computes with this type");
  EXPECT_EQ(PackedMatrix::pack(DType::kQ4_K, rows, 576).status().message(), "Q4_K weights with 576 columns: expected a multiple of 256");
  EXPECT_EQ(PackedMatrix::pack(DType::kF32, rows, 0).status().code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace millrace
