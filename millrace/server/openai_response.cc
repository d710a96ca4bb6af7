#include "millrace/server/openai_response.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "millrace/base/utf8.h"
#include "millrace/server/json_writer.h"

namespace millrace {
namespace {

// JSON has no infinity; OpenAI and vLLM show a probability of zero as -9999.
double shown_logprob(float logprob) { return std::isfinite(logprob) ? static_cast<double>(logprob) : -9999.0; }

void write_chat_token(JsonWriter& json, const Tokenizer& tokenizer, int32_t id, float logprob) {
  const std::string text = tokenizer.token_text(id);
  json.field("token", text).field("logprob", shown_logprob(logprob)).key("bytes").begin_array();
  // Of a token that is half a character the bytes are what a client can join.
  for (const char c : text.find(utf8::kReplacement) == std::string::npos ? text : tokenizer.token_bytes(id))
    json.value(static_cast<int64_t>(static_cast<unsigned char>(c)));
  json.end_array();
}

void write_chat_logprobs(JsonWriter& json, const Tokenizer& tokenizer, std::span<const TokenLogprob> logprobs) {
  json.begin_object().key("content").begin_array();
  for (const TokenLogprob& token : logprobs) {
    json.begin_object();
    write_chat_token(json, tokenizer, token.token_id, token.logprob);
    json.key("top_logprobs").begin_array();
    for (const auto& [id, logprob] : token.top_logprobs) {
      json.begin_object();
      write_chat_token(json, tokenizer, id, logprob);
      json.end_object();
    }
    json.end_array().end_object();
  }
  json.end_array().key("refusal").null().end_object();
}

void write_completion_logprobs(JsonWriter& json, const Tokenizer& tokenizer, std::span<const TokenLogprob> logprobs, int64_t text_offset) {
  std::vector<std::string> texts;
  texts.reserve(logprobs.size());
  for (const TokenLogprob& token : logprobs) texts.push_back(tokenizer.token_text(token.token_id));
  json.begin_object().key("tokens").begin_array();
  for (const std::string& text : texts) json.value(text);
  json.end_array().key("token_logprobs").begin_array();
  for (const TokenLogprob& token : logprobs) std::isnan(token.logprob) ? json.null() : json.value(shown_logprob(token.logprob));
  json.end_array().key("top_logprobs").begin_array();
  for (const TokenLogprob& token : logprobs) {
    if (std::isnan(token.logprob)) {
      json.null();
      continue;
    }
    json.begin_object();
    std::vector<std::string> seen;  // two ids may have the same text; the likelier keeps the key
    for (const auto& [id, logprob] : token.top_logprobs) {
      std::string text = tokenizer.token_text(id);
      if (std::find(seen.begin(), seen.end(), text) != seen.end()) continue;
      json.field(text, shown_logprob(logprob));
      seen.push_back(std::move(text));
    }
    json.end_object();
  }
  json.end_array().key("text_offset").begin_array();
  for (const std::string& text : texts) {
    json.value(text_offset);
    text_offset += count_characters(text);
  }
  json.end_array().end_object();
}

void write_logprobs(JsonWriter& json, Endpoint endpoint, const Tokenizer& tokenizer, const ChoiceOutput& output) {
  json.key("logprobs");
  if (!output.wants_logprobs) {
    json.null();
  } else if (endpoint == Endpoint::kChat) {
    write_chat_logprobs(json, tokenizer, output.logprobs);
  } else {
    write_completion_logprobs(json, tokenizer, output.logprobs, output.text_offset);
  }
}

// vLLM's: of each token {"id": {"logprob", "rank", "decoded_token"}}, the prompt's own first.
void write_prompt_logprobs(JsonWriter& json, const Tokenizer& tokenizer, const ChoiceOutput& output) {
  json.key("prompt_logprobs").begin_array();
  const auto write = [&](int32_t id, float logprob, int64_t rank) {
    json.key(fmt::format("{}", id))
        .begin_object()
        .field("logprob", shown_logprob(logprob))
        .field("rank", rank)
        .field("decoded_token", tokenizer.token_text(id))
        .end_object();
  };
  for (const TokenLogprob& token : *output.prompt_logprobs) {
    if (std::isnan(token.logprob)) {
      json.null();
      continue;
    }
    json.begin_object();
    write(token.token_id, token.logprob, token.rank);
    for (std::size_t i = 0; i < std::min(output.num_prompt_logprobs, token.top_logprobs.size()); ++i) {
      const auto& [id, logprob] = token.top_logprobs[i];
      if (id != token.token_id) write(id, logprob, static_cast<int64_t>(i) + 1);
    }
    json.end_object();
  }
  json.end_array();
}

void write_finish(JsonWriter& json, const ChoiceOutput& output) {
  json.key("finish_reason");
  if (!output.finish_reason) {
    json.null();
    return;
  }
  json.value(finish_reason_name(*output.finish_reason)).key("stop_reason");
  if (output.stop_reason == nullptr || std::holds_alternative<std::monostate>(*output.stop_reason)) {
    json.null();
  } else if (const auto* id = std::get_if<int32_t>(output.stop_reason)) {
    json.value(*id);
  } else {
    json.value(std::get<std::string>(*output.stop_reason));
  }
}

void write_usage(JsonWriter& json, const Usage& usage) {
  json.begin_object()
      .field("prompt_tokens", usage.prompt_tokens)
      .field("completion_tokens", usage.completion_tokens)
      .field("total_tokens", usage.prompt_tokens + usage.completion_tokens)
      .key("prompt_tokens_details")
      .begin_object()
      .field("cached_tokens", usage.cached_tokens)
      .end_object()
      .end_object();
}

void write_chunk_usage(JsonWriter& json, OpenAiResponse::ChunkUsage usage) {
  if (!usage.present) return;
  json.key("usage");
  if (usage.usage == nullptr) {
    json.null();
  } else {
    write_usage(json, *usage.usage);
  }
}

}  // namespace

int64_t count_characters(std::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) { return !utf8::is_continuation(c); });
}

