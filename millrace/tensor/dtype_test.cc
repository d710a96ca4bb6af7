#include "millrace/tensor/dtype.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(DType, EveryGgufTypeHasItsOwnInfo) {
  for (uint32_t id = 0; id < 64; ++id) {
    const auto dtype = dtype_from_gguf_id(id);
    if (!dtype.has_value()) continue;
    EXPECT_EQ(dtype_info(*dtype).dtype, *dtype) << id;
  }
  EXPECT_FALSE(dtype_from_gguf_id(4).has_value());  // Q4_2, removed upstream
}

TEST(DType, RowBytesRefusesPartialBlocksAndOverflow) {
  EXPECT_EQ(row_bytes(DType::kQ4_1, 576), 360);
  EXPECT_FALSE(row_bytes(DType::kQ4_K, 576).has_value());
  EXPECT_FALSE(row_bytes(DType::kF32, INT64_MAX).has_value());
  EXPECT_FALSE(row_bytes(DType::kF32, -1).has_value());
}

TEST(DType, SafetensorsNamesAreThePlainTypesOnly) {
  EXPECT_EQ(dtype_from_safetensors_name("BF16"), DType::kBf16);
  EXPECT_FALSE(dtype_from_safetensors_name("Q4_0").has_value());
}

}  // namespace
}  // namespace millrace
