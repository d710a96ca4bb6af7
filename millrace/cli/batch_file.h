#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/status.h"
#include "millrace/server/api_request.h"

// Files of requests, one JSON object a line, and of their answers.
namespace millrace::cli {

// One line: {"prompt": "..."}, {"messages": [...]}, or one of OpenAI's batch format,
// {"custom_id": "...", "method": "POST", "url": "/v1/chat/completions", "body": {...}}.
struct FileLine {
  std::string place;      // "prompts.jsonl, line 3"
  std::string text;       // of a completion, or
  json::array messages;   // of a chat; or
  bool is_batch = false;  // of OpenAI's format:
  std::string custom_id;
  Endpoint endpoint = Endpoint::kChat;
  std::string body;  // JSON
  Status error;      // what is wrong with the line: it gets no answer
};

// Every line that is not blank. Errors: a file that cannot be read, or without a line.
Result<std::vector<FileLine>> read_file_lines(const std::string& path);

// The answers that a file has already.
struct FinishedLines {
  std::set<int64_t> indices;         // of lines that are not of OpenAI's format
  std::set<std::string> custom_ids;  // of those that are
  bool holds(const FileLine& line, std::size_t index) const {
    return line.is_batch ? custom_ids.contains(line.custom_id) : indices.contains(static_cast<int64_t>(index));
  }
};

// Of the file of an earlier run; nothing where there is none. A last line that was not written to its end is cut off. Errors: a line that
// is no answer, as in a file that is something else.
Result<FinishedLines> read_finished_lines(const std::string& path);

}  // namespace millrace::cli
