#include "millrace/tensor/dtype.h"

#include "millrace/base/check.h"

namespace millrace {
namespace {

constexpr DTypeInfo kInfos[] = {
    {DType::kF32, "F32", 1, 4},
    {DType::kF16, "F16", 1, 2},
    {DType::kBf16, "BF16", 1, 2},
    {DType::kF64, "F64", 1, 8},
    {DType::kI8, "I8", 1, 1},
    {DType::kI16, "I16", 1, 2},
    {DType::kI32, "I32", 1, 4},
    {DType::kI64, "I64", 1, 8},
    {DType::kU8, "U8", 1, 1},
    {DType::kBool, "BOOL", 1, 1},
    {DType::kF8E4M3, "F8_E4M3", 1, 1},
    {DType::kF8E5M2, "F8_E5M2", 1, 1},
    {DType::kQ4_0, "Q4_0", 32, 18},
    {DType::kQ4_1, "Q4_1", 32, 20},
    {DType::kQ5_0, "Q5_0", 32, 22},
    {DType::kQ5_1, "Q5_1", 32, 24},
    {DType::kQ8_0, "Q8_0", 32, 34},
    {DType::kQ8_1, "Q8_1", 32, 36},
    {DType::kQ2_K, "Q2_K", 256, 84},
    {DType::kQ3_K, "Q3_K", 256, 110},
    {DType::kQ4_K, "Q4_K", 256, 144},
    {DType::kQ5_K, "Q5_K", 256, 176},
    {DType::kQ6_K, "Q6_K", 256, 210},
    {DType::kQ8_K, "Q8_K", 256, 292},
    {DType::kIQ2_XXS, "IQ2_XXS", 256, 66},
    {DType::kIQ2_XS, "IQ2_XS", 256, 74},
    {DType::kIQ3_XXS, "IQ3_XXS", 256, 98},
    {DType::kIQ1_S, "IQ1_S", 256, 50},
    {DType::kIQ4_NL, "IQ4_NL", 32, 18},
    {DType::kIQ3_S, "IQ3_S", 256, 110},
    {DType::kIQ2_S, "IQ2_S", 256, 82},
    {DType::kIQ4_XS, "IQ4_XS", 256, 136},
    {DType::kIQ1_M, "IQ1_M", 256, 56},
    {DType::kTQ1_0, "TQ1_0", 256, 54},
    {DType::kTQ2_0, "TQ2_0", 256, 66},
    {DType::kMXFP4, "MXFP4", 32, 17},
    {DType::kNVFP4, "NVFP4", 64, 36},
};

struct GgufId {
  uint32_t id;
  DType dtype;
};
constexpr GgufId kGgufIds[] = {
    {0, DType::kF32},     {1, DType::kF16},    {2, DType::kQ4_0},     {3, DType::kQ4_1},    {6, DType::kQ5_0},     {7, DType::kQ5_1},
    {8, DType::kQ8_0},    {9, DType::kQ8_1},   {10, DType::kQ2_K},    {11, DType::kQ3_K},   {12, DType::kQ4_K},    {13, DType::kQ5_K},
    {14, DType::kQ6_K},   {15, DType::kQ8_K},  {16, DType::kIQ2_XXS}, {17, DType::kIQ2_XS}, {18, DType::kIQ3_XXS}, {19, DType::kIQ1_S},
    {20, DType::kIQ4_NL}, {21, DType::kIQ3_S}, {22, DType::kIQ2_S},   {23, DType::kIQ4_XS}, {24, DType::kI8},      {25, DType::kI16},
    {26, DType::kI32},    {27, DType::kI64},   {28, DType::kF64},     {29, DType::kIQ1_M},  {30, DType::kBf16},    {34, DType::kTQ1_0},
    {35, DType::kTQ2_0},  {39, DType::kMXFP4}, {40, DType::kNVFP4},
};

}  // namespace

const DTypeInfo& dtype_info(DType dtype) {
  const auto& info = kInfos[static_cast<int>(dtype)];
  MR_CHECK(info.dtype == dtype, "kInfos is out of order");
  return info;
}

std::optional<DType> dtype_from_gguf_id(uint32_t type_id) {
  for (const auto& entry : kGgufIds) {
    if (entry.id == type_id) return entry.dtype;
  }
  return std::nullopt;
}

std::optional<DType> dtype_from_safetensors_name(std::string_view name) {
  for (const auto& info : kInfos) {
    if (info.dtype > DType::kF8E5M2) break;
    if (info.name == name) return info.dtype;
  }
  return std::nullopt;
}

std::optional<int64_t> row_bytes(DType dtype, int64_t elements) {
  const auto& info = dtype_info(dtype);
  if (elements < 0 || elements % info.block_elements != 0) return std::nullopt;
  int64_t bytes = 0;
  if (__builtin_mul_overflow(elements / info.block_elements, info.block_bytes, &bytes)) return std::nullopt;
  return bytes;
}

}  // namespace millrace