OpenAiResponse::OpenAiResponse(Endpoint endpoint, std::string id, int64_t created, std::string model, const Tokenizer& tokenizer)
    : endpoint_(endpoint), id_(std::move(id)), model_(std::move(model)), created_(created), tokenizer_(tokenizer) {
  JsonWriter json;
  json.begin_object()
      .field("id", id_)
      .field("object", endpoint == Endpoint::kChat ? "chat.completion.chunk" : "text_completion")
      .field("created", created_)
      .field("model", model_);
  chunk_head_ = "data: " + json.take();
}

std::string OpenAiResponse::role_chunk(int32_t index, ChunkUsage usage) const {
  JsonWriter json;
  json.begin_object().key("choices").begin_array().begin_object().field("index", index).key("delta").begin_object();
  json.field("role", "assistant")
      .field("content", "")
      .end_object()
      .key("logprobs")
      .null()
      .key("finish_reason")
      .null()
      .end_object()
      .end_array();
  write_chunk_usage(json, usage);
  json.end_object();
  return chunk_head_ + ',' + json.text().substr(1) + "\n\n";
}

std::string OpenAiResponse::chunk(const ChoiceOutput& output, ChunkUsage usage) const {
  JsonWriter json;
  json.begin_object().key("choices").begin_array().begin_object().field("index", output.index);
  if (endpoint_ == Endpoint::kChat) {
    json.key("delta").begin_object();
    if (!output.text.empty()) json.field("content", output.text);
    json.end_object();
  } else {
    json.field("text", output.text);
  }
  write_logprobs(json, endpoint_, tokenizer_, output);
  write_finish(json, output);
  json.end_object().end_array();
  write_chunk_usage(json, usage);
  json.end_object();
  return chunk_head_ + ',' + json.text().substr(1) + "\n\n";
}

std::string OpenAiResponse::usage_chunk(const Usage& usage) const {
  JsonWriter json;
  json.begin_object().key("choices").begin_array().end_array();
  write_chunk_usage(json, {true, &usage});
  json.end_object();
  return chunk_head_ + ',' + json.text().substr(1) + "\n\n";
}

std::string OpenAiResponse::whole(std::span<const ChoiceOutput> choices, const Usage& usage,
                                  std::optional<std::pair<std::string_view, std::string>> more) const {
  const bool chat = endpoint_ == Endpoint::kChat;
  JsonWriter json;
  json.begin_object()
      .field("id", id_)
      .field("object", chat ? "chat.completion" : "text_completion")
      .field("created", created_)
      .field("model", model_);
  json.key("choices").begin_array();
  for (const ChoiceOutput& choice : choices) {
    json.begin_object().field("index", choice.index);
    if (chat) {
      json.key("message").begin_object().field("role", "assistant").field("content", choice.text).key("refusal").null().end_object();
    } else {
      json.field("text", choice.text);
    }
    write_logprobs(json, endpoint_, tokenizer_, choice);
    write_finish(json, choice);
    if (!chat && choice.prompt_logprobs) write_prompt_logprobs(json, tokenizer_, choice);
    json.end_object();
  }
  json.end_array().key("usage");
  write_usage(json, usage);
  if (chat && !choices.empty() && choices[0].prompt_logprobs) write_prompt_logprobs(json, tokenizer_, choices[0]);
  if (more) json.key(more->first).raw(more->second);
  return json.end_object().take();
}

}  // namespace millrace
