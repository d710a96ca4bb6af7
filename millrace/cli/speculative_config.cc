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
  for (const SpeculationMethod method : {SpeculationMethod::kNgram, SpeculationMethod::kSuffix, SpeculationMethod::kDraftModel}) {
    if (name == speculation_method_name(method)) return method;
  }
  return std::nullopt;
}

bool looks_up(SpeculationMethod method) { return method != SpeculationMethod::kDraftModel; }

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
  if (key.name == "prompt_lookup_min" && !looks_up(method))
    return Status::invalid_argument(
        fmt::format("{}: {} is of the methods ngram and suffix, not of {}", kOption, key.name, speculation_method_name(method)));
  boost::system::error_code not_whole;
  *key.value = given.to_number<int64_t>(not_whole);
  if (not_whole)
    return Status::invalid_argument(fmt::format("{}: {} is {}, expected a whole number", kOption, key.name, json::serialize(given)));
  return Status::ok();
}

}  // namespace

Result<SpeculativeConfig> parse_speculation(const std::string& text) {
  SpeculativeConfig config;
  SpeculationOptions& options = config.options;
  if (text == "off") return config;
  if (const auto method = find_method(text)) {
    if (*method == SpeculationMethod::kDraftModel)
      return Status::invalid_argument(
          fmt::format("{}: draft_model has no model, expected {{\"method\": \"draft_model\", \"model\": \"PATH\"}}", kOption));
    options.method = *method;
    return config;
  }
  const auto parsed = parse_json(text);
  if (!parsed.is_ok()) return parsed.status().with_context(fmt::format("{}: neither off, ngram nor suffix, so JSON", kOption));
  const json::object* object = parsed->if_object();
  if (object == nullptr) return Status::invalid_argument(fmt::format("{}: expected off, ngram, suffix or a JSON object", kOption));
  const json::value* name = object->if_contains("method");
  const json::value* model = object->if_contains("model");
  constexpr std::string_view kMethods = "\"ngram\", \"suffix\" or \"draft_model\"";
  // vLLM takes a model alone for a draft model, too.
  if (name == nullptr && model == nullptr)
    return Status::invalid_argument(fmt::format("{}: has no method, expected \"method\": {}", kOption, kMethods));
  std::optional<SpeculationMethod> method;
  if (name == nullptr) {
    method = SpeculationMethod::kDraftModel;
  } else if (name->is_string()) {
    method = find_method(std::string_view(name->as_string()));
  }
  if (!method) return Status::invalid_argument(fmt::format("{}: method is {}, expected {}", kOption, json::serialize(*name), kMethods));
  options.method = *method;
  if (model != nullptr && *method != SpeculationMethod::kDraftModel)
    return Status::invalid_argument(
        fmt::format("{}: model is of the method draft_model, not of {}", kOption, speculation_method_name(*method)));
  if (*method == SpeculationMethod::kDraftModel) {
    if (model == nullptr || !model->is_string() || model->as_string().empty())
      return Status::invalid_argument(fmt::format("{}: model is {}, expected the draft model's directory, GGUF file or hub name", kOption,
                                                  model == nullptr ? "missing" : json::serialize(*model)));
    config.draft_model = std::string(std::string_view(model->as_string()));
  }
  const std::array keys = {Key{"num_speculative_tokens", &options.num_speculative_tokens, false},
                           Key{"prompt_lookup_min", &options.prompt_lookup_min, false},
                           Key{"suffix_decoding_max_tree_depth", &options.past_output.depth_max, true},
                           Key{"suffix_decoding_max_cached_requests", &options.past_output.num_outputs_max, true},
                           Key{"suffix_decoding_max_cached_tokens", &options.past_output.num_tokens_max, true}};
  for (const auto& field : *object) {
    const std::string_view given(field.key().data(), field.key().size());
    if (given == "method" || given == "model") continue;
    const auto key = std::find_if(keys.begin(), keys.end(), [&](const Key& known) { return known.name == given; });
    if (key == keys.end()) {
      std::string expected = "method, model";
      for (const Key& known : keys) expected += fmt::format(", {}", known.name);
      return Status::invalid_argument(fmt::format("{}: unrecognized \"{}\", expected {}", kOption, given.substr(0, 50), expected));
    }
    MR_RETURN_IF_ERROR(take_number(*key, field.value(), *method));
  }
  return config;
}

}  // namespace millrace::cli
