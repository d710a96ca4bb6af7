#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "millrace/engine/request.h"
#include "millrace/engine/stop_strings.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {

// The tokens of one sequence as they become text, and the question after each whether it was the last.
class Completion {
 public:
  // `request` and `eos_token_ids` must outlive it; without a tokenizer there is no text. The text continues that of the request's
  // prompt_tokens, of which only the end is looked at, and only here.
  Completion(const GenerationRequest& request, int64_t max_tokens, std::span<const int32_t> eos_token_ids, const Tokenizer* tokenizer);

  // Adds the token, its logprobs and the text that is certain now to `delta`, with the finish and stop reason if this was the last.
  void push(const SampledToken& token, OutputDelta& delta);
  // The sequence ends for a reason of its own (cancelled, failed): adds the text that was held back.
  void end(FinishReason reason, OutputDelta& delta);

  int64_t num_tokens() const { return num_tokens_; }

 private:
  void continue_from(std::span<const int32_t> prompt_tokens, const Tokenizer& tokenizer);
  std::string without_prompt(std::string text);
  bool is_eos(int32_t id) const;
  bool is_stop_token(int32_t id) const;
  void push_text(std::string_view text, OutputDelta& delta);
  void flush_text(OutputDelta& delta);

  const GenerationRequest& request_;
  int64_t max_tokens_;
  std::span<const int32_t> eos_token_ids_;
  std::optional<DetokenizerStream> detokenizer_;
  std::string prompt_rest_;  // text of the prompt that the detokenizer has not given out yet
  StopStringMatcher stop_strings_;
  int64_t num_tokens_ = 0;
};

}  // namespace millrace
