#include "millrace/kernels/packed_matrix.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <optional>

#include "millrace/base/aligned_buffer.h"
#include "millrace/kernels/grouped_panels.h"
#include "millrace/kernels/small_block_panels.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/kernels/unaligned.h"
#include "millrace/tensor/half.h"
#include "millrace/tensor/round_to_nearest.h"

namespace millrace {
namespace {

std::optional<WeightClass> class_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return WeightClass::kF32;
    case DType::kF16: return WeightClass::kF16;
    case DType::kBf16: return WeightClass::kBf16;
    case DType::kQ4_0: return WeightClass::kQ4_0;
    case DType::kQ4_1: return WeightClass::kQ4_1;
    case DType::kQ5_0: return WeightClass::kQ5_0;
    case DType::kQ5_1: return WeightClass::kQ5_1;
    case DType::kQ8_0: return WeightClass::kQ8_0;
    case DType::kQ4_K: return WeightClass::kQ4_K;
    case DType::kQ5_K: return WeightClass::kQ5_K;
    case DType::kQ6_K: return WeightClass::kQ6_K;
    default: return small_block_class(dtype);
  }
}

using unaligned::load, unaligned::store, unaligned::load_f16;

// A quad in a register: byte j is the code of k = 4 quad + j. All work on codes below is on four of them at once.
using Quads = uint32_t[8];
constexpr uint32_t kNibbles = 0x0f0f0f0f, kBits = 0x01010101;

// ---- Where a stored block of 32 keeps its codes.

void quads_of_nibbles(const std::byte* bytes, Quads& quads) {  // low halves are elements 0-15, high halves 16-31
  for (int q = 0; q < 4; ++q) {
    const auto word = load<uint32_t>(bytes + 4 * q);
    quads[q] = word & kNibbles;
    quads[q + 4] = (word >> 4) & kNibbles;
  }
}

// Bit i of `bits` is the fifth bit of element i.
void add_fifth_bits(uint32_t bits, Quads& quads) {
  for (int q = 0; q < 8; ++q) {
    const uint32_t four = (bits >> (4 * q)) & 15;
    quads[q] |= ((four * 0x00204081u) & kBits) << 4;  // bit j to byte j
  }
}

// Group g of 8 in a block of 256: two groups share 32 bytes, the even one has the low nibbles.
void quads_of_k_nibbles(const std::byte* bytes, int64_t group, Quads& quads) {
  for (int q = 0; q < 8; ++q) quads[q] = (load<uint32_t>(bytes + group / 2 * 32 + 4 * q) >> (group % 2 * 4)) & kNibbles;
}

struct ScaleMin {
  uint8_t scale, minimum;
};
// Six bits of each, for 8 groups in 12 bytes: see tensor/dequantize.cc.
ScaleMin k_scale_min(const std::byte* bytes, int64_t group) {
  const auto at = [&](int64_t i) { return static_cast<int>(bytes[i]); };
  if (group < 4) return {static_cast<uint8_t>(at(group) & 63), static_cast<uint8_t>(at(group + 4) & 63)};
  return {static_cast<uint8_t>((at(group + 4) & 15) | (at(group - 4) >> 6 << 4)),
          static_cast<uint8_t>((at(group + 4) >> 4) | (at(group) >> 6 << 4))};
}

// ---- The planes of a packed block. `to` is the block; a row's quad is the 32-bit word at line * 64 + row * 4.

void store_nibble_plane(const Quads& quads, std::byte* to, int64_t row) {
  for (int q = 0; q < 4; ++q) store(to + q * 64 + row * 4, (quads[q] & kNibbles) | (quads[q + 4] & kNibbles) << 4);
}
void store_fifth_plane(const Quads& quads, std::byte* to, int64_t row) {
  uint32_t word = 0;
  for (int q = 0; q < 8; ++q) word |= ((quads[q] >> 4) & kBits) << q;
  store(to + 256 + row * 4, word);
}
void store_sixth_planes(const Quads& quads, std::byte* to, int64_t row) {
  for (int plane = 0; plane < 2; ++plane) {
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) word |= ((quads[4 * plane + i] >> 4) & (kBits * 3)) << (2 * i);
    store(to + 256 + plane * 64 + row * 4, word);
  }
}

