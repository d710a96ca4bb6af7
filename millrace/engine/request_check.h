#pragma once

#include <algorithm>
#include <cstdint>

#include "millrace/base/status.h"
#include "millrace/engine/request.h"

namespace millrace {

struct RequestLimits {
  int64_t vocab_size = 0;           // token ids below may be named
  int64_t max_context = 0;          // prompt + completion tokens
  int64_t max_sequence_tokens = 0;  // of them, what the KV cache holds; at most max_context
  int32_t max_n = 1;
  bool has_tokenizer = true;
  int64_t num_start_tokens = 0;   // of an encoder-decoder: what its answers begin with; 0: a decoder
  int64_t max_source_tokens = 0;  // of an encoder-decoder: tokens of a prompt, which does not count as the sequence's

  int64_t max_prompt_tokens() const {
    return num_start_tokens > 0 ? std::min(max_source_tokens, max_sequence_tokens) : max_sequence_tokens - 1;
  }
  int64_t max_completion_tokens(int64_t num_prompt_tokens) const {
    return max_sequence_tokens - (num_start_tokens > 0 ? num_start_tokens : num_prompt_tokens);
  }
};

// Everything in a request that could be wrong, refused before it is queued; nothing behind this point fails because of a value.
// kInvalidArgument, naming the field, what was found and what was expected.
Status check_request(const GenerationRequest& request, const RequestLimits& limits);

}  // namespace millrace
