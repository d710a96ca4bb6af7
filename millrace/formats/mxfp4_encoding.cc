// MXFP4 as gpt-oss is published: the experts of a layer in one tensor, "NAME_blocks" [num_experts, rows, k / 32, 16] of bytes, a byte two
// codes, that of the lower column in its low half; "NAME_scales" [num_experts, rows, k / 32] of exponents. value = 2^(exponent - 127)
// fp4(code). OCP Microscaling Formats (MX) specification 1.0.
#include <fmt/format.h>

#include <cmath>

#include "millrace/formats/encoding_parts.h"

namespace millrace {
namespace {

class Mxfp4Weights : public GroupedWeights {
 public:
  const SourceTensor *blocks = nullptr, *exponents = nullptr;
  int64_t first_row = 0;  // of the stack

  void read_codes(int64_t row, uint8_t* codes) const override {
    const std::byte* bytes = blocks->data.data() + (first_row + row) * (k / 2);
    for (int64_t i = 0; i < k; ++i) codes[i] = static_cast<uint8_t>((static_cast<int>(bytes[i / 2]) >> (i % 2 * 4)) & 15);
  }
  void read_scales(int64_t row, float* scales) const override {
    const std::byte* bytes = exponents->data.data() + (first_row + row) * (k / 32);
    for (int64_t i = 0; i < k / 32; ++i) scales[i] = std::ldexp(1.0f, static_cast<int>(bytes[i]) - 127);
  }
  void read_zero_points(int64_t, uint8_t*) const override {}
};

class Mxfp4Encoding : public WeightEncoding {
 public:
  Result<std::optional<EncodedMatrix>> find(const Checkpoint&, const std::string&, int64_t, int64_t) const override {
    return std::optional<EncodedMatrix>();
  }

  Result<std::vector<EncodedMatrix>> find_stack(const Checkpoint& checkpoint, const std::string& module, int64_t count, int64_t rows,
                                                int64_t k) const override {
    std::vector<EncodedMatrix> matrices;
    if (!ModuleParts(checkpoint, module).has("_blocks")) return matrices;
    for (int64_t i = 0; i < count; ++i) {
      ModuleParts parts(checkpoint, module);
      if (k % 32 != 0) return parts.error(fmt::format("an MXFP4 matrix with {} columns, expected a multiple of 32", k));
      auto weights = std::make_shared<Mxfp4Weights>();
      weights->kind = CodeKind::kMxfp4;
      weights->rows = rows;
      weights->k = k;
      weights->group_size = 32;
      weights->first_row = i * rows;
      MR_ASSIGN_OR_RETURN(weights->blocks,
                          parts.need("_blocks", "codes", {DType::kU8}, {count, rows, k / 32, 16}, "[num_experts, rows, columns / 32, 16]"));
      MR_ASSIGN_OR_RETURN(weights->exponents,
                          parts.need("_scales", "exponents", {DType::kU8}, {count, rows, k / 32}, "[num_experts, rows, columns / 32]"));
      Mxfp4Weights& own = *weights;
      matrices.push_back(parts.take(std::move(weights)));
      own.stored_bytes /= count;
      own.own_bytes = own.blocks->data.subspan(static_cast<std::size_t>(i * rows * (k / 2)), static_cast<std::size_t>(rows * (k / 2)));
    }
    return matrices;
  }
};

}  // namespace

Result<std::shared_ptr<const WeightEncoding>> read_mxfp4_encoding(const EncodingConfig&) {
  return std::shared_ptr<const WeightEncoding>(std::make_shared<Mxfp4Encoding>());
}

}  // namespace millrace
