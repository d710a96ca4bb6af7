#pragma once

#include <optional>
#include <string_view>

#include "millrace/base/json.h"
#include "millrace/server/api_error.h"

namespace millrace {

// Checks OpenAI's list of messages and writes it the way chat templates read it: content is always a string (text parts are
// joined by line breaks), null fields are gone, and a tool call's arguments are the object that their JSON text says.
std::optional<ApiError> read_chat_messages(std::string_view name, const json::value& value, json::array& messages);

}  // namespace millrace
