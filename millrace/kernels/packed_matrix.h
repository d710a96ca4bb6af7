#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/tensor/dtype.h"
#include "millrace/tensor/grouped_weights.h"

namespace millrace {

inline constexpr int64_t kPanelRows = 16;

// What one panel stores per block of weights. Imports are bit-exact: the class follows from the stored type, nothing is re-quantized.
// Layouts: panel_layout.h.
enum class WeightClass : uint8_t {
  kF32,
  kF16,
  kBf16,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  // grouped: GroupFormat says the rest
  kInt2Zero,
  kInt3Zero,
  kInt4,
  kInt4Zero,
  kInt8,
  kInt8Zero,
  kCode4,
  kF8E4M3,
  // GGUF's small blocks: codes of 2 to 4 bits
  kQ2_K,
  kQ3_K,
  kTQ2_0,
  kIQ4_NL,
  kIQ4_XS,
  kMXFP4,
  kNVFP4,
  // and those with a code book (tensor/grid_tables.h)
  kIQ1_S,
  kIQ1_M,
  kIQ2_XXS,
  kIQ2_XS,
  kIQ2_S,
  kIQ3_XXS,
  kIQ3_S,
};

// What a grouped class (and NVFP4) leaves to the matrix: how many k share a scale, and how scales are stored.
enum class ScaleType : uint8_t { kF16, kBf16, kF32 };

// The 16 numbers of kCode4. The fast path multiplies `codes`, of which one unit is `unit`: the nearest that 8 bits offer. The exact path
// takes `values`.
struct Codebook {
  alignas(16) int8_t codes[16];
  float unit;
  float values[16];
};
Codebook make_codebook(const std::array<float, 16>& values);

struct GroupFormat {
  ScaleType scale_type = ScaleType::kF32;
  int group_shift = 0;                 // a scale serves 2^group_shift blocks of 32 k
  const Codebook* codebook = nullptr;  // of kCode4
  float unit = 1;                      // of kNVFP4: what its scales are multiplied with
  bool float_zeros = false;            // of the Zero classes: zero points are numbers of scale_type, not bytes
};

// How a GEMM wants its activations. A bit set, since the consumers of one activation may differ.
enum class ActivationForm : uint8_t { kF32 = 1, kInt8 = 2, kBf16 = 4 };

struct GroupedRow;  // grouped_panels.h

// A [rows, k] weight matrix in panels of 16 rows, k in blocks: the one copy that decode and prefill share (docs/design.md D3).
// The bytes are the same on every ISA. Cheap to copy: copies share the weights, which never change.
class PackedMatrix {
 public:
  PackedMatrix() = default;

  // `rows[i]` points to the stored bytes of packed row i (dtype `dtype`, k elements): the caller's row map. Rows beyond the last
  // whole panel are padded with zero weights. Unsupported: a dtype without a class, or k no multiple of its block (the error says which).
  static Result<PackedMatrix> pack(DType dtype, std::span<const std::byte* const> rows, int64_t k);

  // Packed row i is row rows[i] of `weights`. Unsupported: k or the group size no multiple of 32 (NVFP4: 16). Invalid: numbers that no
  // weight can be.
  static Result<PackedMatrix> pack(const GroupedWeights& weights, std::span<const int32_t> rows);

  // What pack() would give, before anything is packed: class and size, and no panels to read until with_panels().
  static Result<PackedMatrix> plan(DType dtype, int64_t rows, int64_t k);
  static Result<PackedMatrix> plan(const GroupedWeights& weights, std::span<const int32_t> rows);

  // Packs rows [panel * 16, ...) of the planned matrix into panel_bytes() bytes, which are zero. `rows`: those 16, or fewer in the last
  // panel. Any thread.
  void pack_panel(DType dtype, std::span<const std::byte* const> rows, std::byte* panel) const;
  Status pack_panel(const GroupedWeights& weights, std::span<const int32_t> rows, GroupedRow& buffer, std::byte* panel) const;

  // This matrix over bytes() bytes of panels at `panels`, aligned to 64 bytes, that `owner` keeps.
  PackedMatrix with_panels(const std::byte* panels, std::shared_ptr<const void> owner) const;

  int64_t rows() const { return rows_; }
  int64_t k() const { return k_; }
  int64_t num_panels() const { return (rows_ + kPanelRows - 1) / kPanelRows; }
  WeightClass weight_class() const { return class_; }
  const GroupFormat& group_format() const { return group_; }
  int64_t panel_bytes() const { return panel_bytes_; }
  int64_t bytes() const { return panel_bytes_ * num_panels(); }
  const std::byte* panel(int64_t index) const { return data_ + index * panel_bytes_; }

  // Column i of the panels is column (*columns())[i] of the matrix: whoever makes the activations of gemm() gathers them in that order.
  // Null: as they are.
  const std::vector<int32_t>* columns() const { return columns_.get(); }

  // Writes row `row` as k floats: the exact values the stored type stands for. For embeddings tied to the head.
  void unpack_row(int64_t row, float* out) const;

 private:
  Status plan_panels();
  std::byte* allocate();

  WeightClass class_ = WeightClass::kF32;
  GroupFormat group_;
  int64_t rows_ = 0, k_ = 0, panel_bytes_ = 0;
  const std::byte* data_ = nullptr;  // in *memory_, which matrices packed after one another share
  std::shared_ptr<const void> memory_;
  std::shared_ptr<const Codebook> codebook_;  // what group_ points to
  std::shared_ptr<const std::vector<int32_t>> columns_;
};

std::string_view weight_class_name(WeightClass weight_class);
double bits_per_weight(WeightClass weight_class);  // of grouped classes: of their codes

}  // namespace millrace