// Packs block `block` of one stored row. `header` is the super-block's, null where the class has none.
void pack_block(WeightClass weight_class, const std::byte* stored, int64_t block, int64_t row, std::byte* header, std::byte* to) {
  Quads quads;
  const int64_t group = block % kSuperBlocks;
  switch (weight_class) {
    case WeightClass::kQ4_0:
    case WeightClass::kQ4_1: {
      const int64_t scale_bytes = weight_class == WeightClass::kQ4_0 ? 2 : 4;
      const std::byte* from = stored + block * (scale_bytes + 16);
      quads_of_nibbles(from + scale_bytes, quads);
      store_nibble_plane(quads, to, row);
      for (int64_t i = 0; i < scale_bytes / 2; ++i) store(to + 256 + i * 32 + row * 2, load<uint16_t>(from + i * 2));
      return;
    }
    case WeightClass::kQ5_0:
    case WeightClass::kQ5_1: {
      const int64_t scale_bytes = weight_class == WeightClass::kQ5_0 ? 2 : 4;
      const std::byte* from = stored + block * (scale_bytes + 20);
      quads_of_nibbles(from + scale_bytes + 4, quads);
      add_fifth_bits(load<uint32_t>(from + scale_bytes), quads);
      store_nibble_plane(quads, to, row);
      store_fifth_plane(quads, to, row);
      for (int64_t i = 0; i < scale_bytes / 2; ++i) store(to + 320 + i * 32 + row * 2, load<uint16_t>(from + i * 2));
      return;
    }
    case WeightClass::kQ8_0: {
      const std::byte* from = stored + block * 34;
      for (int q = 0; q < 8; ++q) store(to + q * 64 + row * 4, load<uint32_t>(from + 2 + 4 * q));
      store(to + 512 + row * 2, load<uint16_t>(from));
      return;
    }
    case WeightClass::kQ4_K:
    case WeightClass::kQ5_K: {
      const bool fifth = weight_class == WeightClass::kQ5_K;
      const std::byte* from = stored + block / kSuperBlocks * (fifth ? 176 : 144);
      store(header + row * 2, load<uint16_t>(from));
      store(header + 32 + row * 2, load<uint16_t>(from + 2));
      quads_of_k_nibbles(from + (fifth ? 48 : 16), group, quads);
      if (fifth) {
        for (int q = 0; q < 8; ++q) quads[q] |= ((load<uint32_t>(from + 16 + 4 * q) >> group) & kBits) << 4;
        store_fifth_plane(quads, to, row);
      }
      store_nibble_plane(quads, to, row);
      std::byte* scales = to + (fifth ? 320 : 256);
      const ScaleMin both = k_scale_min(from + 4, group);
      store(scales + row, both.scale);
      store(scales + 16 + row, both.minimum);
      return;
    }
    case WeightClass::kQ6_K: {
      const std::byte* from = stored + block / kSuperBlocks * 210;
      store(header + row * 2, load<uint16_t>(from + 208));
      const int64_t half = group / 4, quarter = group % 4;
      for (int q = 0; q < 8; ++q) {
        const auto low = load<uint32_t>(from + half * 64 + quarter % 2 * 32 + 4 * q) >> (quarter / 2 * 4);
        const auto high = load<uint32_t>(from + 128 + half * 32 + 4 * q) >> (quarter * 2);
        quads[q] = (low & kNibbles) | (high & (kBits * 3)) << 4;
      }
      store_nibble_plane(quads, to, row);
      store_sixth_planes(quads, to, row);
      for (int i = 0; i < 2; ++i) store(to + 384 + i * 16 + row, load<uint8_t>(from + 192 + group * 2 + i));
      return;
    }
    default: MR_CHECK(false, "not a class of blocks");
  }
}

