// Answers in OpenAI's shapes, with vLLM's additions (stop_reason). Pure functions to text: no sockets, no clock.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "millrace/engine/request.h"
#include "millrace/server/api_request.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {

// What one choice gained since the last chunk, or all of it.
struct ChoiceOutput {
  int32_t index = 0;
  std::string_view text;
  std::span<const TokenLogprob> logprobs;
  bool wants_logprobs = false;
  int64_t text_offset = 0;  // completions' logprobs: characters of the choice's text before this
  // Of all tokens of the prompt, where asked for. The first token, which nothing comes before, has NaN; here and in an echo's `logprobs`
  // that is null in JSON.
  std::optional<std::span<const TokenLogprob>> prompt_logprobs;
  std::size_t num_prompt_logprobs = 0;  // most likely ones that are shown of each
  std::optional<FinishReason> finish_reason;
  const std::variant<std::monostate, int32_t, std::string>* stop_reason = nullptr;
};

class OpenAiResponse {
 public:
  OpenAiResponse(Endpoint endpoint, std::string id, int64_t created, std::string model, const Tokenizer& tokenizer);

  // Chunks are whole SSE events: "data: {...}\n\n". `usage` adds the field (null where it points to nothing).
  struct ChunkUsage {
    bool present = false;
    const Usage* usage = nullptr;
  };
  std::string role_chunk(int32_t index, ChunkUsage usage) const;  // chat: the first of a choice
  std::string chunk(const ChoiceOutput& output, ChunkUsage usage) const;
  std::string usage_chunk(const Usage& usage) const;  // the last, without choices

  // `more`: a field besides, its name and its value as JSON text.
  std::string whole(std::span<const ChoiceOutput> choices, const Usage& usage,
                    std::optional<std::pair<std::string_view, std::string>> more = {}) const;

  static constexpr std::string_view kDone = "data: [DONE]\n\n";

 private:
  Endpoint endpoint_;
  std::string id_, model_;
  int64_t created_;
  const Tokenizer& tokenizer_;
  std::string chunk_head_;  // {"id":...,"model":..., of every chunk
};

int64_t count_characters(std::string_view utf8);

}  // namespace millrace
