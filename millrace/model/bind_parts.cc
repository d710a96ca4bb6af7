#include "millrace/model/bind_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "millrace/model/transforms.h"

namespace millrace {

namespace {

// The names of a part: the word itself, or its "name".
const json::value& names_of(const json::value& word) { return word.is_object() ? word.get_object().at("name") : word; }

// The numbers of a norm's weight or bias, or empty where the checkpoint does not have it.
Result<std::vector<float>> read_norm(const BindContext& context, const BindPlace& place, std::string_view word, const json::value& names,
                                     std::string_view suffix, const NormSize& size, const std::string& transforms) {
  const std::string role = place.role_of(word) + (suffix == ".bias" ? ".bias" : ""), one = fmt::format("[{}]", size.size_words);
  if (size.num_heads == 0) {
    const SourceTensor* tensor = context.tensors.find(names, place.scopes, place.layer(), suffix);
    if (tensor == nullptr) return std::vector<float>();
    MR_RETURN_IF_ERROR(context.tensors.use(*tensor, {size.size}, one, role, transforms));
    return context.tensors.read(*tensor);
  }
  MR_ASSIGN_OR_RETURN(const auto tensors, context.tensors.find_each(names, place.scopes, place.layer(), suffix, "{head}", size.num_heads));
  std::vector<float> numbers;
  for (const SourceTensor* tensor : tensors) {
    if (tensors.size() == 1 && (size.num_heads > 1 || tensor->shape.size() == 2)) {
      MR_RETURN_IF_ERROR(context.tensors.use(*tensor, {size.num_heads, size.size},
                                             fmt::format("[{}, {}]", size.num_heads_words, size.size_words), role, transforms));
    } else {
      MR_RETURN_IF_ERROR(context.tensors.use(*tensor, {size.size}, one, role, transforms));
    }
    MR_ASSIGN_OR_RETURN(const std::vector<float> part, context.tensors.read(*tensor));
    numbers.insert(numbers.end(), part.begin(), part.end());
  }
  return numbers;
}

}  // namespace

Status missing_tensor(const BindContext& context, const BindPlace& place, std::string_view word, const json::value& names,
                      std::string_view suffix) {
  return Status::invalid_argument(fmt::format("{}: missing tensor {} ({})", context.checkpoint.path(),
                                              context.tensors.wanted(names, place.scopes, place.layer(), suffix),
                                              context.config.where(place.words.place(word))));
}

Result<std::optional<Norm>> bind_norm(const BindContext& context, const BindPlace& place, std::string_view word, const NormSize& size) {
  const json::value* value = place.words.find(word);
  if (value == nullptr) return std::optional<Norm>();
  const json::object no_words;
  const BindWords own = value->is_object() ? place.words.object(word) : place.words.object(no_words, word);
  MR_ASSIGN_OR_RETURN(const bool when, own.flag("when", "true"));
  if (!when) return std::optional<Norm>();

  // A norm's own words count before those of the family's "norm".
  const json::value* shared = context.family.description().if_contains("norm");
  const BindWords common(context.config, shared != nullptr ? shared->if_object() : nullptr, "norm", place.layer());
  const auto words_for = [&](std::string_view name) -> const BindWords& { return own.find(name) != nullptr ? own : common; };
  static constexpr std::string_view kKinds[] = {"rms", "layer"};
  MR_ASSIGN_OR_RETURN(const int kind, words_for("kind").choice("kind", "rms", kKinds));
  MR_ASSIGN_OR_RETURN(const double eps, words_for("eps").number("eps", kind == 0 ? "rms_norm_eps" : "layer_norm_epsilon", 0, 1));
  MR_ASSIGN_OR_RETURN(const bool add_one, words_for("add_one").flag("add_one", "false"));
  MR_ASSIGN_OR_RETURN(const std::optional<bool> wants_bias, words_for("bias").optional_flag("bias"));

  Norm norm;
  norm.kind = kind == 0 ? Norm::Kind::kRms : Norm::Kind::kLayer;
  norm.eps = static_cast<float>(eps);
  if (value->is_object() && own.find("name") == nullptr) return std::optional<Norm>(std::move(norm));
  const json::value& names = names_of(*value);
  MR_ASSIGN_OR_RETURN(norm.weight, read_norm(context, place, word, names, ".weight", size, add_one ? "add one" : ""));
  if (norm.weight.empty()) return missing_tensor(context, place, word, names, ".weight");
  if (add_one) {
    for (float& number : norm.weight) number += 1.0f;
  }
  if (!wants_bias.value_or(true)) return std::optional<Norm>(std::move(norm));
  MR_ASSIGN_OR_RETURN(norm.bias, read_norm(context, place, word, names, ".bias", size, ""));
  if (wants_bias && norm.bias.empty()) return missing_tensor(context, place, word, names, ".bias");
  return std::optional<Norm>(std::move(norm));
}

Linear StoredLinear::take(std::vector<int32_t> rows) const {
  Linear linear;
  if (!bias.empty()) {
    linear.bias.reserve(rows.size());
    for (const int32_t row : rows) linear.bias.push_back(bias[static_cast<std::size_t>(row)]);
  }
  for (int32_t& row : rows) row += static_cast<int32_t>(first_row);
  linear.weight = {weight, transposed, grouped, std::move(rows), k};
  return linear;
}

namespace {

// What the checkpoint's quantizer stored under one of the part's names; absent where the matrix is plain.
Result<std::optional<EncodedMatrix>> find_encoded(const BindContext& context, const BindPlace& place, const json::value& names,
                                                  int64_t rows, int64_t k) {
  if (context.encoding == nullptr) return std::optional<EncodedMatrix>();
  for (const std::string& module : context.tensors.candidates(names, place.scopes, place.layer(), "")) {
    MR_ASSIGN_OR_RETURN(std::optional<EncodedMatrix> encoded, context.encoding->find(context.checkpoint, module, rows, k));
    if (encoded) return encoded;
  }
  return std::optional<EncodedMatrix>();
}

std::string describe(const GroupedWeights& weights) {
  const std::string_view kind = weights.kind == CodeKind::kCodebook4 ? "4-bit code book"
                                : weights.kind == CodeKind::kMxfp4   ? "FP4 (E2M1)"
                                : weights.kind == CodeKind::kNvfp4   ? "FP4 (E2M1)"
                                : weights.kind == CodeKind::kF8E4M3  ? "8-bit float"
                                                                     : "integer";
  const std::string bits = is_integer_code(weights.kind) ? fmt::format("{}-bit ", code_bits(weights.kind)) : "";
  const std::string group = weights.group_size == weights.k ? "rows" : fmt::format("{} weights", weights.group_size);
  const std::string_view scales = weights.kind == CodeKind::kMxfp4   ? "E8M0"
                                  : weights.kind == CodeKind::kNvfp4 ? "E4M3"
                                                                     : dtype_name(weights.scale_dtype);
  return fmt::format("{}{}, {} scales{} of {}{}", bits, kind, scales, weights.float_zeros ? " and zero points" : "", group,
                     weights.columns.empty() ? "" : ", act-order");
}

bool all_zero(const std::vector<float>& numbers) {
  return std::all_of(numbers.begin(), numbers.end(), [](float number) { return number == 0; });
}

// Makes `stored` what the quantizer stored.
Status take_encoded(const BindContext& context, EncodedMatrix encoded, const std::string& role, std::string_view transforms,
                    StoredLinear& stored) {
  // Quantizers write [out, in] whatever the plain checkpoint had.
  stored.transposed = false;
  stored.weight = encoded.parts[0].tensor;
  stored.grouped = std::move(encoded.weights);
  for (std::size_t i = 0; i < encoded.parts.size(); ++i) {
    const auto& part = encoded.parts[i];
    const std::string meaning =
        i == 0 ? fmt::format("{}{}{}", describe(*stored.grouped), transforms.empty() ? "" : ", ", transforms) : std::string(part.meaning);
    context.tensors.use_part(*part.tensor, role, meaning);
  }
  return Status::ok();
}

// The experts that a quantizer stored, a module each or all in one; empty where they are plain.
Result<std::vector<StoredLinear>> find_encoded_experts(const BindContext& context, const BindPlace& place, std::string_view word,
                                                       int64_t count, int64_t rows, int64_t k, std::string_view transforms) {
  static constexpr std::string_view kPlace = "{expert}";
  std::vector<StoredLinear> experts;
  if (context.encoding == nullptr) return experts;
  for (const std::string& module : context.tensors.candidates(*place.words.find(word), place.scopes, place.layer(), "")) {
    const std::size_t at = module.find(kPlace);
    if (at == std::string::npos) {
      MR_ASSIGN_OR_RETURN(std::vector<EncodedMatrix> stack, context.encoding->find_stack(context.checkpoint, module, count, rows, k));
      for (EncodedMatrix& matrix : stack) {
        if (!experts.empty()) matrix.parts.resize(1);  // what `inspect` shows once for all of them
        const SourceTensor* codes = matrix.parts[0].tensor;
        StoredLinear stored;
        stored.k = k;
        if (experts.empty()) {
          MR_RETURN_IF_ERROR(take_encoded(context, std::move(matrix), place.role_of(fmt::format("experts.{}", word)), transforms, stored));
        } else {
          stored.weight = codes;
          stored.grouped = std::move(matrix.weights);
        }
        experts.push_back(std::move(stored));
      }
      if (!experts.empty()) return experts;
      continue;
    }
    for (int64_t e = 0; e < count; ++e) {
      std::string numbered = module;
      numbered.replace(at, kPlace.size(), fmt::format("{}", e));
      MR_ASSIGN_OR_RETURN(std::optional<EncodedMatrix> encoded, context.encoding->find(context.checkpoint, numbered, rows, k));
      if (!encoded && e == 0) break;
      if (!encoded)
        return Status::invalid_argument(
            fmt::format("{}: \"{}\" is not quantized as the experts before it are", context.checkpoint.path(), numbered));
      StoredLinear stored;
      stored.k = k;
      MR_RETURN_IF_ERROR(
          take_encoded(context, std::move(*encoded), place.role_of(fmt::format("experts.{}.{}", e, word)), transforms, stored));
      experts.push_back(std::move(stored));
    }
    if (!experts.empty()) return experts;
  }
  return experts;
}

}  // namespace

Result<StoredLinear> bind_linear(const BindContext& context, const BindPlace& place, std::string_view word, int64_t rows,
                                 std::string_view rows_words, int64_t k, std::string_view k_words, std::string_view transforms) {
  const json::value* value = place.words.find(word);
  MR_CHECK(value != nullptr, "the schema requires every matrix that is bound");
  const json::object no_words;
  const BindWords own = value->is_object() ? place.words.object(word) : place.words.object(no_words, word);
  MR_ASSIGN_OR_RETURN(const bool transposed, own.flag("transposed", place.transposed ? "true" : "false"));
  MR_ASSIGN_OR_RETURN(const std::optional<bool> wants_bias, (own.find("bias") != nullptr ? own : place.words).optional_flag("bias"));

  StoredLinear stored;
  stored.transposed = transposed;
  stored.k = k;
  const json::value& names = names_of(*value);
  MR_ASSIGN_OR_RETURN(std::optional<EncodedMatrix> encoded, find_encoded(context, place, names, rows, k));
  stored.weight = encoded ? encoded->parts[0].tensor : context.tensors.find(names, place.scopes, place.layer(), ".weight");
  if (stored.weight == nullptr) return missing_tensor(context, place, word, names, ".weight");
  const std::string done = fmt::format("{}{}{}", transposed ? "transposed" : "", transposed && !transforms.empty() ? ", " : "", transforms);
  if (encoded) {
    MR_RETURN_IF_ERROR(take_encoded(context, std::move(*encoded), place.role_of(word), transforms, stored));
  } else if (transposed) {
    MR_RETURN_IF_ERROR(
        context.tensors.use(*stored.weight, {k, rows}, fmt::format("[{}, {}]", k_words, rows_words), place.role_of(word), done));
    if (dtype_info(stored.weight->dtype).block_elements > 1) {
      return Status::unsupported(
          fmt::format("{}: \"{}\" is stored transposed and quantized as {}, whose blocks run along the wrong dimension",
                      context.checkpoint.path(), stored.weight->name, dtype_name(stored.weight->dtype)));
    }
  } else {
    MR_RETURN_IF_ERROR(
        context.tensors.use(*stored.weight, {rows, k}, fmt::format("[{}, {}]", rows_words, k_words), place.role_of(word), done));
  }
  const SourceTensor* bias = context.tensors.find(names, place.scopes, place.layer(), ".bias");
  if (wants_bias.value_or(bias != nullptr)) {
    if (bias == nullptr) return missing_tensor(context, place, word, names, ".bias");
    MR_RETURN_IF_ERROR(
        context.tensors.use(*bias, {rows}, fmt::format("[{}]", rows_words), place.role_of(word) + ".bias", std::string(transforms)));
    MR_ASSIGN_OR_RETURN(stored.bias, context.tensors.read(*bias));
  } else if (bias != nullptr && stored.grouped) {
    // Some quantizers write a bias of zeros where the model has none.
    MR_ASSIGN_OR_RETURN(const std::vector<float> zeros, context.tensors.read(*bias));
    if (all_zero(zeros)) context.tensors.set_aside(*bias, place.role_of(word) + ".bias, all zero");
  }
  return stored;
}

namespace {

// What the checkpoint calls a part with or without `suffix`, in the order of the suffixes: a tensor for each expert, or one of all.
Result<std::vector<const SourceTensor*>> find_expert_tensors(const BindContext& context, const BindPlace& place, std::string_view word,
                                                             std::initializer_list<std::string_view> suffixes, int64_t count) {
  std::vector<const SourceTensor*> tensors;
  for (const std::string_view suffix : suffixes) {
    MR_ASSIGN_OR_RETURN(tensors,
                        context.tensors.find_each(*place.words.find(word), place.scopes, place.layer(), suffix, "{expert}", count));
    if (!tensors.empty()) break;
  }
  return tensors;
}

Status bind_expert_biases(const BindContext& context, const BindPlace& place, std::string_view word, int64_t rows,
                          std::string_view rows_words, std::string_view transforms, std::vector<StoredLinear>& experts) {
  const auto count = static_cast<int64_t>(experts.size());
  MR_ASSIGN_OR_RETURN(const auto tensors, find_expert_tensors(context, place, word, {".bias", "_bias"}, count));
  const bool stacked = tensors.size() == 1 && (count > 1 || tensors[0]->shape.size() == 2);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::string role = place.role_of(stacked ? fmt::format("experts.{}.bias", word) : fmt::format("experts.{}.{}.bias", i, word));
    const std::vector<int64_t> shape = stacked ? std::vector<int64_t>{count, rows} : std::vector<int64_t>{rows};
    MR_RETURN_IF_ERROR(context.tensors.use(*tensors[i], shape, fmt::format("[{}{}]", stacked ? "num_experts, " : "", rows_words), role,
                                           std::string(transforms)));
    MR_ASSIGN_OR_RETURN(const std::vector<float> numbers, context.tensors.read(*tensors[i]));
    for (int64_t n = 0; n < (stacked ? count : 1); ++n) {
      experts[static_cast<std::size_t>(stacked ? n : static_cast<int64_t>(i))].bias.assign(numbers.begin() + n * rows,
                                                                                           numbers.begin() + (n + 1) * rows);
    }
  }
  return Status::ok();
}

}  // namespace

