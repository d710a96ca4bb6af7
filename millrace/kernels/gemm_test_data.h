#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "millrace/base/aligned_buffer.h"
#include "millrace/kernels/gemm.h"
#include "millrace/kernels/packed_matrix.h"
#include "millrace/tensor/half.h"

// Random weights and activations for the tests and benchmarks of gemm().
namespace millrace {

inline constexpr DType kGemmDTypes[] = {DType::kF32,     DType::kF16,   DType::kBf16,  DType::kQ4_0,    DType::kQ4_1,   DType::kQ5_0,
                                        DType::kQ5_1,    DType::kQ8_0,  DType::kQ4_K,  DType::kQ5_K,    DType::kQ6_K,   DType::kQ2_K,
                                        DType::kQ3_K,    DType::kTQ1_0, DType::kTQ2_0, DType::kIQ4_NL,  DType::kIQ4_XS, DType::kMXFP4,
                                        DType::kNVFP4,   DType::kIQ1_S, DType::kIQ1_M, DType::kIQ2_XXS, DType::kIQ2_XS, DType::kIQ2_S,
                                        DType::kIQ3_XXS, DType::kIQ3_S};

// Rows as a file would store them: random bytes, but finite scales and plain numbers.
struct StoredRows {
  DType dtype;
  int64_t num_rows, k, row_bytes;
  std::vector<std::byte> bytes;

  const std::byte* row(int64_t index) const { return bytes.data() + index * row_bytes; }
  std::vector<const std::byte*> pointers() const {
    std::vector<const std::byte*> result;
    for (int64_t i = 0; i < num_rows; ++i) result.push_back(row(i));
    return result;
  }
  PackedMatrix packed() const { return PackedMatrix::pack(dtype, pointers(), k).value(); }
};

// The f16 scales (and minima) of a block, by their places.
inline std::vector<int64_t> f16_places(DType dtype) {
  switch (dtype) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K: return {0, 2};
    case DType::kQ2_K: return {80, 82};
    case DType::kQ3_K: return {108};
    case DType::kQ6_K: return {208};
    case DType::kTQ1_0: return {52};
    case DType::kTQ2_0: return {64};
    case DType::kF32:
    case DType::kBf16:
    case DType::kMXFP4:
    case DType::kNVFP4:
    case DType::kIQ1_M: return {};
    default: return {0};
  }
}

// Gives a block scales of magnitude below 2 (of NVFP4: as its bytes are).
inline void set_random_scales(DType dtype, std::byte* block, std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (const int64_t place : f16_places(dtype)) {
    const uint16_t half = f32_to_f16(uniform(random));
    std::memcpy(block + place, &half, 2);
  }
  if (dtype == DType::kF32) {
    const float value = uniform(random);
    std::memcpy(block, &value, 4);
  }
  if (dtype == DType::kBf16) {
    const uint16_t value = f32_to_bf16(uniform(random));
    std::memcpy(block, &value, 2);
  }
  if (dtype == DType::kMXFP4) block[0] = static_cast<std::byte>(120 + random() % 8);
  if (dtype == DType::kNVFP4) {
    for (int group = 0; group < 4; ++group) block[group] = static_cast<std::byte>(random());
  }
  if (dtype == DType::kIQ1_M) {  // a nibble at the top of each of four words
    const uint16_t half = f32_to_f16(uniform(random));
    for (int i = 0; i < 4; ++i)
      block[49 + 2 * i] = (block[49 + 2 * i] & std::byte{15}) | static_cast<std::byte>(((half >> (4 * i)) & 15) << 4);
  }
}

inline StoredRows random_rows(DType dtype, int64_t num_rows, int64_t k, uint32_t seed) {
  StoredRows rows{dtype, num_rows, k, row_bytes(dtype, k).value(), {}};
  rows.bytes.resize(static_cast<std::size_t>(num_rows * rows.row_bytes));
  std::mt19937 random(seed);
  for (auto& byte : rows.bytes) byte = static_cast<std::byte>(random());
  const DTypeInfo& info = dtype_info(dtype);
  for (std::byte* block = rows.bytes.data(); block != rows.bytes.data() + rows.bytes.size(); block += info.block_bytes)
    set_random_scales(dtype, block, random);
  return rows;
}

// Activations in every form, with the storage they point to.
struct TestActivations {
  std::vector<float> f32, scales;
  std::vector<int8_t> codes;
  std::vector<int16_t> sums16;
  AlignedBuffer bf16;  // as the executor's: a line of the cache at a time
  Activations view;
};

// `values` is [num_rows, k]; quantized by the scalar reference.
inline void set_activations(const std::vector<float>& values, int64_t num_rows, int64_t k, TestActivations& result) {
  const int64_t k_padded = (k + 31) / 32 * 32;
  const auto size = [&](int64_t per_row) { return static_cast<std::size_t>(num_rows * per_row); };
  result.f32.assign(size(k_padded), 0.0f);
  result.scales.resize(size(k_padded / 32));
  result.codes.resize(size(k_padded));
  result.sums16.resize(size(k_padded / 16));
  result.bf16 = AlignedBuffer(size(bf16_row_stride(k)) * sizeof(uint16_t));
  for (int64_t m = 0; m < num_rows; ++m) {
    const float* row = values.data() + m * k;
    std::memcpy(result.f32.data() + m * k_padded, row, static_cast<std::size_t>(k) * sizeof(float));
    quantize_row_int8(Isa::kScalar, row, k, result.codes.data() + m * k_padded, result.scales.data() + m * (k_padded / 32),
                      result.sums16.data() + m * (k_padded / 16));
    convert_row_bf16(Isa::kScalar, row, k, result.bf16.as<uint16_t>() + m * bf16_row_stride(k));
  }
  result.view = Activations{.num_rows = num_rows,
                            .k = k,
                            .f32 = result.f32.data(),
                            .f32_stride = k_padded,
                            .codes = result.codes.data(),
                            .scales = result.scales.data(),
                            .sums16 = result.sums16.data(),
                            .bf16 = result.bf16.as<uint16_t>()};
}

inline void set_random_activations(int64_t num_rows, int64_t k, uint32_t seed, TestActivations& result) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(num_rows * k));
  for (auto& value : values) value = normal(random);
  set_activations(values, num_rows, k, result);
}

}  // namespace millrace
