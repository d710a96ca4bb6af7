// Requests to an encoder: texts in, an answer in OpenAI's or vLLM's shape out. Pure functions: no sockets, no clock.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "millrace/engine/encoder_engine.h"
#include "millrace/server/api_error.h"
#include "millrace/server/api_request.h"
#include "millrace/server/served_model.h"

namespace millrace {

// A parsed request, and what the encoder is to read for it: what helper threads make.
struct EncodeCall {
  Endpoint endpoint = Endpoint::kEmbeddings;
  ApiRequest request;
  std::vector<EncoderInput> inputs;
  // Score and rerank: which two inputs make each score. Empty where the pair is one input, which a classifier reads.
  std::vector<std::pair<std::size_t, std::size_t>> pairs;
  std::string id;
  int64_t created = 0;
};

// Tokenizes the request's texts. Slow for long texts: for helper threads. Errors name the field, and what the model is where it cannot
// answer.
std::optional<ApiError> build_inputs(const ServedModel& model, EncodeCall& call);

// The answer's JSON, of the numbers that the encoder gave for the inputs.
std::string encode_answer(const ServedModel& model, const EncodeCall& call, EncodeResult& result);

}  // namespace millrace