Result<std::vector<StoredLinear>> bind_experts(const BindContext& context, const BindPlace& place, std::string_view word, int64_t count,
                                               int64_t rows, std::string_view rows_words, int64_t k, std::string_view k_words,
                                               std::string_view transforms) {
  std::vector<StoredLinear> experts;
  if (place.words.find(word) == nullptr) return experts;
  MR_ASSIGN_OR_RETURN(experts, find_encoded_experts(context, place, word, count, rows, k, transforms));
  if (!experts.empty()) {
    MR_RETURN_IF_ERROR(bind_expert_biases(context, place, word, rows, rows_words, transforms, experts));
    return experts;
  }
  MR_ASSIGN_OR_RETURN(const auto tensors, find_expert_tensors(context, place, word, {".weight", ""}, count));
  const bool transposed = place.transposed;
  const bool stacked = tensors.size() == 1 && (count > 1 || tensors[0]->shape.size() == 3);
  if (stacked && count * rows > std::numeric_limits<int32_t>::max()) {
    return Status::unsupported(fmt::format("{}: \"{}\" has {} rows in all, at most 2^31 - 1 are supported", context.checkpoint.path(),
                                           tensors[0]->name, count * rows));
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    std::vector<int64_t> shape = transposed ? std::vector<int64_t>{k, rows} : std::vector<int64_t>{rows, k};
    std::string words = transposed ? fmt::format("[{}, {}]", k_words, rows_words) : fmt::format("[{}, {}]", rows_words, k_words),
                role = place.role_of(stacked ? fmt::format("experts.{}", word) : fmt::format("experts.{}.{}", i, word));
    if (stacked) {
      shape.insert(shape.begin(), count);
      words.insert(1, "num_experts, ");
    }
    MR_RETURN_IF_ERROR(context.tensors.use(
        *tensors[i], shape, words, std::move(role),
        fmt::format("{}{}{}", transposed ? "transposed" : "", transposed && !transforms.empty() ? ", " : "", transforms)));
    const int64_t in_stack = stacked ? count : 1;
    for (int64_t n = 0; n < in_stack; ++n) {
      StoredLinear& stored = experts.emplace_back();
      stored.weight = tensors[i];
      stored.k = k;
      stored.transposed = transposed;
      stored.first_row = n * rows;
    }
  }
  if (!experts.empty()) MR_RETURN_IF_ERROR(bind_expert_biases(context, place, word, rows, rows_words, transforms, experts));
  return experts;
}

