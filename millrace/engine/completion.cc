#include "millrace/engine/completion.h"

#include <algorithm>

#include "millrace/base/utf8.h"

namespace millrace {

Completion::Completion(const GenerationRequest& request, int64_t max_tokens, std::span<const int32_t> eos_token_ids,
                       const Tokenizer* tokenizer)
    : request_(request),
      max_tokens_(max_tokens),
      eos_token_ids_(eos_token_ids),
      stop_strings_(request.stop, request.include_stop_str_in_output) {
  if (tokenizer == nullptr) return;
  detokenizer_.emplace(*tokenizer, request.skip_special_tokens);
  if (!request.prompt_tokens.empty()) continue_from(request.prompt_tokens, *tokenizer);
}

// Many decoders drop the space before the first word of a text. A completion is no first word: " world" after "Hello" keeps its space.
// The prompt's last tokens are enough to tell, as in vLLM: as few as begin and end with whole characters.
void Completion::continue_from(std::span<const int32_t> prompt_tokens, const Tokenizer& tokenizer) {
  constexpr std::size_t kTokensMin = 8, kTokensMax = 32;
  for (std::size_t size = std::min(kTokensMin, prompt_tokens.size()); size <= std::min(kTokensMax, prompt_tokens.size()); ++size) {
    const std::span<const int32_t> last = prompt_tokens.last(size);
    const Result<std::string> text = tokenizer.decode(last, request_.skip_special_tokens);
    if (!text.is_ok() || text->find(utf8::kReplacement) != std::string::npos) continue;
    std::string given;
    for (const int32_t id : last) given += detokenizer_->push(id);
    // Some decoders wait for the next token. What they still hold is the prompt's, and not to be given out again.
    if (text->starts_with(given)) prompt_rest_ = text->substr(given.size());
    return;
  }
}

std::string Completion::without_prompt(std::string text) {
  const std::size_t size = std::min(text.size(), prompt_rest_.size());
  if (size == 0) return text;
  if (text.compare(0, size, prompt_rest_, 0, size) != 0) {
    prompt_rest_.clear();
    return text;
  }
  prompt_rest_.erase(0, size);
  text.erase(0, size);
  return text;
}

bool Completion::is_eos(int32_t id) const {
  return !request_.ignore_eos && std::find(eos_token_ids_.begin(), eos_token_ids_.end(), id) != eos_token_ids_.end();
}

bool Completion::is_stop_token(int32_t id) const {
  return std::find(request_.stop_token_ids.begin(), request_.stop_token_ids.end(), id) != request_.stop_token_ids.end();
}

void Completion::push(const SampledToken& token, OutputDelta& delta) {
  ++num_tokens_;
  delta.token_ids.push_back(token.id);
  if (request_.sampling.num_logprobs >= 0) delta.logprobs.push_back({token.id, token.logprob, token.top_logprobs});

  // The first min_tokens tokens cannot be stop tokens: sampling was told so.
  const bool eos = is_eos(token.id), stop_token = !eos && is_stop_token(token.id);
  // As in vLLM, the token that stops a sequence is among its ids but not in its text, unless asked for.
  if (detokenizer_ && (!(eos || stop_token) || request_.include_stop_str_in_output))
    push_text(without_prompt(detokenizer_->push(token.id)), delta);
  if (delta.finish_reason) return;  // a stop string
  if (eos || stop_token) {
    delta.finish_reason = FinishReason::kStop;
    if (stop_token) delta.stop_reason = token.id;
  } else if (num_tokens_ >= max_tokens_) {
    delta.finish_reason = FinishReason::kLength;
  } else {
    return;
  }
  flush_text(delta);
}

void Completion::end(FinishReason reason, OutputDelta& delta) {
  flush_text(delta);
  delta.finish_reason = reason;
  delta.stop_reason = std::monostate();
}

void Completion::push_text(std::string_view text, OutputDelta& delta) {
  if (num_tokens_ <= request_.min_tokens) {
    stop_strings_.pass(text, delta.text);
    return;
  }
  const std::optional<std::size_t> matched = stop_strings_.push(text, delta.text);
  if (!matched) return;
  delta.finish_reason = FinishReason::kStop;
  delta.stop_reason = request_.stop[*matched];
}

void Completion::flush_text(OutputDelta& delta) {
  if (!detokenizer_) return;
  const std::optional<FinishReason> reason = delta.finish_reason;
  const auto stop_reason = delta.stop_reason;
  push_text(without_prompt(detokenizer_->finish()), delta);
  // Bytes that were held back may complete a stop string; a stop token was there first, so its reason stays.
  if (reason == FinishReason::kStop) {
    delta.finish_reason = reason;
    delta.stop_reason = stop_reason;
  }
  stop_strings_.finish(delta.text);
}

}  // namespace millrace