template <class T>
void pack_plain_row(const std::byte* stored, int64_t k, int64_t row, int64_t k_per_line, std::byte* panel) {
  for (int64_t i = 0; i < k; ++i) {
    const int64_t index = i / k_per_line * kPanelRows * k_per_line + row * k_per_line + i % k_per_line;
    store(panel + index * static_cast<int64_t>(sizeof(T)), load<T>(stored + i * static_cast<int64_t>(sizeof(T))));
  }
}

void pack_row(WeightClass weight_class, DType dtype, const std::byte* stored, int64_t k, int64_t row, std::byte* panel) {
  if (weight_class == WeightClass::kF32) return pack_plain_row<uint32_t>(stored, k, row, 1, panel);
  if (!is_quantized(weight_class)) return pack_plain_row<uint16_t>(stored, k, row, 2, panel);
  const PanelLayout layout = panel_layout(weight_class);
  for (int64_t block = 0; block < k / kBlockK; ++block) {
    std::byte* header =
        layout.header_bytes > 0 ? panel + block_offset(layout, block / kSuperBlocks * kSuperBlocks) - layout.header_bytes : nullptr;
    std::byte* to = panel + block_offset(layout, block);
    if (is_small_block(weight_class)) {
      pack_small_block(dtype, stored, block, row, header, to);
    } else {
      pack_block(weight_class, stored, block, row, header, to);
    }
  }
}

// GGUF's blocks of MXFP4 for one row. Invalid: a scale that is no power of two (the byte 255 stands for NaN).
Status pack_mxfp4_row(const GroupedRow& from, int64_t source, int64_t k, int64_t row, std::byte* panel) {
  constexpr int64_t kBytes = 17;
  std::vector<std::byte> blocks(static_cast<std::size_t>(k / kBlockK * kBytes));
  for (int64_t b = 0; b < k / kBlockK; ++b) {
    const float scale = from.scales[static_cast<std::size_t>(b)];
    int exponent = 0;
    if (!(scale > 0) || std::isinf(scale) || std::frexp(scale, &exponent) != 0.5f) {
      return Status::invalid_argument(fmt::format("the scale of [{}, {}] is {}, expected a power of two", source, b * kBlockK, scale));
    }
    std::byte* to = &blocks[static_cast<std::size_t>(b * kBytes)];
    to[0] = static_cast<std::byte>(exponent - 1 + 127);
    const uint8_t* codes = from.codes.data() + b * kBlockK;
    for (int i = 0; i < 16; ++i) to[1 + i] = static_cast<std::byte>(codes[i] | codes[i + 16] << 4);
  }
  pack_row(WeightClass::kMXFP4, DType::kMXFP4, blocks.data(), k, row, panel);
  return Status::ok();
}

constexpr int64_t kNvfp4Group = 16;

// GGUF's blocks of NVFP4 for one row: four groups of 16, whose low halves are elements 0-7 and whose high halves are 8-15. Invalid: a scale
// below zero or that is no 8-bit float.
Status pack_nvfp4_row(const GroupedRow& from, int64_t source, int64_t k, int64_t row, std::byte* panel) {
  const DTypeInfo& info = dtype_info(DType::kNVFP4);
  std::vector<std::byte> blocks(static_cast<std::size_t>((k + info.block_elements - 1) / info.block_elements * info.block_bytes));
  for (int64_t group = 0; group < k / kNvfp4Group; ++group) {
    const float scale = from.scales[static_cast<std::size_t>(group)];
    if (!(scale >= 0 && scale <= 448)) {
      return Status::invalid_argument(
          fmt::format("the scale of [{}, {}] is {}, expected 0 to 448 (an 8-bit float, E4M3)", source, group * kNvfp4Group, scale));
    }
    std::byte* block = &blocks[static_cast<std::size_t>(group / 4 * info.block_bytes)];
    block[group % 4] = static_cast<std::byte>(f32_to_f8e4m3(scale) & 0x7f);
    const uint8_t* codes = from.codes.data() + group * kNvfp4Group;
    for (int i = 0; i < 8; ++i) block[4 + group % 4 * 8 + i] = static_cast<std::byte>(codes[i] | codes[i + 8] << 4);
  }
  pack_row(WeightClass::kNVFP4, DType::kNVFP4, blocks.data(), k, row, panel);
  return Status::ok();
}

