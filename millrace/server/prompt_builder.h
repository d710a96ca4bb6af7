#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "millrace/server/api_error.h"
#include "millrace/server/api_request.h"
#include "millrace/server/served_model.h"

namespace millrace {

struct BuiltPrompt {
  std::vector<int32_t> tokens;
  std::string text;  // what "echo" repeats
};

// Makes token ids of the request's prompts (or of its conversation, through the chat template). Text of messages never becomes a
// special token; a prompt of /v1/completions is the client's own template, and may. With `batch_prompting` the prompts of several questions
// come first, then each question's own. Slow for long texts: for helper threads.
std::optional<ApiError> build_prompts(const ServedModel& model, Endpoint endpoint, const ApiRequest& request,
                                      std::vector<BuiltPrompt>& prompts);

}  // namespace millrace
