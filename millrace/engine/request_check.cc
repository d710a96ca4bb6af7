#include "millrace/engine/request_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "millrace/base/utf8.h"

namespace millrace {
namespace {

Status out_of_range(std::string_view field, double found, std::string_view expected) {
  return Status::invalid_argument(fmt::format("{} is {}, expected {}", field, found, expected));
}

// Comparisons are written so that NaN fails them.
Status check_more_sampling(const SamplingParams& params, int64_t vocab_size) {
  if (!(params.typical_p > 0 && params.typical_p <= 1)) return out_of_range("typical_p", params.typical_p, "more than 0, at most 1");
  if (!std::isfinite(params.top_n_sigma)) return out_of_range("top_n_sigma", params.top_n_sigma, "a finite number");
  if (!(params.xtc_probability >= 0 && params.xtc_probability <= 1))
    return out_of_range("xtc_probability", params.xtc_probability, "at least 0, at most 1");
  if (!(params.xtc_threshold >= 0 && params.xtc_threshold <= 1))
    return out_of_range("xtc_threshold", params.xtc_threshold, "at least 0, at most 1");
  if (!(params.dry_multiplier >= 0 && std::isfinite(params.dry_multiplier)))
    return out_of_range("dry_multiplier", params.dry_multiplier, "at least 0");
  if (!(params.dry_base >= 1 && std::isfinite(params.dry_base))) return out_of_range("dry_base", params.dry_base, "at least 1");
  if (params.dry_allowed_length < 1) return out_of_range("dry_allowed_length", params.dry_allowed_length, "at least 1");
  if (params.dry_penalty_last_n < -1)
    return out_of_range("dry_penalty_last_n", params.dry_penalty_last_n, "at least 0, or -1 for all tokens");
  if (params.mirostat != 0 && params.mirostat != 2) return out_of_range("mirostat", params.mirostat, "0 (off) or 2");
  if (!(params.mirostat_tau >= 0 && std::isfinite(params.mirostat_tau)))
    return out_of_range("mirostat_tau", params.mirostat_tau, "at least 0");
  if (!(params.mirostat_eta >= 0 && params.mirostat_eta <= 1))
    return out_of_range("mirostat_eta", params.mirostat_eta, "at least 0, at most 1");
  const auto in_vocabulary = [&](int32_t id) { return id >= 0 && id < vocab_size; };
  for (const int32_t id : params.allowed_token_ids) {
    if (!in_vocabulary(id)) return Status::invalid_argument(fmt::format("allowed_token_ids has {}, expected 0 to {}", id, vocab_size - 1));
  }
  for (const std::vector<int32_t>& word : params.bad_words) {
    if (word.empty()) return Status::invalid_argument("bad_words has an empty word");
    for (const int32_t id : word) {
      if (!in_vocabulary(id)) return Status::invalid_argument(fmt::format("bad_words has token {}, expected 0 to {}", id, vocab_size - 1));
    }
  }
  return Status::ok();
}

Status check_sampling(const SamplingParams& params, int64_t vocab_size) {
  if (!(params.temperature >= 0 && std::isfinite(params.temperature))) return out_of_range("temperature", params.temperature, "at least 0");
  if (!(params.top_p > 0 && params.top_p <= 1)) return out_of_range("top_p", params.top_p, "more than 0, at most 1");
  if (params.top_k < -1) return out_of_range("top_k", params.top_k, "at least 1, or 0 or -1 for all");
  if (!(params.min_p >= 0 && params.min_p <= 1)) return out_of_range("min_p", params.min_p, "at least 0, at most 1");
  if (!(params.presence_penalty >= -2 && params.presence_penalty <= 2)) {
    return out_of_range("presence_penalty", params.presence_penalty, "at least -2, at most 2");
  }
  if (!(params.frequency_penalty >= -2 && params.frequency_penalty <= 2)) {
    return out_of_range("frequency_penalty", params.frequency_penalty, "at least -2, at most 2");
  }
  if (!(params.repetition_penalty > 0 && std::isfinite(params.repetition_penalty))) {
    return out_of_range("repetition_penalty", params.repetition_penalty, "more than 0");
  }
  MR_RETURN_IF_ERROR(check_more_sampling(params, vocab_size));
  if (params.num_logprobs < -1 || params.num_logprobs > vocab_size) {
    return out_of_range("logprobs", params.num_logprobs, fmt::format("at least 0, at most {}", vocab_size));
  }
  for (const auto& [id, bias] : params.logit_bias) {
    if (id < 0 || id >= vocab_size)
      return Status::invalid_argument(fmt::format("logit_bias names token {}, expected 0 to {}", id, vocab_size - 1));
    if (!(bias >= -100 && bias <= 100)) return out_of_range(fmt::format("logit_bias of token {}", id), bias, "at least -100, at most 100");
  }
  return Status::ok();
}

Status check_length(const GenerationRequest& request, const RequestLimits& limits) {
  const int64_t num_prompt_tokens = static_cast<int64_t>(request.prompt_tokens.size());
  const bool context_is_limit = limits.max_sequence_tokens >= limits.max_context;
  const int64_t limit = limits.max_sequence_tokens;
  if (limits.num_start_tokens > 0) {
    const auto refuse = [](std::string_view field) {
      return Status::invalid_argument(fmt::format("{} is not supported where the prompt is a source text", field));
    };
    if (request.beams) return refuse("beam search");
    if (request.num_prompt_logprobs >= 0) return refuse("prompt_logprobs");
    if (request.max_tokens == 0) return refuse("max_tokens 0");
    const int64_t room = limits.max_completion_tokens(num_prompt_tokens);
    if (num_prompt_tokens > limits.max_prompt_tokens())
      return Status::invalid_argument(
          fmt::format("the prompt has {} tokens, the model reads at most {}", num_prompt_tokens, limits.max_prompt_tokens()));
    if (request.max_tokens.value_or(1) <= room) return Status::ok();
    return Status::invalid_argument(
        fmt::format("max_tokens is {}, the model's answers have at most {} tokens", request.max_tokens.value_or(1), room));
  }
  const std::string_view what = context_is_limit ? "the context" : "the KV cache (raise kv_bytes for more)";
  const bool only_prompt = request.max_tokens == 0;
  if (num_prompt_tokens >= limit + (only_prompt ? 1 : 0)) {
    return Status::invalid_argument(fmt::format("the prompt has {} tokens, and {} holds {}{}", num_prompt_tokens, what, limit,
                                                only_prompt ? "" : ", one token of the answer included"));
  }
  if (request.max_tokens && *request.max_tokens > limit - num_prompt_tokens) {
    return Status::invalid_argument(fmt::format("the prompt has {} tokens and max_tokens is {}, together more than the {} that {} holds",
                                                num_prompt_tokens, *request.max_tokens, limit, what));
  }
  return Status::ok();
}

// Fields that beam search would have to leave unheard.
Status check_beams(const GenerationRequest& request) {
  if (!std::isfinite(request.beams->length_penalty) || std::abs(request.beams->length_penalty) > 100)
    return out_of_range("length_penalty", request.beams->length_penalty, "at least -100, at most 100");
  const SamplingParams& sampling = request.sampling;
  const auto refuse = [](std::string_view field) {
    return Status::invalid_argument(fmt::format("{} does not go with beam search", field));
  };
  if (request.max_tokens == 0) return refuse("max_tokens 0");
  if (request.min_tokens > 0) return refuse("min_tokens");
  if (!request.stop.empty()) return refuse("stop");
  if (sampling.num_logprobs >= 0) return refuse("logprobs");
  if (!sampling.logit_bias.empty()) return refuse("logit_bias");
  if (!sampling.allowed_token_ids.empty()) return refuse("allowed_token_ids");
  if (!sampling.bad_words.empty()) return refuse("bad_words");
  if (sampling.presence_penalty != 0) return refuse("presence_penalty");
  if (sampling.frequency_penalty != 0) return refuse("frequency_penalty");
  if (sampling.repetition_penalty != 1) return refuse("repetition_penalty");
  if (sampling.dry_multiplier != 0) return refuse("dry_multiplier");
  if (sampling.mirostat != 0) return refuse("mirostat");
  if (sampling.xtc_probability != 0) return refuse("xtc_probability");
  return Status::ok();
}

}  // namespace

Status check_request(const GenerationRequest& request, const RequestLimits& limits) {
  if (request.prompt_tokens.empty()) return Status::invalid_argument("the prompt is empty, expected at least one token");
  if (request.n < 1 || request.n > limits.max_n) return out_of_range("n", request.n, fmt::format("at least 1, at most {}", limits.max_n));
  if (request.max_tokens && *request.max_tokens < 0) {
    return Status::invalid_argument(fmt::format("max_tokens is {}, expected at least 0", *request.max_tokens));
  }
  if (request.min_tokens < 0) return Status::invalid_argument(fmt::format("min_tokens is {}, expected at least 0", request.min_tokens));
  if (request.max_tokens && request.min_tokens > *request.max_tokens) {
    return Status::invalid_argument(
        fmt::format("min_tokens is {}, expected at most max_tokens, {}", request.min_tokens, *request.max_tokens));
  }
  if (request.num_prompt_logprobs < -1 || request.num_prompt_logprobs > limits.vocab_size) {
    return out_of_range("prompt_logprobs", request.num_prompt_logprobs, fmt::format("at least 0, at most {}", limits.vocab_size));
  }
  if (request.timeout && !(*request.timeout > 0 && std::isfinite(*request.timeout)))
    return out_of_range("timeout", *request.timeout, "a finite number above 0");
  if (request.client < 0) return out_of_range("client", request.client, "at least 0");
  MR_RETURN_IF_ERROR(check_length(request, limits));
  const auto in_vocabulary = [&](int32_t id) { return id >= 0 && id < limits.vocab_size; };
  for (const int32_t id : request.prompt_tokens) {
    if (!in_vocabulary(id))
      return Status::invalid_argument(fmt::format("the prompt has token {}, expected 0 to {}", id, limits.vocab_size - 1));
  }
  for (const int32_t id : request.stop_token_ids) {
    if (!in_vocabulary(id))
      return Status::invalid_argument(fmt::format("stop_token_ids has {}, expected 0 to {}", id, limits.vocab_size - 1));
  }
  for (const std::string& stop : request.stop) {
    if (!limits.has_tokenizer) return Status::invalid_argument("stop strings need a tokenizer, and there is none");
    if (stop.empty()) return Status::invalid_argument("a stop string is empty");
    // A match may begin only where a character does, or the text before it would end in half a character.
    if (utf8::is_continuation(stop[0])) return Status::invalid_argument("a stop string is not valid UTF-8");
  }
  if (request.beams) {
    MR_RETURN_IF_ERROR(check_beams(request));
  }
  return check_sampling(request.sampling, limits.vocab_size);
}

}  // namespace millrace
