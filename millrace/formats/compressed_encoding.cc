#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "millrace/formats/encoding_parts.h"

// compressed-tensors (vLLM's llm-compressor), and FP8 checkpoints with `weight_scale` or `weight_scale_inv`. Matrices are [rows, k].
//
//   pack-quantized    weight_packed I32 [rows, k * bits / 32]   code = stored integer + 2^(bits - 1), consecutive k in a stream, low bits
//                                                             first
//                     weight_zero_point                         I32 [rows * bits / 32, groups], the same stream along the rows; or
//                                                             I8 [rows, groups]
//                     weight_shape [2], weight_g_idx I32 [k]    the group of each column, for act-order
//   int-quantized     weight I8 [rows, k]; weight_zero_point I8 as weight_scale
//   float-quantized   weight F8_E4M3 [rows, k]
//   nvfp4-pack-quantized, mxfp4-pack-quantized                fp4_encoding.cc
//   weight_scale      [] or [1]: one; [rows] or [rows, 1]: one a row; [rows, groups]; or [rows / a, k / b], rounded up, for blocks of a x b
//
// value = weight_scale * (stored - zero point). The name weight_scale_inv, which DeepSeek introduced, is the same factor.
namespace millrace {
namespace {

// Where the scale (or zero point) of a row and group lies: row / row_block * row_stride + group * group_stride.
struct ScaleMap {
  int64_t row_block = 1, row_stride = 0, group_stride = 0, group_size = 0;

  int64_t index(int64_t row, int64_t group) const { return row / row_block * row_stride + group * group_stride; }
};

class CompressedWeights : public GroupedWeights {
 public:
  const SourceTensor *codes_ = nullptr, *scales_ = nullptr, *zero_points_ = nullptr;  // zero points may be absent: symmetric
  ScaleMap map;

  void read_codes(int64_t row, uint8_t* codes) const override {
    const int bits = code_bits(kind);
    if (codes_->dtype != DType::kI32) {
      const auto* bytes = reinterpret_cast<const uint8_t*>(codes_->data.data()) + row * k;
      for (int64_t i = 0; i < k; ++i) codes[i] = kind == CodeKind::kInt8 ? bytes[i] ^ 0x80 : bytes[i];
      return;
    }
    unpack_stream(*codes_, row * (k * bits / 32), 1, bits, k, codes);
    reorder(columns, codes);
  }
  void read_scales(int64_t row, float* out) const override {
    for (int64_t group = 0; group < num_groups(); ++group) out[group] = load_float(*scales_, map.index(row, group));
  }
  void read_zero_points(int64_t row, uint8_t* out) const override {
    const int bits = code_bits(kind), middle = 1 << (bits - 1);
    for (int64_t group = 0; group < num_groups(); ++group) {
      if (zero_points_ == nullptr) {
        out[group] = static_cast<uint8_t>(middle);
      } else if (zero_points_->dtype == DType::kI32) {
        out[group] = load_packed(*zero_points_, group, num_groups(), bits, row);
      } else {
        out[group] = static_cast<uint8_t>(load_element<int8_t>(*zero_points_, map.index(row, group)) + middle);
      }
    }
  }
};

struct Blocks {
  int64_t rows = 128, k = 128;
};

// What the shape of a scale says. `group_size`: of the configuration, where it has one; else it follows from the number of groups.
// `rows / groups` and `rows / blocks` cannot both fit, but for matrices of one block, where they mean the same.
Result<ScaleMap> map_scales(const ModuleParts& parts, const SourceTensor& scale, int64_t rows, int64_t k, std::optional<int64_t> group_size,
                            const std::optional<Blocks>& blocks) {
  int64_t count = 1;
  for (const int64_t size : scale.shape) count *= size;
  const auto& shape = scale.shape;
  if (count == 1 && shape.size() <= 2 && (rows > 1 || !blocks)) return ScaleMap{1, 0, 0, k};
  if ((shape.size() == 1 || (shape.size() == 2 && shape[1] == 1)) && shape[0] == rows && (!blocks || blocks->rows != 1))
    return ScaleMap{1, 1, 0, k};
  if (blocks) {
    const std::vector<int64_t> want = {(rows + blocks->rows - 1) / blocks->rows, (k + blocks->k - 1) / blocks->k};
    if (shape != want)
      return parts.wrong_shape(scale, want, fmt::format("[], [out_features, 1] or one scale for {} x {} weights", blocks->rows, blocks->k));
    return ScaleMap{blocks->rows, want[1], 1, blocks->k};
  }
  if (shape.size() == 2 && shape[0] == rows && shape[1] > 0) {
    const int64_t size = group_size && *group_size > 0 ? *group_size : k % shape[1] == 0 ? k / shape[1] : 0;
    if (size > 0 && (k + size - 1) / size == shape[1]) return ScaleMap{1, shape[1], 1, size};
  }
  const int64_t size = group_size && *group_size > 0 ? *group_size : k;
  return parts.wrong_shape(scale, {rows, (k + size - 1) / size}, "[], [out_features, 1] or [out_features, groups]");
}

constexpr int64_t kBlockMax = int64_t{1} << 22;

Status check_groups(const ModuleParts& parts, const ScaleMap& map, int64_t k) {
  if (map.group_size < k && map.group_size % 32 != 0) {
    return Status::unsupported(parts.error(fmt::format("groups of {} weights, expected a multiple of 32", map.group_size)).message());
  }
  if (k % 32 != 0) return Status::unsupported(parts.error(fmt::format("{} columns, expected a multiple of 32", k)).message());
  return Status::ok();
}

class CompressedEncoding : public WeightEncoding {
 public:
  std::optional<int64_t> bits, group_size;  // where all modules are alike
  std::optional<Blocks> blocks;