struct WeightMemory {
  std::byte* data;  // zero-filled
  std::shared_ptr<const AlignedBuffer> owner;
};

// Weights lie in huge pages, since a decode step streams all of them: a cold 1536 x 576 matrix is read 1.4 times faster than from 4 KB
// pages. A huge page is larger than most matrices of a small model, so those packed after one another share a chunk, which lives as
// long as the last of them; of the chunk's end only address space is wasted.
WeightMemory allocate_weights(std::size_t num_bytes) {
  constexpr std::size_t kChunkBytes = std::size_t{64} << 20, kOwnFrom = kChunkBytes / 2, kTiny = std::size_t{32} << 10;
  if (num_bytes <= kTiny || num_bytes >= kOwnFrom) {
    auto own = std::make_shared<AlignedBuffer>(num_bytes);
    return {own->data(), own};
  }
  static std::mutex mutex;
  static std::weak_ptr<AlignedBuffer> last_chunk;
  static std::size_t used = 0;
  const std::lock_guard lock(mutex);
  std::shared_ptr<AlignedBuffer> chunk = last_chunk.lock();
  if (chunk == nullptr || chunk->size() - used < num_bytes) {
    chunk = std::make_shared<AlignedBuffer>(kChunkBytes);
    last_chunk = chunk;
    used = 0;
  }
  std::byte* data = chunk->data() + used;
  used += (num_bytes + AlignedBuffer::kAlignment - 1) / AlignedBuffer::kAlignment * AlignedBuffer::kAlignment;
  if (used > chunk->size()) used = chunk->size();
  return {data, chunk};
}

}  // namespace

Result<PackedMatrix> PackedMatrix::plan(DType dtype, int64_t rows, int64_t k) {
  const auto weight_class = class_of(dtype);
  if (!weight_class) return Status::unsupported(fmt::format("{} weights: no kernel computes with this type", dtype_name(dtype)));
  if (k <= 0 || k % dtype_info(dtype).block_elements != 0) {
    return Status::unsupported(
        fmt::format("{} weights with {} columns: expected a multiple of {}", dtype_name(dtype), k, dtype_info(dtype).block_elements));
  }
  PackedMatrix matrix;
  matrix.class_ = *weight_class;
  matrix.rows_ = rows;
  matrix.k_ = k;
  MR_RETURN_IF_ERROR(matrix.plan_panels());
  return matrix;
}

Result<PackedMatrix> PackedMatrix::plan(const GroupedWeights& weights, std::span<const int32_t> rows) {
  if (weights.k <= 0 || weights.k % kBlockK != 0)
    return Status::unsupported(fmt::format("quantized weights with {} columns: expected a multiple of {}", weights.k, kBlockK));
  const int64_t multiple = weights.kind == CodeKind::kNvfp4 ? kNvfp4Group : kBlockK;
  if (weights.group_size < weights.k && (weights.group_size <= 0 || weights.group_size % multiple != 0)) {
    return Status::unsupported(fmt::format("groups of {} weights: expected a multiple of {}", weights.group_size, multiple));
  }
  GroupedRow buffer(weights);
  PackedMatrix matrix;
  matrix.rows_ = static_cast<int64_t>(rows.size());
  matrix.k_ = weights.k;
  matrix.class_ = grouped_class(weights, rows, buffer);
  matrix.group_ = {.scale_type = scale_type_of(weights.scale_dtype),
                   .group_shift = group_shift_of(weights.group_size, weights.k),
                   .unit = weights.unit,
                   .float_zeros = weights.float_zeros};
  if (!weights.columns.empty()) matrix.columns_ = std::make_shared<const std::vector<int32_t>>(weights.columns);
  if (matrix.class_ == WeightClass::kCode4) {
    matrix.codebook_ = std::make_shared<const Codebook>(make_codebook(weights.codebook));
    matrix.group_.codebook = matrix.codebook_.get();
  }
  MR_RETURN_IF_ERROR(matrix.plan_panels());
  return matrix;
}

