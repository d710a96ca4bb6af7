#include <fmt/format.h>

#include <algorithm>

#include "millrace/formats/encoding_parts.h"

// GPTQ (arXiv:2210.17323) as AutoGPTQ and GPTQModel store it, and AWQ (arXiv:2306.00978) as AutoAWQ's "gemm" layout does. Both keep
// matrices as [k, rows], and value = scale (code - zero point).
//
//   GPTQ  qweight I32 [k * bits / 32, rows]    codes of consecutive k in a stream of bits, low bits first; 3 bits run across words
//         qzeros  I32 [groups, rows * bits / 32] the same stream along the rows. Format "gptq" stores zero point - 1 (of `bits` bits, so
//                                              that 0 becomes all ones), "gptq_v2" the zero point
//         scales      [groups, rows]
//         g_idx   I32 [k]                      the group of each column: i / group_size but for act-order. May be absent
//   AWQ   qweight I32 [k, rows / 8]            codes of 8 consecutive rows, in the order 0 2 4 6 1 3 5 7 from the low bits on
//         qzeros  I32 [groups, rows / 8]       the same
//         scales      [groups, rows]
namespace millrace {
namespace {

constexpr int kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // of row % 8

CodeKind kind_of_bits(int64_t bits) {
  switch (bits) {
    case 2: return CodeKind::kInt2;
    case 3: return CodeKind::kInt3;
    case 4: return CodeKind::kInt4;
    default: return CodeKind::kInt8;
  }
}

class GptqWeights : public GroupedWeights {
 public:
  const SourceTensor *qweight = nullptr, *qzeros = nullptr, *scales = nullptr;
  int zero_offset = 0;  // what is added to a stored zero point

  void read_codes(int64_t row, uint8_t* codes) const override {
    unpack_stream(*qweight, row, rows, code_bits(kind), k, codes);
    reorder(columns, codes);
  }
  void read_scales(int64_t row, float* out) const override {
    for (int64_t group = 0; group < num_groups(); ++group) out[group] = load_float(*scales, group * rows + row);
  }
  void read_zero_points(int64_t row, uint8_t* out) const override {
    const int bits = code_bits(kind);
    for (int64_t group = 0; group < num_groups(); ++group) {
      const int stored = load_packed(*qzeros, group * (rows * bits / 32), 1, bits, row);
      out[group] = static_cast<uint8_t>((stored + zero_offset) & ((1 << bits) - 1));
    }
  }
};

class AwqWeights : public GroupedWeights {
 public:
  const SourceTensor *qweight = nullptr, *qzeros = nullptr, *scales = nullptr;

  void read_codes(int64_t row, uint8_t* codes) const override {
    for (int64_t i = 0; i < k; ++i) codes[i] = nibble(*qweight, i, row);
  }
  void read_scales(int64_t row, float* out) const override {
    for (int64_t group = 0; group < num_groups(); ++group) out[group] = load_float(*scales, group * rows + row);
  }
  void read_zero_points(int64_t row, uint8_t* out) const override {
    for (int64_t group = 0; group < num_groups(); ++group) out[group] = nibble(*qzeros, group, row);
  }

 private:
  uint8_t nibble(const SourceTensor& tensor, int64_t line, int64_t row) const {
    return static_cast<uint8_t>((load_element<uint32_t>(tensor, line * (rows / 8) + row / 8) >> (4 * kAwqNibble[row % 8])) & 15);
  }
};

class GptqEncoding : public WeightEncoding {
 public:
  int64_t bits = 4, group_size = -1;
  bool mixed = false;  // modules may differ: bits and group size follow from their tensors
  int zero_offset = 1;

  Result<std::optional<EncodedMatrix>> find(const Checkpoint& checkpoint, const std::string& module, int64_t rows,
                                            int64_t k) const override {
    ModuleParts parts(checkpoint, module);
    if (!parts.has(".qweight")) return std::optional<EncodedMatrix>();
    if (k % 32 != 0 || rows % 32 != 0)
      return parts.error(fmt::format("a GPTQ matrix of {} x {}; both are multiples of 32 in this format", rows, k));
    int64_t module_bits = bits, module_group = group_size > 0 && group_size < k ? group_size : k;
    const SourceTensor *packed = parts.find(".qweight"), *stored_scales = parts.find(".scales");
    if (mixed && packed->shape.size() == 2 && stored_scales != nullptr && stored_scales->shape.size() == 2) {
      for (const int64_t candidate : {2, 3, 4, 8}) {
        if (packed->shape[0] == k / 32 * candidate) module_bits = candidate;
      }
      const int64_t groups = stored_scales->shape[0];
      if (groups > 0 && k % groups == 0) module_group = k / groups;
    }
    auto weights = std::make_shared<GptqWeights>();
    weights->kind = kind_of_bits(module_bits);
    weights->rows = rows;
    weights->k = k;
    weights->group_size = module_group;
    weights->zero_offset = zero_offset;
    const int64_t groups = weights->num_groups();
    MR_ASSIGN_OR_RETURN(weights->qweight, parts.need(".qweight", "codes", {DType::kI32}, {k / 32 * module_bits, rows},
                                                     "[in_features * bits / 32, out_features]"));
    MR_ASSIGN_OR_RETURN(weights->qzeros, parts.need(".qzeros", "zero points", {DType::kI32}, {groups, rows / 32 * module_bits},
                                                    "[groups, out_features * bits / 32]"));
    MR_ASSIGN_OR_RETURN(weights->scales, parts.need(".scales", "scales", {DType::kF16, DType::kBf16, DType::kF32}, {groups, rows},
                                                    "[groups, out_features]"));
    weights->scale_dtype = weights->scales->dtype;
    if (parts.has(".g_idx")) {
      MR_ASSIGN_OR_RETURN(const SourceTensor* g_idx, parts.need(".g_idx", "groups of the columns", {DType::kI32}, {k}, "[in_features]"));
      MR_ASSIGN_OR_RETURN(weights->columns, columns_of_groups(parts, *g_idx, module_group, groups));
    }
    return std::optional(parts.take(std::move(weights)));
  }
};

class AwqEncoding : public WeightEncoding {
 public:
  int64_t group_size = 128;

