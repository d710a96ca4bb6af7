#include <fmt/format.h>

#include <cmath>

#include "millrace/formats/encoding_parts.h"
#include "millrace/tensor/dequantize.h"

// FP4 (E2M1, OCP Microscaling Formats specification 1.0) as compressed-tensors packs it, a matrix at a time:
//
//   weight_packed         U8 [rows, k / 2]        two codes a byte, that of the lower column in its low half
//   nvfp4-pack-quantized  weight_scale F8_E4M3 [rows, k / 16], weight_global_scale F32 [1]
//                                                 value = weight_scale / weight_global_scale * fp4(code)
//   mxfp4-pack-quantized  weight_scale U8 [rows, k / 32]   value = 2^(weight_scale - 127) fp4(code)
namespace millrace {
namespace {

class Fp4Weights : public GroupedWeights {
 public:
  const SourceTensor *packed = nullptr, *scales = nullptr;

  void read_codes(int64_t row, uint8_t* codes) const override {
    for (int64_t i = 0; i < k; ++i) codes[i] = (load_element<uint8_t>(*packed, row * (k / 2) + i / 2) >> (i % 2 * 4)) & 15;
  }
  void read_scales(int64_t row, float* out) const override {
    const std::byte* bytes = scales->data.data() + row * num_groups();
    if (kind == CodeKind::kNvfp4) return dequantize_row(DType::kF8E4M3, bytes, num_groups(), out);
    for (int64_t i = 0; i < num_groups(); ++i) out[i] = std::ldexp(1.0f, static_cast<int>(bytes[i]) - 127);
  }
  void read_zero_points(int64_t, uint8_t*) const override {}
};

}  // namespace

Result<EncodedMatrix> open_packed_fp4(ModuleParts& parts, int64_t rows, int64_t k) {
  auto weights = std::make_shared<Fp4Weights>();
  weights->rows = rows;
  weights->k = k;
  if (k % 32 != 0) return Status::unsupported(parts.error(fmt::format("{} columns, expected a multiple of 32", k)).message());
  MR_ASSIGN_OR_RETURN(weights->packed,
                      parts.need(".weight_packed", "codes", {DType::kU8}, {rows, k / 2}, "[out_features, in_features / 2]"));
  MR_ASSIGN_OR_RETURN(weights->scales, parts.need_any_shape(".weight_scale", "scales", {DType::kF8E4M3, DType::kU8}));
  const bool nvidia = weights->scales->dtype == DType::kF8E4M3;
  weights->kind = nvidia ? CodeKind::kNvfp4 : CodeKind::kMxfp4;
  weights->group_size = nvidia ? 16 : 32;
  const std::vector<int64_t> shape = {rows, weights->num_groups()};
  if (weights->scales->shape != shape)
    return parts.wrong_shape(*weights->scales, shape, nvidia ? "[out_features, in_features / 16]" : "[out_features, in_features / 32]");
  if (nvidia) {
    MR_ASSIGN_OR_RETURN(const SourceTensor* global, parts.need_any_shape(".weight_global_scale", "the divisor of all scales",
                                                                         {DType::kF16, DType::kBf16, DType::kF32}));
    if (global->shape != std::vector<int64_t>{1} && !global->shape.empty()) return parts.wrong_shape(*global, {1}, "one number");
    const float divisor = load_float(*global, 0);
    weights->unit = 1.0f / divisor;
    if (!(divisor > 0) || !std::isnormal(weights->unit))
      return parts.error(fmt::format("\"{}\" is {}, expected a positive number with a reciprocal", global->name, divisor));
  }
  return parts.take(std::move(weights));
}

}  // namespace millrace
