#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "millrace/tensor/dtype.h"

namespace millrace {

// What one code of a grouped matrix is. Integers are unsigned, their zero point in the same numbers; a symmetric format's zero point is
// the middle, 2^(bits - 1) (so signed bytes are code - 128).
enum class CodeKind : uint8_t {
  kInt2,
  kInt3,
  kInt4,
  kInt8,       // value = scale * (code - zero point)
  kCodebook4,  // value = scale * codebook[code]
  kMxfp4,      // value = scale * fp4[code], scales powers of two, groups of 32: OCP MX, whose FP4 is E2M1
  kNvfp4,      // value = unit * scale * fp4[code], scales 8-bit floats (E4M3) of at least 0, groups of 16
  kF8E4M3,     // value = scale * float(code): 1 sign, 4 exponent (bias 7), 3 mantissa bits, no infinities (OCP 8-bit floating point, E4M3)
};

constexpr int code_bits(CodeKind kind) {
  switch (kind) {
    case CodeKind::kInt2: return 2;
    case CodeKind::kInt3: return 3;
    case CodeKind::kInt4:
    case CodeKind::kMxfp4:
    case CodeKind::kNvfp4:
    case CodeKind::kCodebook4: return 4;
    case CodeKind::kInt8:
    case CodeKind::kF8E4M3: return 8;
  }
  return 0;
}

constexpr bool is_integer_code(CodeKind kind) {
  return kind == CodeKind::kInt2 || kind == CodeKind::kInt3 || kind == CodeKind::kInt4 || kind == CodeKind::kInt8;
}

// A [rows, k] matrix as the quantizers of safetensors checkpoints mean it (GPTQ, AWQ, HQQ, bitsandbytes, compressed-tensors, FP8), however
// the file lays it out: small codes, and for every `group_size` consecutive k of a row one scale and perhaps one zero point. It reads from
// a mapped file that outlives it, and its parts have been checked; reading cannot fail. Any thread.
class GroupedWeights {
 public:
  virtual ~GroupedWeights() = default;

  CodeKind kind = CodeKind::kInt4;
  int64_t rows = 0, k = 0;
  int64_t group_size = 0;                // of k; the last group may be shorter. k: one scale a row
  DType scale_dtype = DType::kF32;       // kF16, kBf16 or kF32: holds every scale exactly
  bool float_zeros = false;              // of integer codes: zero points are any numbers, of scale_dtype (HQQ), not codes
  float unit = 1;                        // of kNvfp4
  std::array<float, 16> codebook{};      // of kCodebook4
  std::vector<int32_t> columns;          // [k] column i here is column columns[i] of the matrix; empty: as they are (GPTQ's act-order)
  int64_t stored_bytes = 0;              // of all parts, for reports
  std::span<const std::byte> own_bytes;  // of the codes, where their tensor holds those of other matrices too; else empty

  int64_t num_groups() const { return (k + group_size - 1) / group_size; }

  virtual void read_codes(int64_t row, uint8_t* codes) const = 0;                  // [k]
  virtual void read_scales(int64_t row, float* scales) const = 0;                  // [num_groups]
  virtual void read_zero_points(int64_t row, uint8_t* zero_points) const = 0;      // [num_groups]; integer codes only, without float_zeros
  virtual void read_float_zeros(int64_t /*row*/, float* /*zero_points*/) const {}  // [num_groups]; with float_zeros
};

}  // namespace millrace