void PackedMatrix::pack_panel(DType dtype, std::span<const std::byte* const> rows, std::byte* panel) const {
  for (std::size_t row = 0; row < rows.size(); ++row) pack_row(class_, dtype, rows[row], k_, static_cast<int64_t>(row), panel);
}

Status PackedMatrix::pack_panel(const GroupedWeights& weights, std::span<const int32_t> rows, GroupedRow& buffer, std::byte* panel) const {
  for (std::size_t row = 0; row < rows.size(); ++row) {
    MR_RETURN_IF_ERROR(buffer.read(weights, rows[row]));
    if (class_ == WeightClass::kF8E4M3) {
      const auto nan = std::find_if(buffer.codes.begin(), buffer.codes.end(), [](uint8_t code) { return (code & 0x7f) == 0x7f; });
      if (nan != buffer.codes.end()) {
        return Status::invalid_argument(fmt::format("[{}, {}] is not a number (byte {:#x})", rows[row], nan - buffer.codes.begin(), *nan));
      }
    }
    if (class_ == WeightClass::kMXFP4) {
      MR_RETURN_IF_ERROR(pack_mxfp4_row(buffer, rows[row], weights.k, static_cast<int64_t>(row), panel));
    } else if (class_ == WeightClass::kNVFP4) {
      MR_RETURN_IF_ERROR(pack_nvfp4_row(buffer, rows[row], weights.k, static_cast<int64_t>(row), panel));
    } else {
      pack_grouped_row(class_, group_, buffer, weights.group_size, weights.k, static_cast<int64_t>(row), panel);
    }
  }
  return Status::ok();
}

PackedMatrix PackedMatrix::with_panels(const std::byte* panels, std::shared_ptr<const void> owner) const {
  PackedMatrix matrix = *this;
  matrix.data_ = panels;
  matrix.memory_ = std::move(owner);
  return matrix;
}

namespace {

// The rows of panel `panel`: 16, or what is left.
template <class T>
std::span<const T> rows_of_panel(std::span<const T> rows, int64_t panel) {
  const auto begin = static_cast<std::size_t>(panel * kPanelRows);
  return rows.subspan(begin, std::min(static_cast<std::size_t>(kPanelRows), rows.size() - begin));
}

}  // namespace

Result<PackedMatrix> PackedMatrix::pack(DType dtype, std::span<const std::byte* const> rows, int64_t k) {
  MR_ASSIGN_OR_RETURN(PackedMatrix matrix, plan(dtype, static_cast<int64_t>(rows.size()), k));
  std::byte* data = matrix.allocate();
  for (int64_t panel = 0; panel < matrix.num_panels(); ++panel)
    matrix.pack_panel(dtype, rows_of_panel(rows, panel), data + panel * matrix.panel_bytes_);
  return matrix;
}

Result<PackedMatrix> PackedMatrix::pack(const GroupedWeights& weights, std::span<const int32_t> rows) {
  MR_ASSIGN_OR_RETURN(PackedMatrix matrix, plan(weights, rows));
  std::byte* data = matrix.allocate();
  GroupedRow buffer(weights);
  for (int64_t panel = 0; panel < matrix.num_panels(); ++panel) {
    MR_RETURN_IF_ERROR(matrix.pack_panel(weights, rows_of_panel(rows, panel), buffer, data + panel * matrix.panel_bytes_));
  }
  return matrix;
}

