#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>

#include "millrace/cli/command.h"

namespace millrace::cli {

// The token ids of a conversation: the chat template's rendering, in which special tokens count only where the template wrote them.
Result<std::vector<int32_t>> conversation_tokens(const LoadedModel& model, const json::array& messages);

struct Completion {
  std::string text;
  FinishReason finish_reason = FinishReason::kStop;
  Usage usage;
  std::vector<TokenLogprob> prompt_logprobs;  // of the prompt's tokens from the second on, where asked for
  double ttft_seconds = 0, seconds = 0;       // to the first text, and in all
};

// Adds the request and waits for its end, calling `on_text` with each certain piece. When `interrupted` turns true the request is
// cancelled, and what was made so far is the answer.
Result<Completion> complete(Engine& engine, GenerationRequest request, const std::function<void(std::string_view)>& on_text,
                            const std::function<bool()>& interrupted = {});

}  // namespace millrace::cli
