#include "millrace/server/chat_messages.h"

#include <fmt/format.h>

#include <string>

#include "millrace/server/json_value.h"

namespace millrace {
namespace {

std::optional<ApiError> wrong(const std::string& field, const json::value& value, std::string_view expected) {
  return invalid_field(field, fmt::format("\"{}\" is {}, expected {}", field, describe_json(value), expected));
}

std::optional<ApiError> read_content(const std::string& field, const json::value& value, std::string& text) {
  if (value.is_string()) {
    text = std::string(value.get_string());
    return std::nullopt;
  }
  if (!value.is_array()) return wrong(field, value, "a string or a list of text parts");
  for (std::size_t i = 0; i < value.get_array().size(); ++i) {
    const json::value& part = value.get_array()[i];
    const std::string part_field = fmt::format("{}[{}]", field, i);
    if (!part.is_object()) return wrong(part_field, part, "an object such as {\"type\": \"text\", \"text\": ...}");
    const json::value* type = part.get_object().if_contains("type");
    if (type == nullptr || *type != "text") {
      return wrong(part_field + ".type", type == nullptr ? json::value() : *type, "\"text\" (this model reads text only)");
    }
    const json::value* part_text = part.get_object().if_contains("text");
    if (part_text == nullptr || !part_text->is_string()) {
      return wrong(part_field + ".text", part_text == nullptr ? json::value() : *part_text, "a string");
    }
    if (i > 0) text += '\n';
    text += std::string_view(part_text->get_string());
  }
  return std::nullopt;
}

std::optional<ApiError> read_tool_calls(const std::string& field, const json::value& value, json::array& calls) {
  if (!value.is_array()) return wrong(field, value, "a list of tool calls");
  for (std::size_t i = 0; i < value.get_array().size(); ++i) {
    const std::string call_field = fmt::format("{}[{}]", field, i);
    json::value call = value.get_array()[i];
    if (!call.is_object()) return wrong(call_field, call, "an object");
    json::value* function = call.get_object().if_contains("function");
    if (function == nullptr || !function->is_object()) {
      return wrong(call_field + ".function", function == nullptr ? json::value() : *function, "an object");
    }
    json::value* arguments = function->get_object().if_contains("arguments");
    if (arguments != nullptr && arguments->is_string()) {
      const std::string text(arguments->get_string());
      Result<json::value> parsed = parse_json(text.empty() ? "{}" : text, {.max_depth = 32});
      if (!parsed.is_ok()) return wrong(call_field + ".function.arguments", *arguments, "JSON text");
      *arguments = std::move(parsed).value();
    }
    calls.push_back(std::move(call));
  }
  return std::nullopt;
}

}  // namespace

std::optional<ApiError> read_chat_messages(std::string_view name, const json::value& value, json::array& messages) {
  if (!value.is_array() || value.get_array().empty()) {
    return wrong(std::string(name), value, "a list of at least one message");
  }
  for (std::size_t i = 0; i < value.get_array().size(); ++i) {
    const std::string field = fmt::format("{}[{}]", name, i);
    const json::value& item = value.get_array()[i];
    if (!item.is_object()) return wrong(field, item, "an object with \"role\" and \"content\"");
    const json::value* role = item.get_object().if_contains("role");
    if (role == nullptr || !role->is_string() || role->get_string().empty() || role->get_string().size() > 64) {
      return wrong(field + ".role", role == nullptr ? json::value() : *role, "\"system\", \"user\", \"assistant\" or \"tool\"");
    }
    json::object message;
    for (const auto& entry : item.get_object()) {
      const std::string_view key = entry.key();
      if (entry.value().is_null()) {                                                   // as if it were absent
        if (key == "content" && role->get_string() == "assistant") message[key] = "";  // in its place
        continue;
      }
      if (key == "content") {
        std::string text;
        if (auto error = read_content(field + ".content", entry.value(), text)) return error;
        message[key] = text;
      } else if (key == "tool_calls") {
        json::array calls;
        if (auto error = read_tool_calls(field + ".tool_calls", entry.value(), calls)) return error;
        if (!calls.empty()) message[key] = std::move(calls);
      } else {
        message[key] = entry.value();
      }
    }
    if (!message.contains("content")) {
      if (role->get_string() != "assistant") return wrong(field + ".content", json::value(), "a string or a list of text parts");
      message["content"] = "";
    }
    messages.push_back(std::move(message));
  }
  return std::nullopt;
}

}  // namespace millrace