// The size of a panel for k_ of class_.
Status PackedMatrix::plan_panels() {
  panel_bytes_ = millrace::panel_bytes(class_, group_, k_);
  int64_t total_bytes = 0;
  if (__builtin_mul_overflow(panel_bytes_, num_panels(), &total_bytes)) {
    return Status::invalid_argument(fmt::format("a matrix of {} x {} does not fit in memory", rows_, k_));
  }
  return Status::ok();
}

// Memory of its own: zero bytes are zero weights in every class (their scales are 0), so rows beyond the last need nothing more.
std::byte* PackedMatrix::allocate() {
  const WeightMemory memory = allocate_weights(static_cast<std::size_t>(bytes()));
  data_ = memory.data;
  memory_ = memory.owner;
  return memory.data;
}

void PackedMatrix::unpack_row(int64_t row, float* out) const {
  MR_DCHECK(row >= 0 && row < rows_, "row out of range");
  if (columns_ == nullptr) return unpack_panel_row(class_, group_, panel(row / kPanelRows), k_, row % kPanelRows, out, 1);
  std::vector<float> packed(static_cast<std::size_t>(k_));
  unpack_panel_row(class_, group_, panel(row / kPanelRows), k_, row % kPanelRows, packed.data(), 1);
  for (std::size_t i = 0; i < packed.size(); ++i) out[(*columns_)[i]] = packed[i];
}

BlockRow load_block_row(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t block, int64_t row) {
  if (is_grouped(weight_class)) return load_grouped_block_row(weight_class, group, panel, block, row);
  const PanelLayout layout = panel_layout(weight_class);
  const std::byte* from = panel + block_offset(layout, block);
  const std::byte* header =
      layout.header_bytes > 0 ? panel + block_offset(layout, block / kSuperBlocks * kSuperBlocks) - layout.header_bytes : nullptr;
  if (is_small_block(weight_class)) {
    BlockRow result = load_small_block_row(weight_class, from, header, row);
    if (weight_class == WeightClass::kNVFP4) {
      for (float& scale : result.scale) scale *= group.unit;
    }
    return result;
  }
  BlockRow result{};
  if (weight_class == WeightClass::kQ8_0) {
    for (int i = 0; i < kBlockK; ++i) result.codes[i] = load<int8_t>(from + i / 4 * 64 + row * 4 + i % 4);
    result.scale[0] = result.scale[1] = load_f16(from + 512 + row * 2);
    return result;
  }
  const bool fifth = weight_class == WeightClass::kQ5_0 || weight_class == WeightClass::kQ5_1 || weight_class == WeightClass::kQ5_K;
  const bool sixth = weight_class == WeightClass::kQ6_K;
  for (int i = 0; i < kBlockK; ++i) {
    const int quad = i / 4, byte = static_cast<int>(row) * 4 + i % 4;
    int code = (static_cast<int>(from[quad % 4 * 64 + byte]) >> (quad / 4 * 4)) & 15;
    if (fifth) code |= ((static_cast<int>(from[256 + byte]) >> quad) & 1) << 4;
    if (sixth) code |= ((static_cast<int>(from[256 + quad / 4 * 64 + byte]) >> (quad % 4 * 2)) & 3) << 4;
    result.codes[i] = code;
  }
  const std::byte* scales = from + (fifth ? 320 : sixth ? 384 : 256);
  if (header == nullptr) {
    result.scale[0] = result.scale[1] = load_f16(scales + row * 2);
    if (layout.has_minimum) result.minimum[0] = result.minimum[1] = load_f16(scales + 32 + row * 2);
  } else if (sixth) {
    for (int i = 0; i < 2; ++i) result.scale[i] = load_f16(header + row * 2) * static_cast<float>(load<int8_t>(scales + i * 16 + row));
  } else {
    result.scale[0] = result.scale[1] = load_f16(header + row * 2) * static_cast<float>(load<uint8_t>(scales + row));
    result.minimum[0] = result.minimum[1] = -(load_f16(header + 32 + row * 2) * static_cast<float>(load<uint8_t>(scales + 16 + row)));
  }
  return result;
}

