#include "millrace/formats/gguf_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "millrace/base/utf8.h"

namespace millrace {
namespace {

constexpr int64_t kMaxArrayElements = 4096;
constexpr int64_t kMaxElementsInAll = 1'000'000;

json::value json_number(double number) {
  if (std::isnan(number)) return nullptr;
  return std::clamp(number, -1e308, 1e308);
}

bool is_float(GgufType type) { return type == GgufType::kFloat32 || type == GgufType::kFloat64; }

std::optional<json::value> scalar(const GgufFile& gguf, const GgufValue& entry) {
  if (entry.type == GgufType::kString) {
    const std::string_view text = *gguf.string(entry.key);
    return utf8::is_valid(text) ? std::optional<json::value>(text) : std::nullopt;
  }
  if (entry.type == GgufType::kBool) return *gguf.boolean(entry.key);
  if (is_float(entry.type)) return json_number(*gguf.number(entry.key));
  if (const auto integer = gguf.integer(entry.key)) return *integer;
  return json_number(*gguf.number(entry.key));  // an uint64 beyond int64
}

std::optional<json::value> array(const GgufFile& gguf, const GgufValue& entry) {
  json::array values;
  values.reserve(static_cast<std::size_t>(entry.count));
  if (entry.type == GgufType::kBool) {
    for (const std::byte byte : entry.bytes) values.emplace_back(byte != std::byte{0});
  } else if (const auto texts = gguf.strings(entry.key)) {
    for (const std::string_view text : *texts) {
      if (!utf8::is_valid(text)) return std::nullopt;
      values.emplace_back(text);
    }
  } else if (const auto integers = gguf.integers(entry.key)) {
    for (const int64_t integer : *integers) values.emplace_back(integer);
  } else if (const auto floats = gguf.floats(entry.key)) {
    for (const float number : *floats) values.push_back(json_number(number));
  }
  return values;
}

}  // namespace

Result<json::object> gguf_config(const GgufFile& gguf) {
  json::object config;
  int64_t elements = 0;
  for (const GgufValue& entry : gguf.metadata()) {
    if (entry.is_array && entry.count > kMaxArrayElements) continue;
    elements += entry.count;
    if (elements > kMaxElementsInAll) {
      return Status::resource_exhausted(
          fmt::format("has more than {} metadata values (vocabulary-sized arrays not counted)", kMaxElementsInAll));
    }
    if (!utf8::is_valid(entry.key)) continue;
    if (auto value = entry.is_array ? array(gguf, entry) : scalar(gguf, entry)) config[entry.key] = std::move(*value);
  }
  return config;
}

}  // namespace millrace
