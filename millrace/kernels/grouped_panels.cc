#include "millrace/kernels/grouped_panels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "millrace/tensor/dequantize.h"
#include "millrace/tensor/half.h"
#include "millrace/tensor/rounded_weights.h"

namespace millrace {
namespace {

int64_t scale_bytes(const GroupFormat& group) { return group.scale_type == ScaleType::kF32 ? 4 : 2; }

void store_scale(ScaleType type, float scale, std::byte* header, int64_t row) {
  if (type == ScaleType::kF32) {
    std::memcpy(header + row * 4, &scale, 4);
  } else {
    const uint16_t bits = type == ScaleType::kF16 ? f32_to_f16(scale) : f32_to_bf16(scale);
    std::memcpy(header + row * 2, &bits, 2);
  }
}

float load_scale(ScaleType type, const std::byte* header, int64_t row) {
  if (type == ScaleType::kF32) {
    float scale;
    std::memcpy(&scale, header + row * 4, 4);
    return scale;
  }
  uint16_t bits;
  std::memcpy(&bits, header + row * 2, 2);
  return type == ScaleType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

// The zero points follow the 16 scales.
float load_zero(const GroupFormat& group, const std::byte* header, int64_t row) {
  const std::byte* zeros = header + 16 * scale_bytes(group);
  return group.float_zeros ? load_scale(group.scale_type, zeros, row) : static_cast<float>(zeros[row]);
}

// Where code i of row `row` lies in a block: byte, and lowest bit.
struct CodePlace {
  int64_t byte;
  int shift;
};
CodePlace nibble_place(int i, int64_t row) { return {i / 4 % 4 * 64 + row * 4 + i % 4, i / 16 * 4}; }
CodePlace pair_place(int i, int64_t row) { return {i / 16 * 64 + row * 4 + i % 4, i / 4 % 4 * 2}; }
CodePlace third_bit_place(int i, int64_t row) { return {128 + row * 4 + i % 4, i / 4}; }
CodePlace byte_place(int i, int64_t row) { return {i / 4 * 64 + row * 4 + i % 4, 0}; }

int get(const std::byte* block, CodePlace place, int mask) { return (static_cast<int>(block[place.byte]) >> place.shift) & mask; }

// The 32 codes of one row, four at a time: a quad is a word of the row's lane.
void store_codes(WeightClass weight_class, const uint8_t* codes, std::byte* block, int64_t row) {
  uint32_t quads[8];
  std::memcpy(quads, codes, sizeof quads);
  const auto store = [&](int64_t line, uint32_t word) { std::memcpy(block + line * 64 + row * 4, &word, sizeof word); };
  switch (weight_class) {
    case WeightClass::kInt2Zero:
    case WeightClass::kInt3Zero:
      for (int p = 0; p < 2; ++p) {
        uint32_t word = 0;
        for (int i = 0; i < 4; ++i) word |= (quads[4 * p + i] & 0x03030303u) << (2 * i);
        store(p, word);
      }
      if (weight_class == WeightClass::kInt3Zero) {
        uint32_t word = 0;
        for (int q = 0; q < 8; ++q) word |= ((quads[q] >> 2) & 0x01010101u) << q;
        store(2, word);
      }
      return;
    case WeightClass::kInt4:
    case WeightClass::kInt4Zero:
    case WeightClass::kCode4:
      for (int q = 0; q < 4; ++q) store(q, (quads[q] & 0x0f0f0f0fu) | (quads[q + 4] & 0x0f0f0f0fu) << 4);
      return;
    case WeightClass::kInt8:  // code - 128 as a signed byte
      for (int q = 0; q < 8; ++q) store(q, quads[q] ^ 0x80808080u);
      return;
    default:
      for (int q = 0; q < 8; ++q) store(q, quads[q]);
  }
}

int load_code(WeightClass weight_class, const std::byte* block, int i, int64_t row) {
  switch (weight_class) {
    case WeightClass::kInt2Zero: return get(block, pair_place(i, row), 3);
    case WeightClass::kInt3Zero: return get(block, pair_place(i, row), 3) | get(block, third_bit_place(i, row), 1) << 2;
    case WeightClass::kInt4:
    case WeightClass::kInt4Zero:
    case WeightClass::kCode4: return get(block, nibble_place(i, row), 15);
    case WeightClass::kInt8: return static_cast<int8_t>(get(block, byte_place(i, row), 255));
    default: return get(block, byte_place(i, row), 255);
  }
}

float f8_to_f32(int code) {
  const auto byte = static_cast<std::byte>(code);
  float value;
  dequantize_row(DType::kF8E4M3, &byte, 1, &value);
  return value;
}

}  // namespace

// The unit is the one of 64 to 127 for the largest number under which the codes lie closest to the numbers (FP4's thirds are exact but one
// at 120; evenly spaced numbers would be at any).
Codebook make_codebook(const std::array<float, 16>& values) {
  Codebook book{};
  std::copy(values.begin(), values.end(), book.values);
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  if (!(largest > 0) || !std::isfinite(largest)) return book;
  double best = INFINITY;
  for (int steps = 64; steps <= 127; ++steps) {
    const double unit = static_cast<double>(largest) / steps;
    double error = 0;
    for (const float value : values) {
      const double difference = std::nearbyint(value / unit) * unit - value;
      error += difference * difference;
    }
    if (error >= best) continue;
    best = error;
    book.unit = static_cast<float>(unit);
    for (std::size_t i = 0; i < 16; ++i) book.codes[i] = static_cast<int8_t>(std::nearbyint(values[i] / unit));
  }
  return book;
}

GroupedRow::GroupedRow(const GroupedWeights& weights)
    : codes(static_cast<std::size_t>(weights.k)),
      zero_points(static_cast<std::size_t>(weights.num_groups())),
      scales(static_cast<std::size_t>(weights.num_groups())),
      float_zeros(weights.float_zeros ? scales.size() : 0) {}

Status GroupedRow::read(const GroupedWeights& weights, int64_t row) {
  if (const auto* rounded = dynamic_cast<const RoundedWeights*>(&weights))
    return rounded->read_row(row, codes.data(), scales.data(), zero_points.data());
  weights.read_codes(row, codes.data());
  weights.read_scales(row, scales.data());
  if (weights.float_zeros) {
    weights.read_float_zeros(row, float_zeros.data());
  } else if (is_integer_code(weights.kind)) {
    weights.read_zero_points(row, zero_points.data());
  }
  return Status::ok();
}

WeightClass grouped_class(const GroupedWeights& weights, std::span<const int32_t> rows, GroupedRow& buffer) {
  switch (weights.kind) {
    case CodeKind::kInt2: return WeightClass::kInt2Zero;
    case CodeKind::kInt3: return WeightClass::kInt3Zero;
    case CodeKind::kCodebook4: return WeightClass::kCode4;
    case CodeKind::kMxfp4: return WeightClass::kMXFP4;
    case CodeKind::kNvfp4: return WeightClass::kNVFP4;
    case CodeKind::kF8E4M3: return WeightClass::kF8E4M3;
    case CodeKind::kInt4:
    case CodeKind::kInt8: break;
  }
  const bool wide = weights.kind == CodeKind::kInt8;
  const uint8_t middle = wide ? 128 : 8;
  if (weights.float_zeros) return wide ? WeightClass::kInt8Zero : WeightClass::kInt4Zero;
  if (const auto* rounded = dynamic_cast<const RoundedWeights*>(&weights)) {
    if (rounded->symmetric) return wide ? WeightClass::kInt8 : WeightClass::kInt4;
    return wide ? WeightClass::kInt8Zero : WeightClass::kInt4Zero;
  }
  for (const int32_t row : rows) {
    weights.read_zero_points(row, buffer.zero_points.data());
    for (const uint8_t zero : buffer.zero_points) {
      if (zero != middle) return wide ? WeightClass::kInt8Zero : WeightClass::kInt4Zero;
    }
  }
  return wide ? WeightClass::kInt8 : WeightClass::kInt4;
}

ScaleType scale_type_of(DType dtype) {
  switch (dtype) {
    case DType::kF16: return ScaleType::kF16;
    case DType::kBf16: return ScaleType::kBf16;
    default: return ScaleType::kF32;
  }
}

int group_shift_of(int64_t group_size, int64_t k) {
  if (group_size >= k) return kHeaderShiftMax;
  return std::countr_zero(static_cast<uint64_t>(group_size / kBlockK));
}

void pack_grouped_row(WeightClass weight_class, const GroupFormat& group, const GroupedRow& from, int64_t group_size, int64_t k,
                      int64_t row, std::byte* panel) {
  const PanelStride stride = panel_stride(weight_class, group);
  const bool has_zeros = panel_layout(weight_class).has_minimum;
  for (int64_t block = 0; block < k / kBlockK; ++block) {
    if (block % (int64_t{1} << group.group_shift) == 0) {
      const auto index = static_cast<std::size_t>(block * kBlockK / group_size);
      std::byte* header = panel + stride.header_offset(block);
      store_scale(group.scale_type, from.scales[index], header, row);
      std::byte* zeros = header + 16 * scale_bytes(group);
      if (has_zeros && group.float_zeros) store_scale(group.scale_type, from.float_zeros[index], zeros, row);
      if (has_zeros && !group.float_zeros) zeros[row] = static_cast<std::byte>(from.zero_points[index]);
    }
    store_codes(weight_class, from.codes.data() + block * kBlockK, panel + stride.block_offset(block), row);
  }
}

BlockRow load_grouped_block_row(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t block, int64_t row) {
  const PanelStride stride = panel_stride(weight_class, group);
  const std::byte *codes = panel + stride.block_offset(block), *header = panel + stride.header_offset(block);
  BlockRow result{};
  float scale = load_scale(group.scale_type, header, row);
  if (panel_layout(weight_class).has_minimum) result.minimum[0] = result.minimum[1] = -(scale * load_zero(group, header, row));
  for (int i = 0; i < kBlockK; ++i) result.codes[i] = load_code(weight_class, codes, i, row);
  if (weight_class == WeightClass::kCode4) {
    for (int& code : result.codes) code = group.codebook->codes[code];
    scale *= group.codebook->unit;
  }
  result.scale[0] = result.scale[1] = scale;
  return result;
}

void unpack_grouped_block(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t block, int64_t row,
                          float* out, int64_t stride) {
  const PanelStride at = panel_stride(weight_class, group);
  const PanelLayout layout = panel_layout(weight_class);
  const std::byte *codes = panel + at.block_offset(block), *header = panel + at.header_offset(block);
  const float scale = load_scale(group.scale_type, header, row);
  const float zero = layout.has_minimum ? load_zero(group, header, row) : static_cast<float>(layout.zero_point);
  for (int i = 0; i < kBlockK; ++i) {
    const int code = load_code(weight_class, codes, i, row);
    const float value = weight_class == WeightClass::kCode4    ? group.codebook->values[code]
                        : weight_class == WeightClass::kF8E4M3 ? f8_to_f32(code)
                                                               : static_cast<float>(code) - zero;
    out[i * stride] = scale * value;
  }
}

void unpack_grouped_row(WeightClass weight_class, const GroupFormat& group, const std::byte* panel, int64_t k, int64_t row, float* out,
                        int64_t stride) {
  for (int64_t block = 0; block < k / kBlockK; ++block)
    unpack_grouped_block(weight_class, group, panel, block, row, out + block * kBlockK * stride, stride);
}

}  // namespace millrace