void unpack_panel_row(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t k, int64_t row, float* out,
                      int64_t stride) {
  if (is_grouped(weight_class)) return unpack_grouped_row(weight_class, group, panel, k, row, out, stride);
  const PanelLayout layout = panel_layout(weight_class);
  if (weight_class == WeightClass::kF32) {
    for (int64_t i = 0; i < k; ++i) out[i * stride] = load<float>(panel + (i * kPanelRows + row) * 4);
    return;
  }
  if (!is_quantized(weight_class)) {
    for (int64_t i = 0; i < k; ++i) {
      const auto bits = load<uint16_t>(panel + (i / 2 * kPanelRows * 2 + row * 2 + i % 2) * 2);
      out[i * stride] = weight_class == WeightClass::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
    return;
  }
  for (int64_t block = 0; block < k / kBlockK; ++block) {
    const BlockRow values = load_block_row(weight_class, group, panel, block, row);
    for (int i = 0; i < kBlockK; ++i) {
      const float product = values.scale[i / 16] * static_cast<float>(values.codes[i] - layout.zero_point);
      out[(block * kBlockK + i) * stride] = layout.has_minimum ? product + values.minimum[i / 16] : product;
    }
  }
}

std::string_view weight_class_name(WeightClass weight_class) {
  switch (weight_class) {
    case WeightClass::kF32: return "F32";
    case WeightClass::kF16: return "F16";
    case WeightClass::kBf16: return "BF16";
    case WeightClass::kQ4_0: return "Q4_0";
    case WeightClass::kQ4_1: return "Q4_1";
    case WeightClass::kQ5_0: return "Q5_0";
    case WeightClass::kQ5_1: return "Q5_1";
    case WeightClass::kQ8_0: return "Q8_0";
    case WeightClass::kQ4_K: return "Q4_K";
    case WeightClass::kQ5_K: return "Q5_K";
    case WeightClass::kQ6_K: return "Q6_K";
    case WeightClass::kInt2Zero: return "INT2_ZP";
    case WeightClass::kInt3Zero: return "INT3_ZP";
    case WeightClass::kInt4: return "INT4";
    case WeightClass::kInt4Zero: return "INT4_ZP";
    case WeightClass::kInt8: return "INT8";
    case WeightClass::kInt8Zero: return "INT8_ZP";
    case WeightClass::kCode4: return "CODE4";
    case WeightClass::kF8E4M3: return "F8_E4M3";
    case WeightClass::kQ2_K: return "Q2_K";
    case WeightClass::kQ3_K: return "Q3_K";
    case WeightClass::kTQ2_0: return "TQ2_0";
    case WeightClass::kIQ4_NL: return "IQ4_NL";
    case WeightClass::kIQ4_XS: return "IQ4_XS";
    case WeightClass::kMXFP4: return "MXFP4";
    case WeightClass::kNVFP4: return "NVFP4";
    case WeightClass::kIQ1_S: return "IQ1_S";
    case WeightClass::kIQ1_M: return "IQ1_M";
    case WeightClass::kIQ2_XXS: return "IQ2_XXS";
    case WeightClass::kIQ2_XS: return "IQ2_XS";
    case WeightClass::kIQ2_S: return "IQ2_S";
    case WeightClass::kIQ3_XXS: return "IQ3_XXS";
    case WeightClass::kIQ3_S: return "IQ3_S";
  }
  return "unknown";
}

double bits_per_weight(WeightClass weight_class) {
  constexpr int64_t kK = kBlockK * kSuperBlocks;
  const PanelLayout layout = panel_layout(weight_class);
  return 8.0 * static_cast<double>(kK / layout.block_k * layout.block_bytes + layout.header_bytes) / static_cast<double>(kK * kPanelRows);
}

}  // namespace millrace
