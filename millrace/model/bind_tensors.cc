#include "millrace/model/bind_tensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "millrace/formats/weight_encoding.h"
#include "millrace/model/name_pattern.h"
#include "millrace/tensor/dequantize.h"

namespace millrace {

namespace {

std::string with_layer(std::string text, std::optional<int64_t> layer) {
  static constexpr std::string_view kPlace = "{layer}";
  if (const std::size_t at = text.find(kPlace); layer && at != std::string::npos)
    text.replace(at, kPlace.size(), fmt::format("{}", *layer));
  return text;
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

BindTensors::BindTensors(const Family& family, const Checkpoint& checkpoint, bool is_gguf)
    : family_(family), checkpoint_(checkpoint), is_gguf_(is_gguf) {}

std::vector<std::string> BindTensors::translated(const json::value& word) const {
  std::vector<std::string> names;
  const auto add = [&](const json::value& name) {
    const std::string_view text = name.get_string();
    if (!is_gguf_) {
      names.emplace_back(text);
      return;
    }
    const json::value* gguf = family_.description().if_contains("gguf");
    const json::value* map = gguf != nullptr ? gguf->get_object().if_contains("names") : nullptr;
    const json::value* other = map != nullptr ? map->get_object().if_contains(text) : nullptr;
    if (other != nullptr) names.emplace_back(std::string_view(other->get_string()));
  };
  if (word.is_array()) {
    for (const json::value& name : word.get_array()) add(name);
  } else {
    add(word);
  }
  return names;
}

std::vector<std::string> BindTensors::candidates(const json::value& names, const json::value* scopes, std::optional<int64_t> layer,
                                                 std::string_view suffix) const {
  std::vector<std::string> full;
  const std::vector<std::string> before = scopes != nullptr ? translated(*scopes) : std::vector<std::string>{""};
  for (const std::string& scope : before) {
    for (const std::string& name : translated(names)) {
      full.push_back(with_layer(fmt::format("{}{}{}{}", scope, scope.empty() ? "" : ".", name, suffix), layer));
    }
  }
  return full;
}

const SourceTensor* BindTensors::find(const json::value& names, const json::value* scopes, std::optional<int64_t> layer,
                                      std::string_view suffix) const {
  for (const std::string& name : candidates(names, scopes, layer, suffix)) {
    if (const SourceTensor* tensor = checkpoint_.find(name)) return tensor;
  }
  return nullptr;
}

Result<std::vector<const SourceTensor*>> BindTensors::find_each(const json::value& names, const json::value* scopes,
                                                                std::optional<int64_t> layer, std::string_view suffix,
                                                                std::string_view placeholder, int64_t count) const {
  for (const std::string& name : candidates(names, scopes, layer, suffix)) {
    const std::size_t at = name.find(placeholder);
    if (at == std::string::npos) {
      if (const SourceTensor* tensor = checkpoint_.find(name)) return std::vector<const SourceTensor*>{tensor};
      continue;
    }
    std::vector<const SourceTensor*> tensors;
    for (int64_t number = 0; number < count; ++number) {
      std::string numbered = name;
      numbered.replace(at, placeholder.size(), fmt::format("{}", number));
      tensors.push_back(checkpoint_.find(numbered));
      if (tensors.back() != nullptr) continue;
      if (number == 0) break;
      return Status::invalid_argument(fmt::format("{}: missing tensor \"{}\", expected {} of them", checkpoint_.path(), numbered, count));
    }
    if (tensors.back() != nullptr) return tensors;
  }
  return std::vector<const SourceTensor*>();
}

std::string BindTensors::wanted(const json::value& names, const json::value* scopes, std::optional<int64_t> layer,
                                std::string_view suffix) const {
  const std::vector<std::string> full = candidates(names, scopes, layer, suffix);
  if (full.empty()) return fmt::format("(\"{}\" has no GGUF name: {}, gguf.names)", json::serialize(names), family_.file_name());
  return fmt::format("\"{}\"", fmt::join(full, "\" or \""));
}

Status BindTensors::use(const SourceTensor& tensor, const std::vector<int64_t>& shape, std::string_view shape_words, std::string role,
                        std::string transforms) {
  if (tensor.shape != shape) {
    return Status::invalid_argument(fmt::format("{}: \"{}\" is {}, expected {} = {}", checkpoint_.path(), tensor.name,
                                                shape_text(tensor.shape), shape_words, shape_text(shape)));
  }
  used_.insert(&tensor);
  bindings_.push_back(
      {tensor.name, std::string(dtype_name(tensor.dtype)), shape_text(tensor.shape), std::move(role), std::move(transforms)});
  return Status::ok();
}

void BindTensors::use_part(const SourceTensor& tensor, std::string role, std::string transforms) {
  used_.insert(&tensor);
  bindings_.push_back(
      {tensor.name, std::string(dtype_name(tensor.dtype)), shape_text(tensor.shape), std::move(role), std::move(transforms)});
}

void BindTensors::set_aside(const SourceTensor& tensor, std::string role) {
  used_.insert(&tensor);
  bindings_.push_back({tensor.name, std::string(dtype_name(tensor.dtype)), shape_text(tensor.shape), std::move(role), "not read"});
}

Result<std::vector<float>> BindTensors::read(const SourceTensor& tensor) const {
  if (!can_dequantize(tensor.dtype)) {
    return Status::unsupported(fmt::format("{}: \"{}\" is stored as {}, which cannot be read as numbers", checkpoint_.path(), tensor.name,
                                           dtype_name(tensor.dtype)));
  }
  int64_t elements = 1;
  for (const int64_t size : tensor.shape) elements *= size;
  std::vector<float> numbers(static_cast<std::size_t>(elements));
  if (elements > 0) dequantize_row(tensor.dtype, tensor.data.data(), elements, numbers.data());
  return numbers;
}

Status BindTensors::check_all_used(bool quantized) {
  std::vector<std::string> unused;
  const json::value* ignore = family_.description().if_contains("ignore");
  for (const SourceTensor& tensor : checkpoint_.tensors()) {
    if (used_.contains(&tensor)) continue;
    bool ignored = false;
    if (ignore != nullptr) {
      for (const json::value& pattern : ignore->get_array()) ignored = ignored || matches_pattern(pattern.get_string(), tensor.name);
    }
    const std::string_view reason = quantized ? WeightEncoding::reason_unused(tensor.name) : std::string_view();
    if (ignored) {
      set_aside(tensor, "ignored by the family");
    } else if (!reason.empty()) {
      set_aside(tensor, std::string(reason));
    } else {
      unused.push_back(fmt::format("\"{}\" {}", tensor.name, shape_text(tensor.shape)));
    }
  }
  if (unused.empty()) return Status::ok();
  const std::size_t count = unused.size();
  if (count > 5) unused.resize(5);
  return Status::invalid_argument(fmt::format("{}: {} tensor(s) have no use in {}: {}{}", checkpoint_.path(), count, family_.file_name(),
                                              fmt::join(unused, ", "), count > 5 ? ", ..." : ""));
}

}  // namespace millrace
