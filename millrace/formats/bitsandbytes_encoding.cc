#include <fmt/format.h>

#include <cmath>
#include <numeric>

#include "millrace/formats/encoding_parts.h"

// bitsandbytes (arXiv:2208.07339, arXiv:2305.14314).
//
//   4 bits   weight                the codes of all rows one after the other, two a byte, the first in the high half; U8 [n / 2, 1], or any
//                                  type of as many bytes
//            weight.quant_map      F32 [16], the numbers that codes stand for (nf4, fp4)
//            weight.absmax         F32 [blocks], scales of `blocksize` consecutive weights
//            weight.quant_state.bitsandbytes__nf4 (or __fp4)   JSON: quant_type, blocksize, dtype, shape, nested_*
//            nested: absmax U8 [blocks], weight.nested_absmax F32 [blocks / nested_blocksize], weight.nested_quant_map F32 [256]:
//                                  scale = nested_quant_map[absmax] * nested_absmax + nested_offset
//   8 bits   weight I8 [rows, k], SCB F32 [rows]   value = weight * SCB / 127. Which activations count as outliers is decided at run time
//                                  there; here activations have a scale for every 32, so that an outlier costs only its neighbours
namespace millrace {
namespace {

class FourBitWeights : public GroupedWeights {
 public:
  const SourceTensor* packed = nullptr;
  int64_t block_size = 64;
  std::vector<float> scales;  // [blocks], nested ones resolved

  void read_codes(int64_t row, uint8_t* codes) const override {
    for (int64_t i = 0; i < k; ++i) {
      const int64_t at = row * k + i;
      codes[i] = static_cast<uint8_t>((load_element<uint8_t>(*packed, at / 2) >> (at % 2 == 0 ? 4 : 0)) & 15);
    }
  }
  void read_scales(int64_t row, float* out) const override {
    for (int64_t group = 0; group < num_groups(); ++group)
      out[group] = scales[static_cast<std::size_t>((row * k + group * group_size) / block_size)];
  }
  void read_zero_points(int64_t, uint8_t*) const override {}
};

class EightBitWeights : public GroupedWeights {
 public:
  const SourceTensor *weight = nullptr, *scb = nullptr;