  Result<std::optional<EncodedMatrix>> find(const Checkpoint& checkpoint, const std::string& module, int64_t rows,
                                            int64_t k) const override {
    ModuleParts parts(checkpoint, module);
    if (!parts.has(".qweight")) return std::optional<EncodedMatrix>();
    if (rows % 8 != 0) return parts.error(fmt::format("an AWQ matrix with {} rows; they are a multiple of 8 in this format", rows));
    auto weights = std::make_shared<AwqWeights>();
    weights->kind = CodeKind::kInt4;
    weights->rows = rows;
    weights->k = k;
    weights->group_size = group_size > 0 && group_size < k ? group_size : k;
    if (k % weights->group_size != 0)
      return parts.error(fmt::format("{} columns are no multiple of the group size {}", k, weights->group_size));
    const int64_t groups = weights->num_groups();
    MR_ASSIGN_OR_RETURN(weights->qweight, parts.need(".qweight", "codes", {DType::kI32}, {k, rows / 8}, "[in_features, out_features / 8]"));
    MR_ASSIGN_OR_RETURN(weights->qzeros,
                        parts.need(".qzeros", "zero points", {DType::kI32}, {groups, rows / 8}, "[groups, out_features / 8]"));
    MR_ASSIGN_OR_RETURN(weights->scales, parts.need(".scales", "scales", {DType::kF16, DType::kBf16, DType::kF32}, {groups, rows},
                                                    "[groups, out_features]"));
    weights->scale_dtype = weights->scales->dtype;
    return std::optional(parts.take(std::move(weights)));
  }
};

constexpr int64_t kGroupMax = int64_t{1} << 22;

// -1 says one group a row.
Result<int64_t> read_group_size(const EncodingConfig& config, std::string_view name, std::optional<int64_t> otherwise) {
  MR_ASSIGN_OR_RETURN(const int64_t size, config.integer(name, otherwise, -1, kGroupMax));
  if (size != -1 && (size == 0 || size % 32 != 0)) return config.unexpected(name, "-1 or a multiple of 32");
  return size;
}

}  // namespace

Result<std::shared_ptr<const WeightEncoding>> read_gptq_encoding(const EncodingConfig& config) {
  auto encoding = std::make_shared<GptqEncoding>();
  MR_ASSIGN_OR_RETURN(encoding->bits, config.integer("bits", std::nullopt, 2, 8));
  if (encoding->bits != 2 && encoding->bits != 3 && encoding->bits != 4 && encoding->bits != 8)
    return config.unexpected("bits", "2, 3, 4 or 8");
  MR_ASSIGN_OR_RETURN(encoding->group_size, read_group_size(config, "group_size", -1));
  MR_ASSIGN_OR_RETURN(const std::string format, config.text("checkpoint_format", "gptq"));
  if (format != "gptq" && format != "gptq_v2") return config.unexpected("checkpoint_format", "\"gptq\" or \"gptq_v2\"");
  encoding->zero_offset = format == "gptq" ? 1 : 0;
  const json::value* dynamic = config.find("dynamic");
  encoding->mixed = dynamic != nullptr && dynamic->is_object() && !dynamic->get_object().empty();
  return std::shared_ptr<const WeightEncoding>(std::move(encoding));
}

Result<std::shared_ptr<const WeightEncoding>> read_awq_encoding(const EncodingConfig& config) {
  auto encoding = std::make_shared<AwqEncoding>();
  const bool old = config.find("bits") == nullptr && config.find("w_bit") != nullptr;  // AutoAWQ's own quant_config.json
  MR_ASSIGN_OR_RETURN(const int64_t bits, config.integer(old ? "w_bit" : "bits", std::nullopt, 1, 8));
  if (bits != 4) return config.unexpected(old ? "w_bit" : "bits", "4");
  MR_ASSIGN_OR_RETURN(encoding->group_size, read_group_size(config, old ? "q_group_size" : "group_size", 128));
  MR_ASSIGN_OR_RETURN(std::string version, config.text("version", "gemm"));
  std::transform(version.begin(), version.end(), version.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  // "exllama" and "ipex" name a backend for the same stored layout.
  if (version != "gemm" && version != "exllama" && version != "ipex") return config.unexpected("version", "\"gemm\"");
  return std::shared_ptr<const WeightEncoding>(std::move(encoding));
}

}  // namespace millrace
