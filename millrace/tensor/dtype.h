#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace millrace {

// How the numbers of a tensor are stored in a file. Plain types have one element a block; GGUF's quantized types store a
// row (the innermost dimension) as consecutive blocks of `block_elements` numbers in `block_bytes` bytes (block_layout.h).
enum class DType : uint8_t {
  kF32,
  kF16,
  kBf16,
  kF64,
  kI8,
  kI16,
  kI32,
  kI64,
  kU8,
  kBool,
  kF8E4M3,
  kF8E5M2,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ8_1,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kQ8_K,
  kIQ2_XXS,
  kIQ2_XS,
  kIQ3_XXS,
  kIQ1_S,
  kIQ4_NL,
  kIQ3_S,
  kIQ2_S,
  kIQ4_XS,
  kIQ1_M,
  kTQ1_0,
  kTQ2_0,
  kMXFP4,
  kNVFP4,
};

struct DTypeInfo {
  DType dtype;
  std::string_view name;  // as GGUF or safetensors spell it: "Q4_K", "BF16"
  int64_t block_elements;
  int64_t block_bytes;
};

const DTypeInfo& dtype_info(DType dtype);
inline std::string_view dtype_name(DType dtype) { return dtype_info(dtype).name; }

// GGUF's numeric type ids and safetensors' names; an unknown one is absent (the caller names it in its error).
std::optional<DType> dtype_from_gguf_id(uint32_t type_id);
std::optional<DType> dtype_from_safetensors_name(std::string_view name);

// Bytes of one row of `elements` numbers; absent when `elements` is no multiple of the block or the product overflows.
std::optional<int64_t> row_bytes(DType dtype, int64_t elements);

}  // namespace millrace