Result<StoredLinear> bind_stack(const BindContext& context, const BindPlace& place, std::string_view word, int64_t count,
                                std::string_view count_words, int64_t rows, std::string_view rows_words, int64_t k,
                                std::string_view k_words, bool transposed) {
  const json::value& names = names_of(*place.words.find(word));
  const SourceTensor* tensor = context.tensors.find(names, place.scopes, place.layer(), ".weight");
  if (tensor == nullptr) return missing_tensor(context, place, word, names, ".weight");
  const bool unpacked = transposed && dtype_info(tensor->dtype).block_elements > 1;
  MR_RETURN_IF_ERROR(context.tensors.use(
      *tensor, transposed ? std::vector<int64_t>{count, k, rows} : std::vector<int64_t>{count, rows, k},
      fmt::format("[{}, {}, {}]", count_words, transposed ? k_words : rows_words, transposed ? rows_words : k_words), place.role_of(word),
      unpacked     ? "transposed, as F32: its blocks run along the other dimension"
      : transposed ? "transposed"
                   : ""));
  StoredLinear stored;
  stored.weight = tensor;
  stored.transposed = transposed;
  stored.k = k;
  return stored;
}

Result<int64_t> stored_rows(const BindContext& context, const BindPlace& place, std::string_view word, int64_t most) {
  const json::value& names = names_of(*place.words.find(word));
  const SourceTensor* tensor = context.tensors.find(names, place.scopes, place.layer(), ".weight");
  if (tensor == nullptr) return missing_tensor(context, place, word, names, ".weight");
  const int64_t rows = tensor->shape.empty() ? 0 : tensor->shape[0];
  if (rows >= 1 && rows <= most) return rows;
  return Status::invalid_argument(
      fmt::format("{}: \"{}\" is {}, expected 1 to {} rows", context.checkpoint.path(), tensor->name, shape_text(tensor->shape), most));
}