  Result<std::optional<EncodedMatrix>> find(const Checkpoint& checkpoint, const std::string& module, int64_t rows,
                                            int64_t k) const override {
    ModuleParts parts(checkpoint, module);
    auto weights = std::make_shared<CompressedWeights>();
    weights->rows = rows;
    weights->k = k;
    if (const SourceTensor* packed = parts.find(".weight_packed"); packed != nullptr && packed->dtype == DType::kU8) {
      MR_ASSIGN_OR_RETURN(EncodedMatrix matrix, open_packed_fp4(parts, rows, k));
      return std::optional(std::move(matrix));
    } else if (packed != nullptr) {
      MR_RETURN_IF_ERROR(open_packed(parts, *weights));
    } else {
      const SourceTensor* weight = parts.find(".weight");
      if (weight == nullptr || (weight->dtype != DType::kI8 && weight->dtype != DType::kF8E4M3)) return std::optional<EncodedMatrix>();
      MR_RETURN_IF_ERROR(open_bytes(parts, *weights));
    }
    return std::optional(parts.take(std::move(weights)));
  }

 private:
  Status open_scales(ModuleParts& parts, CompressedWeights& weights) const {
    // A checkpoint of blocks names its scales weight_scale_inv, one of whole matrices weight_scale; both occur under one quant_method.
    const std::string_view suffix = parts.has(".weight_scale_inv") ? ".weight_scale_inv" : ".weight_scale";
    MR_ASSIGN_OR_RETURN(weights.scales_, parts.need_any_shape(suffix, "scales", {DType::kF16, DType::kBf16, DType::kF32}));
    MR_ASSIGN_OR_RETURN(weights.map, map_scales(parts, *weights.scales_, weights.rows, weights.k, group_size, blocks));
    MR_RETURN_IF_ERROR(check_groups(parts, weights.map, weights.k));
    weights.group_size = std::min(weights.map.group_size, weights.k);
    weights.scale_dtype = weights.scales_->dtype;
    return Status::ok();
  }

