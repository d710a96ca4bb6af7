#include "millrace/server/request_table.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <limits>
#include <type_traits>

#include "millrace/server/chat_messages.h"
#include "millrace/server/json_value.h"

namespace millrace {
namespace {

constexpr unsigned kChat = static_cast<unsigned>(Endpoint::kChat);
constexpr unsigned kCompletions = static_cast<unsigned>(Endpoint::kCompletions);
constexpr unsigned kTokenize = static_cast<unsigned>(Endpoint::kTokenize);
constexpr unsigned kDetokenize = static_cast<unsigned>(Endpoint::kDetokenize);
constexpr unsigned kEmbeddings = static_cast<unsigned>(Endpoint::kEmbeddings);
constexpr unsigned kClassify = static_cast<unsigned>(Endpoint::kClassify);
constexpr unsigned kScore = static_cast<unsigned>(Endpoint::kScore);
constexpr unsigned kRerank = static_cast<unsigned>(Endpoint::kRerank);
constexpr unsigned kEncode = kEmbeddings | kClassify | kScore | kRerank;
constexpr unsigned kGenerate = kChat | kCompletions;
constexpr unsigned kTemplate = kChat | kTokenize;
constexpr unsigned kAll = kGenerate | kTokenize | kDetokenize | kEncode;

constexpr std::size_t kStopStringsMax = 16;
constexpr std::size_t kStopStringBytesMax = 256;
constexpr std::size_t kStopTokensMax = 64;
constexpr std::size_t kLogitBiasMax = 1024;
constexpr std::size_t kBadWordsMax = 256;
constexpr std::size_t kDryBreakersMax = 64;
constexpr std::size_t kWordBytesMax = 256;
constexpr std::size_t kAllowedTokensMax = 1 << 18;
constexpr std::size_t kPromptsMax = 256;
constexpr std::size_t kInputsMax = 2048;  // texts of a request to an encoder: OpenAI's limit
constexpr double kInt64 = 9'223'372'036'854'775'807.0;
constexpr double kInt32 = 2'147'483'647.0;

std::optional<ApiError> wrong(std::string_view name, const json::value& value, std::string_view expected) {
  return invalid_field(name, fmt::format("\"{}\" is {}, expected {}", name, describe_json(value), expected));
}

std::optional<ApiError> read_stop(std::string_view name, const json::value& value, ApiRequest& request) {
  const std::string expected =
      fmt::format("a string of 1 to {} bytes, or a list of at most {} such strings", kStopStringBytesMax, kStopStringsMax);
  const auto add = [&](const json::value& item) {
    if (!item.is_string() || item.get_string().empty() || item.get_string().size() > kStopStringBytesMax) return false;
    request.stop.emplace_back(item.get_string());
    return true;
  };
  if (value.is_string()) return add(value) ? std::nullopt : wrong(name, value, expected);
  if (!value.is_array() || value.get_array().size() > kStopStringsMax) return wrong(name, value, expected);
  for (std::size_t i = 0; i < value.get_array().size(); ++i) {
    if (!add(value.get_array()[i])) return wrong(fmt::format("{}[{}]", name, i), value.get_array()[i], expected);
  }
  return std::nullopt;
}

std::optional<ApiError> read_token_list(std::string_view name, const json::value& value, std::size_t count_max, std::vector<int32_t>& ids) {
  const std::string expected = fmt::format("a list of at most {} token ids", count_max);
  if (!value.is_array() || value.get_array().size() > count_max) return wrong(name, value, expected);
  ids.reserve(value.get_array().size());
  for (std::size_t i = 0; i < value.get_array().size(); ++i) {
    const json::value& item = value.get_array()[i];
    const auto id = json_integer(item);
    if (!id || *id < 0 || *id > std::numeric_limits<int32_t>::max()) return wrong(fmt::format("{}[{}]", name, i), item, "a token id");
    ids.push_back(static_cast<int32_t>(*id));
  }
  return std::nullopt;
}

std::optional<ApiError> read_stop_token_ids(std::string_view name, const json::value& value, ApiRequest& request) {
  return read_token_list(name, value, kStopTokensMax, request.stop_token_ids);
}

std::optional<ApiError> read_allowed_token_ids(std::string_view name, const json::value& value, ApiRequest& request) {
  if (value.is_array() && value.get_array().empty()) return wrong(name, value, "at least one token id");
  return read_token_list(name, value, kAllowedTokensMax, request.allowed_token_ids);
}

std::optional<ApiError> read_words(std::string_view name, const json::value& value, std::size_t count_max,
                                   std::vector<std::string>& words) {
  const std::string expected = fmt::format("a list of at most {} strings of 1 to {} bytes", count_max, kWordBytesMax);
  if (!value.is_array() || value.get_array().size() > count_max) return wrong(name, value, expected);
  for (std::size_t i = 0; i < value.get_array().size(); ++i) {
    const json::value& item = value.get_array()[i];
    if (!item.is_string() || item.get_string().empty() || item.get_string().size() > kWordBytesMax)
      return wrong(fmt::format("{}[{}]", name, i), item, expected);
    words.emplace_back(item.get_string());
  }
  return std::nullopt;
}

std::optional<ApiError> read_bad_words(std::string_view name, const json::value& value, ApiRequest& request) {
  return read_words(name, value, kBadWordsMax, request.bad_words);
}

std::optional<ApiError> read_dry_sequence_breakers(std::string_view name, const json::value& value, ApiRequest& request) {
  return read_words(name, value, kDryBreakersMax, request.dry_sequence_breakers.emplace());
}

std::optional<ApiError> read_mirostat(std::string_view name, const json::value& value, ApiRequest& request) {
  const auto version = json_integer(value);
  if (!version || (*version != 0 && *version != 2)) return wrong(name, value, "0 (off) or 2 (Mirostat 2.0)");
  request.mirostat = *version;
  return std::nullopt;
}

std::optional<ApiError> read_early_stopping(std::string_view name, const json::value& value, ApiRequest& request) {
  if (value.is_bool()) {
    request.early_stopping = value.get_bool() ? EarlyStopping::kYes : EarlyStopping::kNo;
  } else if (value == "never") {
    request.early_stopping = EarlyStopping::kNever;
  } else {
    return wrong(name, value, "true, false or \"never\"");
  }
  return std::nullopt;
}

std::optional<ApiError> read_tokens(std::string_view name, const json::value& value, ApiRequest& request) {
  return read_token_list(name, value, std::size_t{8} << 20, request.tokens);
}

std::optional<ApiError> read_logit_bias(std::string_view name, const json::value& value, ApiRequest& request) {
  if (!value.is_object() || value.get_object().size() > kLogitBiasMax) {
    return wrong(name, value, fmt::format("an object of at most {} token ids, each with a bias in [-100, 100]", kLogitBiasMax));
  }
  for (const auto& entry : value.get_object()) {
    const std::string field = fmt::format("{}.{}", name, std::string_view(entry.key()));
    int32_t id = -1;
    const char* end = entry.key().data() + entry.key().size();
    const auto parsed = std::from_chars(entry.key().data(), end, id);
    if (parsed.ec != std::errc() || parsed.ptr != end || id < 0) {
      return invalid_field(name, fmt::format("\"{}\" has the key {}, expected a token id", name, describe_json(json::value(entry.key()))));
    }
    const auto bias = json_number(entry.value());
    if (!bias || !(*bias >= -100 && *bias <= 100)) return wrong(field, entry.value(), "a number in [-100, 100]");
    request.logit_bias.emplace_back(id, static_cast<float>(*bias));
  }
  return std::nullopt;
}

std::optional<ApiError> read_stream_options(std::string_view name, const json::value& value, ApiRequest& request) {
  if (!value.is_object()) return wrong(name, value, "an object");
  for (const auto& entry : value.get_object()) {
    const std::string_view key = entry.key();
    const std::string field = fmt::format("{}.{}", name, key);
    bool* target = key == "include_usage"            ? &request.include_usage
                   : key == "continuous_usage_stats" ? &request.continuous_usage_stats
                                                     : nullptr;
    if (target == nullptr && key != "include_obfuscation") return invalid_field(field, fmt::format("unrecognized field \"{}\"", field));
    if (entry.value().is_null()) continue;
    if (!entry.value().is_bool()) return wrong(field, entry.value(), "true or false");
    if (target != nullptr) *target = entry.value().get_bool();
  }
  return std::nullopt;
}

// A string, a list of strings, a list of token ids, or a list of such lists.
std::optional<ApiError> read_prompts(std::string_view name, const json::value& value, std::size_t count_max, ApiRequest& request) {
  constexpr std::string_view kExpected = "a string, a list of strings, a list of token ids or a list of such lists, not empty";
  request.has_prompt = true;
  const auto add_ids = [&](std::string_view field, const json::value& list) -> std::optional<ApiError> {
    std::vector<int32_t> ids;
    if (auto error = read_token_list(field, list, std::size_t{8} << 20, ids)) return error;
    if (ids.empty()) return wrong(field, list, "at least one token id");
    request.prompts.emplace_back(std::move(ids));
    return std::nullopt;
  };
  if (value.is_string()) {
    request.prompts.emplace_back(std::string(value.get_string()));
    return std::nullopt;
  }
  if (!value.is_array() || value.get_array().empty()) return wrong(name, value, kExpected);
  const json::array& list = value.get_array();
  if (list[0].is_number()) return add_ids(name, value);
  if (list.size() > count_max) return wrong(name, value, fmt::format("at most {} of them", count_max));
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string field = fmt::format("{}[{}]", name, i);
    if (list[0].is_string() && list[i].is_string()) {
      request.prompts.emplace_back(std::string(list[i].get_string()));
    } else if (list[0].is_array() && list[i].is_array()) {
      if (auto error = add_ids(field, list[i])) return error;
    } else {
      return wrong(field, list[i], kExpected);
    }
  }
  return std::nullopt;
}

std::optional<ApiError> read_prompt(std::string_view name, const json::value& value, ApiRequest& request) {
  return read_prompts(name, value, kPromptsMax, request);
}
std::optional<ApiError> read_input(std::string_view name, const json::value& value, ApiRequest& request) {
  return read_prompts(name, value, kInputsMax, request);
}

// A text, or a list of texts; a text may stand in an object, {"text": ...}, as rerankers' documents do.
std::optional<ApiError> read_texts(std::string_view name, const json::value& value, std::vector<std::string>& texts) {
  const std::string expected = fmt::format("a string, or a list of 1 to {} strings (or objects with \"text\")", kInputsMax);
  if (value.is_array() && (value.get_array().empty() || value.get_array().size() > kInputsMax)) return wrong(name, value, expected);
  const std::size_t count = value.is_array() ? value.get_array().size() : 1;
  for (std::size_t i = 0; i < count; ++i) {
    const json::value& item = value.is_array() ? value.get_array()[i] : value;
    const json::value* text = item.is_object() ? item.get_object().if_contains("text") : &item;
    if (text == nullptr || !text->is_string())
      return wrong(value.is_array() ? fmt::format("{}[{}]", name, i) : std::string(name), item, expected);
    texts.emplace_back(text->get_string());
  }
  return std::nullopt;
}

std::optional<ApiError> read_texts_1(std::string_view name, const json::value& value, ApiRequest& request) {
  if (!request.texts_1.empty()) return invalid_field(name, fmt::format("\"{}\" is given beside another name of the same", name));
  return read_texts(name, value, request.texts_1);
}
std::optional<ApiError> read_texts_2(std::string_view name, const json::value& value, ApiRequest& request) {
  if (!request.texts_2.empty()) return invalid_field(name, fmt::format("\"{}\" is given beside another name of the same", name));
  return read_texts(name, value, request.texts_2);
}

std::optional<ApiError> read_query(std::string_view name, const json::value& value, ApiRequest& request) {
  if (!value.is_string()) return wrong(name, value, "a string");
  request.texts_1.emplace_back(value.get_string());
  return std::nullopt;
}

std::optional<ApiError> read_encoding_format(std::string_view name, const json::value& value, ApiRequest& request) {
  if (!value.is_string() || (value.get_string() != "float" && value.get_string() != "base64"))
    return wrong(name, value, "\"float\" or \"base64\"");
  request.base64 = value.get_string() == "base64";
  return std::nullopt;
}

std::optional<ApiError> read_messages(std::string_view name, const json::value& value, ApiRequest& request) {
  request.has_messages = true;
  return read_chat_messages(name, value, request.messages);
}

std::optional<ApiError> read_object_list(std::string_view name, const json::value& value, std::optional<json::array>& target) {
  if (!value.is_array()) return wrong(name, value, "a list of objects");
  for (std::size_t i = 0; i < value.get_array().size(); ++i) {
    if (!value.get_array()[i].is_object()) return wrong(fmt::format("{}[{}]", name, i), value.get_array()[i], "an object");
  }
  if (!value.get_array().empty()) target = value.get_array();
  return std::nullopt;
}

std::optional<ApiError> read_tools(std::string_view name, const json::value& value, ApiRequest& request) {
  return read_object_list(name, value, request.tools);
}

std::optional<ApiError> read_documents(std::string_view name, const json::value& value, ApiRequest& request) {
  return read_object_list(name, value, request.documents);
}

// The template sees the tools; what the model writes comes back as text, so a call cannot be forced.
std::optional<ApiError> read_tool_choice(std::string_view name, const json::value& value, ApiRequest&) {
  if (value.is_string() && (value.get_string() == "none" || value.get_string() == "auto")) return std::nullopt;
  return wrong(name, value, "\"auto\" or \"none\" (forcing a tool call is not supported)");
}

std::optional<ApiError> read_response_format(std::string_view name, const json::value& value, ApiRequest&) {
  if (!value.is_object()) return wrong(name, value, "an object such as {\"type\": \"text\"}");
  const json::value* type = value.get_object().if_contains("type");
  if (type != nullptr && type->is_string() && type->get_string() == "text") return std::nullopt;
  return wrong(fmt::format("{}.type", name), type == nullptr ? json::value() : *type, "\"text\" (structured output is not supported)");
}

std::optional<ApiError> read_modalities(std::string_view name, const json::value& value, ApiRequest&) {
  if (value.is_array() && value.get_array().size() == 1 && value.get_array()[0] == "text") return std::nullopt;
  return wrong(name, value, "[\"text\"]");
}

std::optional<ApiError> read_template_variables(std::string_view name, const json::value& value, ApiRequest& request) {
  if (!value.is_object()) return wrong(name, value, "an object");
  for (const auto& entry : value.get_object()) request.chat_template_kwargs[entry.key()] = entry.value();
  return std::nullopt;
}

// Not a sampling parameter: templates that know it write it into the prompt.
std::optional<ApiError> read_reasoning_effort(std::string_view name, const json::value& value, ApiRequest& request) {
  if (!value.is_string()) return wrong(name, value, "a string");
  request.chat_template_kwargs["reasoning_effort"] = value;
  return std::nullopt;
}

using A = ApiRequest;
constexpr FieldIgnored kIgnored;

constexpr RequestField kFields[] = {
    {"model", kAll, &A::model, 0, 512},
    {"messages", kTemplate, read_messages},
    {"prompt", kCompletions | kTokenize, read_prompt},
    {"tokens", kDetokenize, read_tokens},

    {"stream", kGenerate, &A::stream},
    {"stream_options", kGenerate, read_stream_options},
    {"max_tokens", kChat, &A::max_tokens, 1, kInt32},
    {"max_tokens", kCompletions, &A::max_tokens, 0, kInt32},  // 0: only with "echo" or "prompt_logprobs"
    {"max_completion_tokens", kChat, &A::max_completion_tokens, 1, kInt32},
    {"min_tokens", kGenerate, &A::min_tokens, 0, kInt32},
    {"n", kGenerate, &A::n, 1, 8},
    {"best_of", kCompletions, &A::best_of, 1, 8},
    {"use_beam_search", kGenerate, &A::use_beam_search},
    {"length_penalty", kGenerate, &A::length_penalty, -100, 100},
    {"early_stopping", kGenerate, read_early_stopping},
    {"temperature", kGenerate, &A::temperature, 0, 100},
    {"top_p", kGenerate, &A::top_p, 0, 1, true},
    {"top_k", kGenerate, &A::top_k, -1, kInt32},
    {"min_p", kGenerate, &A::min_p, 0, 1},
    {"typical_p", kGenerate, &A::typical_p, 0, 1, true},
    {"top_n_sigma", kGenerate, &A::top_n_sigma, -1, 100},
    {"xtc_probability", kGenerate, &A::xtc_probability, 0, 1},
    {"xtc_threshold", kGenerate, &A::xtc_threshold, 0, 1},
    {"dry_multiplier", kGenerate, &A::dry_multiplier, 0, 100},
    {"dry_base", kGenerate, &A::dry_base, 1, 100},
    {"dry_allowed_length", kGenerate, &A::dry_allowed_length, 1, kInt32},
    {"dry_penalty_last_n", kGenerate, &A::dry_penalty_last_n, -1, kInt32},
    {"dry_sequence_breakers", kGenerate, read_dry_sequence_breakers},
    {"mirostat", kGenerate, read_mirostat},
    {"mirostat_tau", kGenerate, &A::mirostat_tau, 0, 100},
    {"mirostat_eta", kGenerate, &A::mirostat_eta, 0, 1},
    {"presence_penalty", kGenerate, &A::presence_penalty, -2, 2},
    {"frequency_penalty", kGenerate, &A::frequency_penalty, -2, 2},
    {"repetition_penalty", kGenerate, &A::repetition_penalty, 0, 100, true},
    {"seed", kGenerate, &A::seed, -kInt64, kInt64},
    {"logit_bias", kGenerate, read_logit_bias},
    {"allowed_token_ids", kGenerate, read_allowed_token_ids},
    {"bad_words", kGenerate, read_bad_words},
    {"logprobs", kChat, &A::logprobs},
    {"logprobs", kCompletions, &A::num_logprobs, 0, 20},
    {"top_logprobs", kChat, &A::top_logprobs, 0, 20},
    {"prompt_logprobs", kGenerate, &A::prompt_logprobs, 0, 20},
    {"stop", kGenerate, read_stop},
    {"stop_token_ids", kGenerate, read_stop_token_ids},
    {"ignore_eos", kGenerate, &A::ignore_eos},
    {"include_stop_str_in_output", kGenerate, &A::include_stop_str_in_output},
    {"skip_special_tokens", kGenerate, &A::skip_special_tokens},
    {"echo", kCompletions, &A::echo},
    {"batch_prompting", kChat, &A::batch_prompting, 1, 64},
    {"priority", kGenerate, &A::priority, -kInt32, kInt32},
    {"cache_salt", kGenerate, &A::cache_salt, 0, 1024},
    {"timeout", kGenerate, &A::timeout, 0, 86400, true},

    {"tools", kTemplate, read_tools},
    {"tool_choice", kChat, read_tool_choice},
    {"documents", kChat, read_documents},
    {"response_format", kGenerate, read_response_format},
    {"modalities", kChat, read_modalities},
    {"chat_template_kwargs", kTemplate, read_template_variables},
    {"reasoning_effort", kChat, read_reasoning_effort},
    {"add_generation_prompt", kTemplate, &A::add_generation_prompt},
    {"continue_final_message", kTemplate, &A::continue_final_message},
    {"add_special_tokens", kGenerate | kTokenize, &A::add_special_tokens},
    {"return_token_strs", kTokenize, &A::return_token_strs},

    {"input", kEmbeddings | kClassify, read_input},
    {"encoding_format", kEmbeddings, read_encoding_format},
    {"dimensions", kEmbeddings, &A::dimensions, 1, 1 << 20},
    {"text_1", kScore, read_texts_1},
    {"text_2", kScore, read_texts_2},
    {"queries", kScore, read_texts_1},
    {"documents", kScore | kRerank, read_texts_2},
    {"data_1", kScore, read_texts_1},
    {"data_2", kScore, read_texts_2},
    {"query", kRerank, read_query},
    {"top_n", kRerank, &A::top_n, 0, kInt32},
    {"return_documents", kRerank, &A::return_documents},
    {"use_activation", kClassify | kScore | kRerank, &A::use_activation},
    {"add_special_tokens", kEmbeddings | kClassify, &A::add_special_tokens},
    {"truncate_prompt_tokens", kEncode, &A::truncate_prompt_tokens, -1, kInt32},

    // What changes nothing in the answer.
    {"user", kEncode, kIgnored},
    {"request_id", kEncode, kIgnored},
    {"priority", kEncode, FieldUnsupported{"0"}},
    {"embed_dtype", kEmbeddings, FieldUnsupported{"\"float32\""}},
    {"endianness", kEmbeddings, FieldUnsupported{"\"native\""}},
    {"user", kGenerate, kIgnored},
    {"metadata", kGenerate, kIgnored},
    {"store", kGenerate, kIgnored},
    {"service_tier", kGenerate, kIgnored},
    {"safety_identifier", kGenerate, kIgnored},
    {"prompt_cache_key", kGenerate, kIgnored},
    {"prompt_cache_retention", kGenerate, kIgnored},
    {"prediction", kChat, kIgnored},
    {"parallel_tool_calls", kChat, kIgnored},
    {"include_reasoning", kChat, kIgnored},
    {"request_id", kGenerate, kIgnored},
    {"spaces_between_special_tokens", kGenerate, kIgnored},

    // What would change the answer, and is not there: refused unless it says what happens anyway.
    {"echo", kChat, FieldUnsupported{"false"}},
    {"suffix", kCompletions, FieldUnsupported{}},
    {"prompt_embeds", kCompletions, FieldUnsupported{}},
    {"functions", kChat, FieldUnsupported{}},
    {"function_call", kChat, FieldUnsupported{"\"none\""}},
    {"audio", kChat, FieldUnsupported{}},
    {"verbosity", kChat, FieldUnsupported{"\"medium\""}},
    {"web_search_options", kChat, FieldUnsupported{}},
    {"chat_template", kTemplate, FieldUnsupported{}},
    {"truncate_prompt_tokens", kGenerate, FieldUnsupported{}},
    {"logits_processors", kGenerate, FieldUnsupported{}},
    {"structured_outputs", kGenerate, FieldUnsupported{}},
    {"guided_json", kGenerate, FieldUnsupported{}},
    {"guided_regex", kGenerate, FieldUnsupported{}},
    {"guided_choice", kGenerate, FieldUnsupported{}},
    {"guided_grammar", kGenerate, FieldUnsupported{}},
    {"return_token_ids", kGenerate, FieldUnsupported{"false"}},
    {"return_tokens_as_token_ids", kGenerate, FieldUnsupported{"false"}},
};

std::string range_text(const RequestField& field) {
  if (field.minimum == field.maximum) return {};
  return fmt::format(" in {}{}, {}]", field.above_minimum ? '(' : '[', field.minimum, field.maximum);
}

bool in_range(const RequestField& field, double number) {
  if (field.minimum == field.maximum) return true;
  return (field.above_minimum ? number > field.minimum : number >= field.minimum) && number <= field.maximum;
}

std::optional<ApiError> read_field(const RequestField& field, const json::value& value, ApiRequest& request) {
  return std::visit(
      [&](const auto& target) -> std::optional<ApiError> {
        using T = std::decay_t<decltype(target)>;
        if constexpr (std::is_same_v<T, FieldIgnored>) {
          return std::nullopt;
        } else if constexpr (std::is_same_v<T, FieldUnsupported>) {
          if (!target.neutral.empty() && json::parse({target.neutral.data(), target.neutral.size()}) == value) return std::nullopt;
          return invalid_field(field.name, fmt::format("\"{}\" is {}; this server does not support it{}", field.name, describe_json(value),
                                                       target.neutral.empty() ? "" : fmt::format(" (only {})", target.neutral)));
        } else if constexpr (std::is_same_v<T, FieldReader>) {
          return target(field.name, value, request);
        } else if constexpr (std::is_same_v<T, bool A::*> || std::is_same_v<T, std::optional<bool> A::*>) {
          if (!value.is_bool()) return wrong(field.name, value, "true or false");
          request.*target = value.get_bool();
        } else if constexpr (std::is_same_v<T, int64_t A::*> || std::is_same_v<T, std::optional<int64_t> A::*>) {
          const auto integer = json_integer(value);
          if (!integer || !in_range(field, static_cast<double>(*integer)))
            return wrong(field.name, value, "an integer" + range_text(field));
          request.*target = *integer;
        } else if constexpr (std::is_same_v<T, std::optional<double> A::*>) {
          const auto number = json_number(value);
          // It is computed with in single precision, where 1e-50 is zero.
          if (!number || !in_range(field, *number) || !in_range(field, static_cast<double>(static_cast<float>(*number))))
            return wrong(field.name, value, "a number" + range_text(field));
          request.*target = *number;
        } else {
          static_assert(std::is_same_v<T, std::string A::*>);
          if (!value.is_string() || static_cast<double>(value.get_string().size()) > field.maximum) {
            return wrong(field.name, value, fmt::format("a string of at most {} bytes", field.maximum));
          }
          request.*target = std::string(value.get_string());
        }
        return std::nullopt;
      },
      field.target);
}

const RequestField* find_field(Endpoint endpoint, std::string_view name) {
  for (const RequestField& field : kFields) {
    if (field.name == name && (field.endpoints & static_cast<unsigned>(endpoint)) != 0) return &field;
  }
  return nullptr;
}

// Beam search draws nothing, so that temperature, top_p and their like, which clients send by habit, have nothing to act on. What would
// change which sequence is the likeliest, or how it is shown, is not left unheard.
std::optional<ApiError> check_beam_search(const ApiRequest& request) {
  const auto alone = [](std::string_view name) {
    return invalid_field(name, fmt::format("\"{}\" does not go with \"use_beam_search\": true", name));
  };
  if (!request.use_beam_search) {
    const auto for_beams = [](std::string_view name) {
      return invalid_field(name, fmt::format("\"{}\" is only for \"use_beam_search\": true", name));
    };
    if (request.length_penalty.value_or(1) != 1) return for_beams("length_penalty");
    if (request.early_stopping && *request.early_stopping != EarlyStopping::kNo) return for_beams("early_stopping");
    return std::nullopt;
  }
  if (request.stream) return alone("stream");
  if (request.logprobs || request.num_logprobs) return alone("logprobs");
  if (request.max_tokens == 0) return alone("max_tokens");
  if (request.min_tokens > 0) return alone("min_tokens");
  if (!request.stop.empty()) return alone("stop");
  if (!request.logit_bias.empty()) return alone("logit_bias");
  if (!request.allowed_token_ids.empty()) return alone("allowed_token_ids");
  if (!request.bad_words.empty()) return alone("bad_words");
  if (request.presence_penalty.value_or(0) != 0) return alone("presence_penalty");
  if (request.frequency_penalty.value_or(0) != 0) return alone("frequency_penalty");
  if (request.repetition_penalty.value_or(1) != 1) return alone("repetition_penalty");
  if (request.dry_multiplier.value_or(0) != 0) return alone("dry_multiplier");
  if (request.mirostat.value_or(0) != 0) return alone("mirostat");
  if (request.xtc_probability.value_or(0) != 0) return alone("xtc_probability");
  return std::nullopt;
}

// An answer that is split has no single choice, stream or list of tokens.
std::optional<ApiError> check_batch_prompting(const ApiRequest& request) {
  if (!request.batch_prompting) return std::nullopt;
  const auto alone = [](std::string_view name) {
    return invalid_field(name, fmt::format("\"{}\" does not go with \"batch_prompting\"", name));
  };
  if (request.stream) return alone("stream");
  if (request.num_sequences() != 1) return alone(request.best_of ? "best_of" : "n");
  if (request.use_beam_search) return alone("use_beam_search");
  if (request.logprobs) return alone("logprobs");
  if (request.prompt_logprobs) return alone("prompt_logprobs");
  if (request.continue_final_message) return alone("continue_final_message");
  if (request.add_generation_prompt == false) return alone("add_generation_prompt");
  if (request.max_tokens == 0 || request.max_completion_tokens == 0) return alone("max_tokens 0");
  return std::nullopt;
}

// What no single field can know.
std::optional<ApiError> check_together(Endpoint endpoint, const json::object& body, ApiRequest& request) {
  const auto missing = [](std::string_view name) { return invalid_field(name, fmt::format("\"{}\" is missing", name)); };
  if (endpoint == Endpoint::kChat && !request.has_messages) return missing("messages");
  if (endpoint == Endpoint::kCompletions && !request.has_prompt) return missing("prompt");
  if (endpoint == Endpoint::kDetokenize && !body.contains("tokens")) return missing("tokens");
  if ((endpoint == Endpoint::kEmbeddings || endpoint == Endpoint::kClassify) && !request.has_prompt) return missing("input");
  if (endpoint == Endpoint::kScore && request.texts_1.empty()) return missing("text_1");
  if (endpoint == Endpoint::kScore && request.texts_2.empty()) return missing("text_2");
  if (endpoint == Endpoint::kRerank && request.texts_1.empty()) return missing("query");
  if (endpoint == Endpoint::kRerank && request.texts_2.empty()) return missing("documents");
  if (request.texts_1.size() > 1 && request.texts_1.size() != request.texts_2.size()) {
    return invalid_field("text_1",
                         fmt::format("{} texts on the left and {} on the right, expected one on the left or as many on both sides",
                                     request.texts_1.size(), request.texts_2.size()));
  }
  if (request.truncate_prompt_tokens == 0)
    return invalid_field("truncate_prompt_tokens", "\"truncate_prompt_tokens\" is 0, expected -1 or at least 1");
  if (endpoint == Endpoint::kTokenize) {
    if (request.has_messages == request.has_prompt) {
      return invalid_field("prompt", request.has_prompt ? "both \"prompt\" and \"messages\" are given, expected one of them"
                                                        : "\"prompt\" is missing (or \"messages\", for a conversation)");
    }
    if (request.has_prompt && (request.prompts.size() != 1 || !std::holds_alternative<std::string>(request.prompts[0]))) {
      return wrong("prompt", body.at("prompt"), "a string");
    }
  }
  if ((request.include_usage || request.continuous_usage_stats) && !request.stream) {
    return invalid_field("stream_options", "\"stream_options\" is only for \"stream\": true");
  }
  if (request.top_logprobs.value_or(0) > 0 && !request.logprobs) {
    return invalid_field("top_logprobs", "\"top_logprobs\" is only for \"logprobs\": true");
  }
  if (request.best_of && *request.best_of < request.n)
    return invalid_field("best_of", fmt::format("\"best_of\" is {}, expected at least \"n\", {}", *request.best_of, request.n));
  if (request.best_of && *request.best_of > request.n && request.stream) {
    return invalid_field("best_of", "\"best_of\" above \"n\" is not for \"stream\": true: which answers are best is known at their end");
  }
  if (const auto max = request.completion_tokens_max(); max && request.min_tokens > *max) {
    return invalid_field("min_tokens",
                         fmt::format("\"min_tokens\" is {}, more than the {} completion tokens asked for", request.min_tokens, *max));
  }
  if (request.max_tokens == 0 && !request.echo && !request.prompt_logprobs) {
    return invalid_field("max_tokens", "\"max_tokens\" is 0, expected at least 1 (0 only with \"echo\" or \"prompt_logprobs\")");
  }
  if (request.prompt_logprobs && request.stream) {
    return invalid_field("prompt_logprobs",
                         "\"prompt_logprobs\" is not available with \"stream\": true (completions have \"echo\" with \"logprobs\")");
  }
  if (auto error = check_beam_search(request)) return error;
  if (auto error = check_batch_prompting(request)) return error;
  if (request.continue_final_message) {
    if (request.add_generation_prompt.value_or(false)) {
      return invalid_field("continue_final_message",
                           "\"continue_final_message\" and \"add_generation_prompt\" are both true, expected one of them");
    }
    if (request.messages.empty() || request.messages.back().at("role") != "assistant") {
      return invalid_field("continue_final_message", "\"continue_final_message\" needs a last message whose role is \"assistant\"");
    }
    request.add_generation_prompt = false;
  }
  return std::nullopt;
}

}  // namespace

std::span<const RequestField> request_fields() { return kFields; }

std::optional<ApiError> parse_request(Endpoint endpoint, std::string_view body, ApiRequest& request) {
  JsonLimits limits;
  limits.max_depth = 64;
  Result<json::value> parsed = parse_json(body, limits);
  if (!parsed.is_ok()) {
    ApiError error = http_error(400, parsed.status().message());
    error.code = "invalid_json";
    return error;
  }
  if (!parsed->is_object()) return http_error(400, fmt::format("the request body is {}, expected an object", describe_json(*parsed)));
  const json::object& object = parsed->get_object();
  for (const auto& entry : object) {
    const RequestField* field = find_field(endpoint, entry.key());
    if (field == nullptr) {
      const std::string name(std::string_view(entry.key()).substr(0, 128));
      return invalid_field(name, fmt::format("unrecognized field {}", describe_json(json::value(name))));
    }
    if (entry.value().is_null()) continue;
    if (auto error = read_field(*field, entry.value(), request)) return error;
  }
  return check_together(endpoint, object, request);
}

}  // namespace millrace