bool has_linear(const BindContext& context, const BindPlace& place, std::string_view word) {
  const json::value* value = place.words.find(word);
  return value != nullptr && context.tensors.find(names_of(*value), place.scopes, place.layer(), ".weight") != nullptr;
}

Result<std::vector<float>> bind_own_vector(const BindContext& context, const BindPlace& place, std::string_view word, int64_t size,
                                           std::string_view size_words) {
  const json::value& names = *place.words.find(word);
  const SourceTensor* tensor = nullptr;
  for (const std::string_view suffix : {"", ".weight", ".bias"}) {
    if (tensor == nullptr) tensor = context.tensors.find(names, place.scopes, place.layer(), suffix);
  }
  if (tensor == nullptr) return missing_tensor(context, place, word, names, "");
  MR_RETURN_IF_ERROR(context.tensors.use(*tensor, {size}, fmt::format("[{}]", size_words), place.role_of(word), ""));
  return context.tensors.read(*tensor);
}

Result<std::vector<float>> bind_vector(const BindContext& context, const BindPlace& place, std::string_view word, int64_t size,
                                       std::string_view size_words) {
  const json::value* names = place.words.find(word);
  // Vectors are named from the root: one serves all layers.
  const SourceTensor* tensor = names != nullptr ? context.tensors.find(*names, nullptr, place.layer(), ".weight") : nullptr;
  if (tensor == nullptr) return std::vector<float>();
  MR_RETURN_IF_ERROR(context.tensors.use(*tensor, {size}, fmt::format("[{}]", size_words), place.role_of(word), ""));
  return context.tensors.read(*tensor);
}

}  // namespace millrace