  Status open_packed(ModuleParts& parts, CompressedWeights& weights) const {
    const int64_t rows = weights.rows, k = weights.k;
    const SourceTensor& packed = *parts.find(".weight_packed");
    int64_t width = bits.value_or(0);
    if (!bits && packed.shape.size() == 2) {
      for (const int64_t candidate : {2, 3, 4, 8}) {
        if (packed.shape[1] == k / 32 * candidate) width = candidate;
      }
    }
    switch (width) {
      case 2: weights.kind = CodeKind::kInt2; break;
      case 3: weights.kind = CodeKind::kInt3; break;
      case 8: weights.kind = CodeKind::kInt8; break;
      default: weights.kind = CodeKind::kInt4; width = 4;
    }
    if (k % 32 != 0) return parts.error(fmt::format("{} columns, expected a multiple of 32", k));
    MR_ASSIGN_OR_RETURN(weights.codes_, parts.need(".weight_packed", "codes", {DType::kI32}, {rows, k / 32 * width},
                                                   "[out_features, in_features * bits / 32]"));
    MR_RETURN_IF_ERROR(open_scales(parts, weights));
    if (parts.has(".weight_zero_point")) {
      MR_ASSIGN_OR_RETURN(weights.zero_points_, parts.need_any_shape(".weight_zero_point", "zero points", {DType::kI32, DType::kI8}));
      const int64_t groups = weights.num_groups();
      const std::vector<int64_t> shape =
          weights.zero_points_->dtype == DType::kI32 ? std::vector<int64_t>{(rows * width + 31) / 32, groups} : weights.scales_->shape;
      if (weights.zero_points_->shape != shape)
        return parts.wrong_shape(*weights.zero_points_, shape, "[out_features * bits / 32, groups]");
    }
    if (parts.has(".weight_shape")) {
      MR_ASSIGN_OR_RETURN(const SourceTensor* shape, parts.need(".weight_shape", "shape", {DType::kI64, DType::kI32}, {2}, "[2]"));
      const auto at = [&](int64_t i) {
        return shape->dtype == DType::kI64 ? load_element<int64_t>(*shape, i) : load_element<int32_t>(*shape, i);
      };
      if (at(0) != rows || at(1) != k)
        return parts.error(fmt::format("\"{}\" says [{}, {}], expected [{}, {}]", shape->name, at(0), at(1), rows, k));
    }
    if (parts.has(".weight_g_idx")) {
      MR_ASSIGN_OR_RETURN(const SourceTensor* g_idx,
                          parts.need(".weight_g_idx", "groups of the columns", {DType::kI32}, {k}, "[in_features]"));
      // -1 everywhere: the columns are as they were.
      if (load_element<int32_t>(*g_idx, 0) != -1) {
        MR_ASSIGN_OR_RETURN(weights.columns, columns_of_groups(parts, *g_idx, weights.group_size, weights.num_groups()));
      }
    }
    return Status::ok();
  }

