#include "millrace/cli/speculative_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "millrace/base/json_text.h"

namespace millrace::cli {
namespace {

constexpr std::string_view kOption = "--speculative-config";

std::optional<SpeculationMethod> find_method(std::string_view name) {
  for (const SpeculationMethod method : {SpeculationMethod::kNgram, SpeculationMethod::kSuffix}) {
    if (name == speculation_method_name(method)) return method;
  }
  return std::nullopt;
}

// The keys that are whole numbers, and the methods that have them.
struct Key {
  std::string_view name;
  int64_t* value;
  bool only_of_suffix;
};

Status take_number(const Key& key, const json::value& given, SpeculationMethod method) {
  if (key.only_of_suffix && method != SpeculationMethod::kSuffix)
    return Status::invalid_argument(
        fmt::format("{}: {} is of the method suffix, not of {}", kOption, key.name, speculation_method_name(method)));
  boost::system::error_code not_whole;
  *key.value = given.to_number<int64_t>(not_whole);
  if (not_whole)
    return Status::invalid_argument(fmt::format("{}: {} is {}, expected a whole number", kOption, key.name, json::serialize(given)));
  return Status::ok();
}

}  // namespace

Result<SpeculationOptions> parse_speculation(const std::string& text) {
  SpeculationOptions options;
  if (text == "off") return options;
  if (const auto method = find_method(text)) {
    options.method = *method;
    return options;
  }
  const auto parsed = parse_json(text);
  if (!parsed.is_ok()) return parsed.status().with_context(fmt::format("{}: neither off, ngram nor suffix, so JSON", kOption));
  const json::object* object = parsed->if_object();
  if (object == nullptr) return Status::invalid_argument(fmt::format("{}: expected off, ngram, suffix or a JSON object", kOption));
  const json::value* name = object->if_contains("method");
  if (name == nullptr)
    return Status::invalid_argument(fmt::format("{}: has no method, expected \"method\": \"ngram\" or \"suffix\"", kOption));
  const auto method = name->is_string() ? find_method(std::string_view(name->as_string())) : std::nullopt;
  if (!method)
    return Status::invalid_argument(fmt::format("{}: method is {}, expected \"ngram\" or \"suffix\"", kOption, json::serialize(*name)));
  options.method = *method;
  const std::array keys = {Key{"num_speculative_tokens", &options.num_speculative_tokens, false},
                           Key{"prompt_lookup_min", &options.prompt_lookup_min, false},
                           Key{"suffix_decoding_max_tree_depth", &options.past_output.depth_max, true},
                           Key{"suffix_decoding_max_cached_requests", &options.past_output.num_outputs_max, true},
                           Key{"suffix_decoding_max_cached_tokens", &options.past_output.num_tokens_max, true}};
  for (const auto& field : *object) {
    const std::string_view given(field.key().data(), field.key().size());
    if (given == "method") continue;
    const auto key = std::find_if(keys.begin(), keys.end(), [&](const Key& known) { return known.name == given; });
    if (key == keys.end()) {
      std::string expected = "method";
      for (const Key& known : keys) expected += fmt::format(", {}", known.name);
      return Status::invalid_argument(fmt::format("{}: unrecognized \"{}\", expected {}", kOption, given.substr(0, 50), expected));
    }
    MR_RETURN_IF_ERROR(take_number(*key, field.value(), *method));
  }
  return options;
}

}  // namespace millrace::cli