  void read_codes(int64_t row, uint8_t* codes) const override {
    for (int64_t i = 0; i < k; ++i) codes[i] = load_element<uint8_t>(*weight, row * k + i) ^ 0x80;
  }
  void read_scales(int64_t row, float* out) const override { *out = load_float(*scb, row) / 127.0f; }
  void read_zero_points(int64_t, uint8_t* out) const override { *out = 128; }
};

constexpr int64_t kBlockMax = 1 << 16;

// The numbers of weight.quant_state...
struct QuantState {
  int64_t block_size = 64, nested_block_size = 256;
  float nested_offset = 0;
};

Result<QuantState> read_quant_state(const ModuleParts& parts, const SourceTensor& tensor, int64_t rows, int64_t k) {
  const auto wrong = [&](std::string_view what) { return parts.error(fmt::format("\"{}\" {}", tensor.name, what)); };
  const auto json_text = std::string_view(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
  const auto parsed = parse_json(json_text);
  if (!parsed.is_ok() || !parsed->is_object()) return wrong("is no JSON object");
  const json::object& state = parsed->get_object();
  const auto integer = [&](const char* name, int64_t& to) {
    const json::value* value = state.if_contains(name);
    if (value == nullptr) return true;
    if (!value->is_int64() || value->get_int64() < 2 || value->get_int64() > kBlockMax) return false;
    to = value->get_int64();
    return true;
  };
  QuantState result;
  if (!integer("blocksize", result.block_size)) return wrong(fmt::format("has a blocksize other than 2 to {}", kBlockMax));
  if (!integer("nested_blocksize", result.nested_block_size))
    return wrong(fmt::format("has a nested_blocksize other than 2 to {}", kBlockMax));
  if (const json::value* offset = state.if_contains("nested_offset"); offset != nullptr && !offset->is_null()) {
    if (!offset->is_number()) return wrong("has a nested_offset that is no number");
    result.nested_offset = offset->to_number<float>();
  }
  const json::value* shape = state.if_contains("shape");
  const json::array* sizes = shape != nullptr ? shape->if_array() : nullptr;
  if (sizes != nullptr && (sizes->size() != 2 || (*sizes)[0] != rows || (*sizes)[1] != k))
    return wrong(fmt::format("says the shape is {}, expected [{}, {}]", json::serialize(*shape), rows, k));
  return result;
}

Result<std::vector<float>> read_floats(ModuleParts& parts, std::string_view suffix, std::string_view meaning, int64_t count,
                                       std::string_view words) {
  MR_ASSIGN_OR_RETURN(const SourceTensor* tensor, parts.need(suffix, meaning, {DType::kF32, DType::kBf16, DType::kF16}, {count}, words));
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (int64_t i = 0; i < count; ++i) numbers[static_cast<std::size_t>(i)] = load_float(*tensor, i);
  return numbers;
}

class BitsandbytesEncoding : public WeightEncoding {
 public:
  Result<std::optional<EncodedMatrix>> find(const Checkpoint& checkpoint, const std::string& module, int64_t rows,
                                            int64_t k) const override {
    ModuleParts parts(checkpoint, module);
    if (parts.has(".weight.absmax") || parts.has(".weight.quant_map")) return open_4_bits(parts, rows, k);
    const SourceTensor* weight = parts.find(".weight");
    if (parts.has(".SCB") || (weight != nullptr && weight->dtype == DType::kI8)) return open_8_bits(parts, rows, k);
    return std::optional<EncodedMatrix>();
  }

 private:
  static Result<std::optional<EncodedMatrix>> open_4_bits(ModuleParts& parts, int64_t rows, int64_t k) {
    auto weights = std::make_shared<FourBitWeights>();
    weights->kind = CodeKind::kCodebook4;
    weights->rows = rows;
    weights->k = k;
    weights->packed = parts.find(".weight");
    if (weights->packed == nullptr) return parts.error("\".weight\" is missing, though there are scales for it");
    if (static_cast<int64_t>(weights->packed->data.size()) != (rows * k + 1) / 2) {
      return parts.error(fmt::format("\"{}\" has {} bytes, expected {} for [{}, {}] in 4 bits", weights->packed->name,
                                     weights->packed->data.size(), (rows * k + 1) / 2, rows, k));
    }
    parts.add(*weights->packed, "codes");
    const char* type = parts.has(".weight.quant_state.bitsandbytes__fp4") ? ".weight.quant_state.bitsandbytes__fp4"
                                                                          : ".weight.quant_state.bitsandbytes__nf4";
    MR_ASSIGN_OR_RETURN(const SourceTensor* stored_state, parts.need_any_shape(type, "parameters", {DType::kU8}));
    MR_ASSIGN_OR_RETURN(const QuantState state, read_quant_state(parts, *stored_state, rows, k));
    weights->block_size = state.block_size;
    weights->group_size = std::gcd(state.block_size, k);
    if (weights->group_size % 32 != 0)
      return parts.error(fmt::format("rows of {} weights in blocks of {}: scales would change within 32 weights", k, state.block_size));
    MR_ASSIGN_OR_RETURN(const std::vector<float> map, read_floats(parts, ".weight.quant_map", "codebook", 16, "[16]"));
    for (std::size_t i = 0; i < 16; ++i) {
      if (!std::isfinite(map[i])) return parts.error(fmt::format("weight.quant_map[{}] is not finite", i));
      weights->codebook[i] = map[i];
    }
    const int64_t blocks = (rows * k + state.block_size - 1) / state.block_size;
    const SourceTensor* absmax = parts.find(".weight.absmax");
    if (absmax == nullptr || absmax->dtype != DType::kU8) {
      MR_ASSIGN_OR_RETURN(weights->scales,
                          read_floats(parts, ".weight.absmax", "scales", blocks, "[in_features * out_features / blocksize]"));
      return std::optional(parts.take(std::move(weights)));
    }
    MR_ASSIGN_OR_RETURN(
        absmax, parts.need(".weight.absmax", "codes of scales", {DType::kU8}, {blocks}, "[in_features * out_features / blocksize]"));
    MR_ASSIGN_OR_RETURN(const std::vector<float> nested,
                        read_floats(parts, ".weight.nested_absmax", "scales of scales",
                                    (blocks + state.nested_block_size - 1) / state.nested_block_size, "[blocks / nested_blocksize]"));
    MR_ASSIGN_OR_RETURN(const std::vector<float> nested_map,
                        read_floats(parts, ".weight.nested_quant_map", "codebook of scales", 256, "[256]"));
    weights->scales.resize(static_cast<std::size_t>(blocks));
    for (int64_t i = 0; i < blocks; ++i) {
      const float product = nested_map[load_element<uint8_t>(*absmax, i)] * nested[static_cast<std::size_t>(i / state.nested_block_size)];
      weights->scales[static_cast<std::size_t>(i)] = product + state.nested_offset;
    }
    return std::optional(parts.take(std::move(weights)));
  }

  static Result<std::optional<EncodedMatrix>> open_8_bits(ModuleParts& parts, int64_t rows, int64_t k) {
    auto weights = std::make_shared<EightBitWeights>();
    weights->kind = CodeKind::kInt8;
    weights->rows = rows;
    weights->k = weights->group_size = k;
    MR_ASSIGN_OR_RETURN(weights->weight, parts.need(".weight", "codes", {DType::kI8}, {rows, k}, "[out_features, in_features]"));
    MR_ASSIGN_OR_RETURN(weights->scb, parts.need(".SCB", "scales", {DType::kF32}, {rows}, "[out_features]"));
    if (parts.has(".weight_format")) {
      MR_ASSIGN_OR_RETURN(const SourceTensor* format, parts.need_any_shape(".weight_format", "layout", {DType::kU8}));
      if (format->data.empty() || format->data[0] != std::byte{0})
        return parts.error(fmt::format("\"{}\" is not 0 (row-major); layouts of GPUs are not read", format->name));
    }
    return std::optional(parts.take(std::move(weights)));
  }
};

}  // namespace

Result<std::shared_ptr<const WeightEncoding>> read_bitsandbytes_encoding(const EncodingConfig& config) {
  MR_ASSIGN_OR_RETURN(const bool four, config.flag("load_in_4bit", false));
  MR_ASSIGN_OR_RETURN(const bool eight, config.flag("load_in_8bit", false));
  if (four == eight) return config.unexpected("load_in_4bit", "true, or load_in_8bit");
  return std::shared_ptr<const WeightEncoding>(std::make_shared<const BitsandbytesEncoding>());
}

}  // namespace millrace