  Status open_bytes(ModuleParts& parts, CompressedWeights& weights) const {
    MR_ASSIGN_OR_RETURN(weights.codes_, parts.need(".weight", "codes", {DType::kI8, DType::kF8E4M3}, {weights.rows, weights.k},
                                                   "[out_features, in_features]"));
    weights.kind = weights.codes_->dtype == DType::kI8 ? CodeKind::kInt8 : CodeKind::kF8E4M3;
    MR_RETURN_IF_ERROR(open_scales(parts, weights));
    if (parts.has(".weight_zero_point")) {
      MR_ASSIGN_OR_RETURN(const SourceTensor* zeros,
                          parts.need_any_shape(".weight_zero_point", "zero points", {DType::kI8, DType::kF8E4M3}));
      if (zeros->shape != weights.scales_->shape) return parts.wrong_shape(*zeros, weights.scales_->shape, "the shape of the scales");
      if (weights.kind == CodeKind::kInt8) {
        weights.zero_points_ = zeros;
        if (zeros->dtype != DType::kI8) return parts.error(fmt::format("\"{}\" is {}, expected I8", zeros->name, dtype_name(zeros->dtype)));
      } else if (std::any_of(zeros->data.begin(), zeros->data.end(),
                             [](std::byte value) { return (value & std::byte{0x7f}) != std::byte{0}; })) {
        return parts.error(fmt::format("\"{}\" is not zero; 8-bit floats have no zero point", zeros->name));
      }
    }
    return Status::ok();
  }
};

// [a, b], or absent.
Result<std::optional<Blocks>> read_blocks(const EncodingConfig& config, std::string_view name, const json::value* value) {
  if (value == nullptr || value->is_null()) return std::optional<Blocks>();
  const json::array* sizes = value->if_array();
  if (sizes == nullptr || sizes->size() != 2) return config.unexpected(name, "two integers");
  int64_t numbers[2];
  for (std::size_t i = 0; i < 2; ++i) {
    if (!(*sizes)[i].is_int64()) return config.unexpected(name, "two integers");
    numbers[i] = (*sizes)[i].get_int64();
    if (numbers[i] < 1 || numbers[i] > kBlockMax) return config.unexpected(name, fmt::format("two integers from 1 to {}", kBlockMax));
  }
  if (numbers[1] % 32 != 0) return config.unexpected(name, "blocks of a multiple of 32 columns");
  return std::optional(Blocks{numbers[0], numbers[1]});
}

constexpr std::string_view kFormats[] = {"pack-quantized",  "int-quantized", "float-quantized",      "naive-quantized",
                                         "mixed-precision", "dense",         "nvfp4-pack-quantized", "mxfp4-pack-quantized"};

// One of config_groups: says for its modules what `encoding` says for all where there is one group.
Status read_group(const EncodingConfig& config, const json::object& group, bool only, CompressedEncoding& encoding) {
  const json::value* format = group.if_contains("format");
  if (format != nullptr && format->is_string() &&
      std::find(std::begin(kFormats), std::end(kFormats), std::string_view(format->get_string())) == std::end(kFormats)) {
    return config.unexpected("config_groups", fmt::format("formats {}", fmt::join(kFormats, ", ")));
  }
  const json::value* weights = group.if_contains("weights");
  if (weights == nullptr || weights->is_null()) return Status::ok();  // only activations
  if (!weights->is_object()) return config.unexpected("config_groups", "objects with \"weights\"");
  const EncodingConfig fields("config_groups.*.weights", weights->get_object());
  MR_ASSIGN_OR_RETURN(const std::string type, fields.text("type", "int"));
  MR_ASSIGN_OR_RETURN(const int64_t bits, fields.integer("num_bits", 8, 1, 16));
  const bool known = type == "int" ? bits == 2 || bits == 3 || bits == 4 || bits == 8 : type == "float" && (bits == 4 || bits == 8);
  if (!known) return config.unexpected("config_groups", "weights of type int with 2, 3, 4 or 8 bits, or float with 4 or 8");
  if (type == "float" && bits == 4) return Status::ok();  // the tensors say the rest
  MR_ASSIGN_OR_RETURN(const std::string strategy, fields.text("strategy", "tensor"));
  static constexpr std::string_view kStrategies[] = {"tensor", "channel", "group", "block"};
  if (std::find(std::begin(kStrategies), std::end(kStrategies), strategy) == std::end(kStrategies)) {
    return config.unexpected("config_groups", fmt::format("weights of strategy {}", fmt::join(kStrategies, ", ")));
  }
  if (!only) return Status::ok();
  encoding.bits = bits;
  if (strategy == "group") {
    MR_ASSIGN_OR_RETURN(encoding.group_size, fields.integer("group_size", std::nullopt, -1, kBlockMax));
    if (*encoding.group_size != -1 && (*encoding.group_size == 0 || *encoding.group_size % 32 != 0))
      return config.unexpected("config_groups", "weights with a group_size that is -1 or a multiple of 32");
  }
  if (strategy == "block") {
    const json::value* structure = weights->get_object().if_contains("block_structure");
    MR_ASSIGN_OR_RETURN(encoding.blocks, read_blocks(config, "config_groups", structure));
    if (!encoding.blocks) return config.unexpected("config_groups", "a block_structure with strategy block");
  }
  return Status::ok();
}

}  // namespace

Result<std::shared_ptr<const WeightEncoding>> read_compressed_tensors_encoding(const EncodingConfig& config) {
  auto encoding = std::make_shared<CompressedEncoding>();
  MR_ASSIGN_OR_RETURN(const std::string format, config.text("format", "dense"));
  if (std::find(std::begin(kFormats), std::end(kFormats), format) == std::end(kFormats))
    return config.unexpected("format", fmt::format("{}", fmt::join(kFormats, ", ")));
  // Files name a sparsity_config also where nothing is sparse.
  if (const json::value* sparsity = config.find("sparsity_config"); sparsity != nullptr && sparsity->is_object()) {
    const EncodingConfig sparse("sparsity_config", sparsity->get_object());
    MR_ASSIGN_OR_RETURN(const std::string sparse_format, sparse.text("format", "dense"));
    if (sparse_format != "dense") return config.unexpected("sparsity_config", "the format \"dense\"");
  }
  const json::value* groups = config.find("config_groups");
  if (groups == nullptr || !groups->is_object()) return config.unexpected("config_groups", "an object");
  for (const auto& [name, group] : groups->get_object()) {
    if (!group.is_object()) return config.unexpected("config_groups", "objects");
    MR_RETURN_IF_ERROR(read_group(config, group.get_object(), groups->get_object().size() == 1, *encoding));
  }
  return std::shared_ptr<const WeightEncoding>(std::move(encoding));
}

Result<std::shared_ptr<const WeightEncoding>> read_fp8_encoding(const EncodingConfig& config) {
  auto encoding = std::make_shared<CompressedEncoding>();
  MR_ASSIGN_OR_RETURN(encoding->blocks, read_blocks(config, "weight_block_size", config.find("weight_block_size")));
  return std::shared_ptr<const WeightEncoding>(std::move(encoding));
}

}  // namespace millrace
