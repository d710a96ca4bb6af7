#pragma once

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
};

// Everything in a request that could be wrong, refused before it is queued; nothing behind this point fails because of a value.
// kInvalidArgument, naming the field, what was found and what was expected.
Status check_request(const GenerationRequest& request, const RequestLimits& limits);

}  // namespace millrace
