#include "millrace/formats/weight_encoding.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "millrace/formats/encoding_parts.h"
#include "millrace/tensor/half.h"

namespace millrace {
namespace {

struct Method {
  std::string_view name;
  ReadEncoding read;
};
constexpr Method kMethods[] = {
    {"gptq", read_gptq_encoding},
    {"awq", read_awq_encoding},
    {"bitsandbytes", read_bitsandbytes_encoding},
    {"compressed-tensors", read_compressed_tensors_encoding},
    {"fp8", read_fp8_encoding},
    {"fbgemm_fp8", read_fp8_encoding},
    {"mxfp4", read_mxfp4_encoding},
    {"hqq", read_hqq_encoding},
};

struct UnusedTensor {
  std::string_view suffix, reason;
};
// Beside the weights. Activations are quantized per token and 32 values at run time, more finely than these scales would.
constexpr UnusedTensor kUnused[] = {
    {".input_scale", "static scale of activations, which are quantized at run time"},
    {".input_global_scale", "static scale of activations, which are quantized at run time"},
    {".input_zero_point", "static zero point of activations, which are quantized at run time"},
    {".output_scale", "static scale of activations, which are quantized at run time"},
    {".activation_scale", "static scale of activations, which are quantized at run time"},
    {".input_scale_ub", "bound of activations, which are quantized at run time"},
    {".k_scale", "scale of an FP8 KV cache"},
    {".v_scale", "scale of an FP8 KV cache"},
    {".q_scale", "scale of FP8 queries"},
};

std::string shape_of(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::string dtype_names(std::initializer_list<DType> dtypes) {
  std::string names;
  for (const DType dtype : dtypes) names += fmt::format("{}{}", names.empty() ? "" : " or ", dtype_name(dtype));
  return names;
}

}  // namespace

Result<std::shared_ptr<const WeightEncoding>> WeightEncoding::read(const Checkpoint& checkpoint) {
  std::shared_ptr<const WeightEncoding> none;
  if (checkpoint.kind() != Checkpoint::Kind::kHuggingFace) return none;
  const json::value* value = checkpoint.config().if_contains("quantization_config");
  if (value == nullptr) value = checkpoint.config().if_contains("compression_config");  // as compressed-tensors once called it
  if (value == nullptr || value->is_null()) return none;
  const std::string place = checkpoint.path() + ": config.json";
  if (!value->is_object())
    return Status::invalid_argument(
        fmt::format("{}: quantization_config is {}, expected an object", place, json::serialize(*value).substr(0, 100)));
  const EncodingConfig config(place, value->get_object());
  MR_ASSIGN_OR_RETURN(const std::string method, config.text("quant_method", "compressed-tensors"));
  std::vector<std::string_view> names;
  for (const Method& known : kMethods) {
    if (known.name == method) return known.read(config);
    names.push_back(known.name);
  }
  return Status::unsupported(
      fmt::format("{}: quantization_config.quant_method is \"{}\", supported are {}", place, method, fmt::join(names, ", ")));
}

std::string_view WeightEncoding::reason_unused(std::string_view tensor_name) {
  for (const UnusedTensor& unused : kUnused) {
    if (tensor_name.ends_with(unused.suffix)) return unused.reason;
  }
  return {};
}

const json::value* EncodingConfig::find(std::string_view name) const {
  const json::value* value = fields_.if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

Status EncodingConfig::unexpected(std::string_view name, std::string_view expected) const {
  const json::value* value = fields_.if_contains(name);
  return Status::unsupported(fmt::format("{}: quantization_config.{} is {}, expected {}", path_, name,
                                         value == nullptr ? "missing" : json::serialize(*value).substr(0, 200), expected));
}

Result<int64_t> EncodingConfig::integer(std::string_view name, std::optional<int64_t> otherwise, int64_t least, int64_t most) const {
  const json::value* value = find(name);
  if (value == nullptr && otherwise) return *otherwise;
  if (value == nullptr || !value->is_int64() || value->get_int64() < least || value->get_int64() > most)
    return unexpected(name, fmt::format("an integer from {} to {}", least, most));
  return value->get_int64();
}

Result<std::string> EncodingConfig::text(std::string_view name, std::string_view otherwise) const {
  const json::value* value = find(name);
  if (value == nullptr) return std::string(otherwise);
  if (!value->is_string()) return unexpected(name, "a text");
  return std::string(value->get_string());
}

Result<bool> EncodingConfig::flag(std::string_view name, bool otherwise) const {
  const json::value* value = find(name);
  if (value == nullptr) return otherwise;
  if (!value->is_bool()) return unexpected(name, "true or false");
  return value->get_bool();
}

Status ModuleParts::error(std::string message) const {
  return Status::invalid_argument(fmt::format("{}: \"{}\": {}", checkpoint_.path(), module_, message));
}

Status ModuleParts::wrong_shape(const SourceTensor& tensor, const std::vector<int64_t>& shape, std::string_view shape_words) const {
  return Status::invalid_argument(fmt::format("{}: \"{}\" is {}, expected {} = {}", checkpoint_.path(), tensor.name, shape_of(tensor.shape),
                                              shape_words, shape_of(shape)));
}

Result<const SourceTensor*> ModuleParts::need_any_shape(std::string_view suffix, std::string_view meaning,
                                                        std::initializer_list<DType> dtypes) {
  const SourceTensor* tensor = find(suffix);
  if (tensor == nullptr)
    return Status::invalid_argument(
        fmt::format("{}: missing tensor \"{}{}\" ({} of a quantized matrix)", checkpoint_.path(), module_, suffix, meaning));
  if (std::find(dtypes.begin(), dtypes.end(), tensor->dtype) == dtypes.end()) {
    return Status::invalid_argument(
        fmt::format("{}: \"{}\" is {}, expected {}", checkpoint_.path(), tensor->name, dtype_name(tensor->dtype), dtype_names(dtypes)));
  }
  add(*tensor, meaning);
  return tensor;
}

Result<const SourceTensor*> ModuleParts::need(std::string_view suffix, std::string_view meaning, std::initializer_list<DType> dtypes,
                                              const std::vector<int64_t>& shape, std::string_view shape_words) {
  MR_ASSIGN_OR_RETURN(const SourceTensor* tensor, need_any_shape(suffix, meaning, dtypes));
  if (tensor->shape != shape) return wrong_shape(*tensor, shape, shape_words);
  return tensor;
}

EncodedMatrix ModuleParts::take(std::shared_ptr<GroupedWeights> weights) {
  for (const EncodedMatrix::Part& part : parts_) weights->stored_bytes += static_cast<int64_t>(part.tensor->data.size());
  return {std::move(parts_), std::move(weights)};
}

float load_float(const SourceTensor& tensor, int64_t index) {
  switch (tensor.dtype) {
    case DType::kF16: return f16_to_f32(load_element<uint16_t>(tensor, index));
    case DType::kBf16: return bf16_to_f32(load_element<uint16_t>(tensor, index));
    default: return load_element<float>(tensor, index);
  }
}

void reorder(const std::vector<int32_t>& columns, uint8_t* codes) {
  if (columns.empty()) return;
  const std::vector<uint8_t> as_stored(codes, codes + columns.size());
  for (std::size_t i = 0; i < columns.size(); ++i) codes[i] = as_stored[static_cast<std::size_t>(columns[i])];
}

Result<std::vector<int32_t>> columns_of_groups(const ModuleParts& parts, const SourceTensor& g_idx, int64_t group_size,
                                               int64_t num_groups) {
  const auto k = static_cast<std::size_t>(g_idx.shape[0]);
  std::vector<int32_t> group(k), columns(k);
  bool in_order = true;
  for (std::size_t i = 0; i < k; ++i) {
    group[i] = load_element<int32_t>(g_idx, static_cast<int64_t>(i));
    if (group[i] < 0 || group[i] >= num_groups)
      return parts.error(fmt::format("\"{}\"[{}] is {}, expected 0 to {}", g_idx.name, i, group[i], num_groups - 1));
    in_order = in_order && group[i] == static_cast<int64_t>(i) / group_size;
  }
  if (in_order) return std::vector<int32_t>();
  std::iota(columns.begin(), columns.end(), 0);
  std::stable_sort(columns.begin(), columns.end(),
                   [&](int32_t a, int32_t b) { return group[static_cast<std::size_t>(a)] < group[static_cast<std::size_t>(b)]; });
  for (std::size_t i = 0; i < k; ++i) {
    const int64_t got = group[static_cast<std::size_t>(columns[i])], want = static_cast<int64_t>(i) / group_size;
    if (got != want)
      return parts.error(
          fmt::format("\"{}\" does not put {} columns into each group (group {} differs)", g_idx.name, group_size, std::min(got, want)));
  }
  return columns;
}

}  // namespace millrace
