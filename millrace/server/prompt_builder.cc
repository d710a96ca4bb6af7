#include "millrace/server/prompt_builder.h"

#include <fmt/format.h>

#include <algorithm>

#include "millrace/server/batch_prompting.h"

namespace millrace {
namespace {

// The text ends where the last message's content does, so that the model continues it.
std::optional<ApiError> cut_after_final_message(const json::array& messages, RenderedPrompt& rendered) {
  const std::string_view content = messages.back().at("content").get_string();
  constexpr std::string_view kSpace = " \t\r\n";
  const std::size_t first = content.find_first_not_of(kSpace);
  if (first == std::string_view::npos) {
    return invalid_field("continue_final_message", "\"continue_final_message\" needs a last message that is not empty");
  }
  const std::string_view trimmed = content.substr(first, content.find_last_not_of(kSpace) - first + 1);
  const std::size_t begin = rendered.text.rfind(trimmed);
  if (begin == std::string::npos) {
    return invalid_field("continue_final_message",
                         "the chat template does not show the last message as it was written, so it cannot be continued");
  }
  const std::size_t end = begin + trimmed.size();
  rendered.text.resize(end);
  auto& ranges = rendered.user_ranges;
  std::erase_if(ranges, [&](const TextRange& range) { return range.begin >= end; });
  if (!ranges.empty()) ranges.back().end = std::min(ranges.back().end, end);
  return std::nullopt;
}

std::optional<ApiError> build_chat_prompt(const ServedModel& model, const ApiRequest& request, const json::array& messages,
                                          BuiltPrompt& prompt) {
  if (model.chat_template == nullptr) {
    ApiError error = invalid_field("messages", fmt::format("\"messages\" need a chat template: {}", model.chat_template_error));
    error.code = "no_chat_template";
    return error;
  }
  ChatTemplateInput input;
  input.messages = messages;
  input.tools = request.tools;
  input.documents = request.documents;
  input.add_generation_prompt = request.add_generation_prompt.value_or(true);
  input.bos_token = model.bos_token;
  input.eos_token = model.eos_token;
  input.variables = request.chat_template_kwargs;
  Result<RenderedPrompt> rendered = model.chat_template->render(input);
  if (!rendered.is_ok()) {
    const std::string_view who =
        ChatTemplate::raised_by_template(rendered.status()) ? "the model's chat template refuses" : "the model's chat template fails on";
    ApiError error = invalid_field("messages", fmt::format("{} this conversation: {}", who, rendered.status().message()));
    error.code = "chat_template_error";
    return error;
  }
  if (request.continue_final_message) {
    if (auto error = cut_after_final_message(messages, *rendered)) return error;
  }
  EncodeOptions options;
  options.add_special_tokens = request.add_special_tokens.value_or(false);  // the template writes them
  options.plain_ranges = rendered->user_ranges;
  Result<std::vector<int32_t>> tokens = model.tokenizer->encode(rendered->text, options);
  if (!tokens.is_ok()) return invalid_field("messages", fmt::format("\"messages\": {}", tokens.status().message()));
  prompt.tokens = std::move(tokens).value();
  if (prompt.tokens.empty()) return invalid_field("messages", "the conversation renders to an empty prompt, expected at least one token");
  return std::nullopt;
}

std::optional<ApiError> build_prompt(const ServedModel& model, Endpoint endpoint, const ApiRequest& request, std::size_t index,
                                     BuiltPrompt& prompt) {
  const std::string field = request.prompts.size() == 1 ? "prompt" : fmt::format("prompt[{}]", index);
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&request.prompts[index])) {
    const int64_t vocab_size = model.tokenizer->vocab_size();
    for (std::size_t i = 0; i < ids->size(); ++i) {
      if ((*ids)[i] >= vocab_size) {
        return invalid_field(field, fmt::format("\"{}[{}]\" is {}, expected a token id below {}", field, i, (*ids)[i], vocab_size));
      }
    }
    prompt.tokens = *ids;
    if (request.echo) {
      Result<std::string> text = model.tokenizer->decode(*ids, request.skip_special_tokens);
      if (!text.is_ok()) return invalid_field(field, text.status().message());
      prompt.text = std::move(text).value();
    }
    return std::nullopt;
  }
  const std::string& text = std::get<std::string>(request.prompts[index]);
  EncodeOptions options;
  options.add_special_tokens = request.add_special_tokens.value_or(true);
  Result<std::vector<int32_t>> tokens = model.tokenizer->encode(text, options);
  if (!tokens.is_ok()) return invalid_field(field, fmt::format("\"{}\": {}", field, tokens.status().message()));
  prompt.tokens = std::move(tokens).value();
  if (prompt.tokens.empty() && endpoint != Endpoint::kTokenize) {
    return invalid_field(field, fmt::format("\"{}\" has no tokens, expected at least one", field));
  }
  if (request.echo) prompt.text = text;
  return std::nullopt;
}

// Those of several questions, then each question's own.
std::optional<ApiError> build_packed_prompts(const ServedModel& model, const ApiRequest& request, std::vector<BuiltPrompt>& prompts) {
  Questions questions;
  if (auto error = read_questions(request.messages, questions)) return error;
  const auto pack = static_cast<std::size_t>(*request.batch_prompting);
  for (std::size_t first = 0; first < questions.texts.size(); first += pack) {
    const json::array messages = questions.packed(first, std::min(pack, questions.texts.size() - first));
    if (auto error = build_chat_prompt(model, request, messages, prompts.emplace_back())) return error;
  }
  for (std::size_t i = 0; i < questions.texts.size(); ++i) {
    if (auto error = build_chat_prompt(model, request, questions.alone(i), prompts.emplace_back())) return error;
  }
  return std::nullopt;
}

}  // namespace

std::optional<ApiError> build_prompts(const ServedModel& model, Endpoint endpoint, const ApiRequest& request,
                                      std::vector<BuiltPrompt>& prompts) {
  if (request.batch_prompting) return build_packed_prompts(model, request, prompts);
  if (request.has_messages) return build_chat_prompt(model, request, request.messages, prompts.emplace_back());
  for (std::size_t i = 0; i < request.prompts.size(); ++i) {
    if (auto error = build_prompt(model, endpoint, request, i, prompts.emplace_back())) return error;
  }
  return std::nullopt;
}

}  // namespace millrace
