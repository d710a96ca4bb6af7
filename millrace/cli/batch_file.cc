#include "millrace/cli/batch_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <sstream>

#include "millrace/base/json_text.h"
#include "millrace/base/mapped_file.h"

namespace millrace::cli {
namespace {

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

constexpr std::string_view kExpected = R"(expected {"prompt": "..."}, {"messages": [...]} or {"custom_id", "method", "url", "body"})";

Status parse_batch_line(const json::object& object, FileLine& line) {
  for (const auto& field : object) {
    if (!is_one_of(field.key(), {"custom_id", "method", "url", "body"}))
      return Status::invalid_argument(fmt::format("unrecognized field \"{}\", {}", std::string_view(field.key()).substr(0, 50), kExpected));
  }
  const json::value* url = object.if_contains("url");
  const json::value* method = object.if_contains("method");
  const json::value* body = object.if_contains("body");
  if (line.custom_id.empty()) return Status::invalid_argument("\"custom_id\" is missing, expected a text that no other line has");
  if (method == nullptr || *method != "POST") return Status::invalid_argument("\"method\" is not \"POST\"");
  if (url != nullptr && *url == "/v1/chat/completions") {
    line.endpoint = Endpoint::kChat;
  } else if (url != nullptr && *url == "/v1/completions") {
    line.endpoint = Endpoint::kCompletions;
  } else {
    return Status::invalid_argument("\"url\" is neither \"/v1/chat/completions\" nor \"/v1/completions\"");
  }
  if (body == nullptr || !body->is_object()) return Status::invalid_argument("\"body\" is not an object");
  line.body = json::serialize(*body);
  return Status::ok();
}

Status parse_prompt_line(const json::object& object, FileLine& line) {
  // Fields of an HTTP request would otherwise be taken for heard.
  for (const auto& field : object) {
    if (is_one_of(field.key(), {"prompt", "messages"})) continue;
    return Status::invalid_argument(
        fmt::format("unrecognized field \"{}\", expected \"prompt\" or \"messages\"; options such as --max-tokens are for all lines",
                    std::string_view(field.key()).substr(0, 50)));
  }
  const json::value* prompt = object.if_contains("prompt");
  const json::value* messages = object.if_contains("messages");
  if (prompt != nullptr && prompt->is_string() && messages == nullptr) {
    line.text = std::string(prompt->as_string());
  } else if (messages != nullptr && messages->is_array() && !messages->as_array().empty() && prompt == nullptr) {
    line.messages = messages->as_array();
  } else {
    return Status::invalid_argument(std::string(kExpected));
  }
  return Status::ok();
}

Status parse_line(std::string_view text, FileLine& line) {
  MR_ASSIGN_OR_RETURN(const json::value value, parse_json(text));
  const json::object* object = value.if_object();
  if (object == nullptr) return Status::invalid_argument(std::string(kExpected));
  for (const char* field : {"custom_id", "method", "url", "body"}) line.is_batch |= object->contains(field);
  if (!line.is_batch) return parse_prompt_line(*object, line);
  const json::value* custom_id = object->if_contains("custom_id");
  if (custom_id != nullptr && custom_id->is_string()) line.custom_id = std::string(custom_id->as_string());
  return parse_batch_line(*object, line);
}

}  // namespace

Result<std::vector<FileLine>> read_file_lines(const std::string& path) {
  MR_ASSIGN_OR_RETURN(const std::string text, read_text_file(path, std::size_t{4} << 30));
  std::istringstream stream(text);
  std::vector<FileLine> lines;
  std::set<std::string> custom_ids;
  int64_t number = 0;
  for (std::string row; std::getline(stream, row);) {
    ++number;
    if (row.find_first_not_of(" \t\r") == std::string::npos) continue;
    FileLine& line = lines.emplace_back();
    line.place = fmt::format("{}, line {}", path, number);
    line.error = parse_line(row, line);
    if (line.error.is_ok() && line.is_batch && !custom_ids.insert(line.custom_id).second)
      line.error = Status::invalid_argument(fmt::format("\"custom_id\" is \"{}\", as on an earlier line", line.custom_id.substr(0, 64)));
  }
  if (lines.empty()) return Status::invalid_argument(fmt::format("{}: holds no prompt", path));
  return lines;
}

Result<FinishedLines> read_finished_lines(const std::string& path) {
  FinishedLines finished;
  if (!std::filesystem::exists(path)) return finished;
  MR_ASSIGN_OR_RETURN(const std::string text, read_text_file(path, std::size_t{16} << 30));
  const std::size_t whole = text.rfind('\n') + 1;  // 0 where there is none
  int64_t number = 0;
  for (std::size_t begin = 0; begin < whole;) {
    const std::size_t end = text.find('\n', begin);
    const auto value = parse_json(std::string_view(text).substr(begin, end - begin));
    begin = end + 1;
    ++number;
    const json::object* answer = value.is_ok() ? value->if_object() : nullptr;
    const json::value* index = answer != nullptr ? answer->if_contains("index") : nullptr;
    const json::value* custom_id = answer != nullptr ? answer->if_contains("custom_id") : nullptr;
    if (index != nullptr && index->is_int64()) {
      finished.indices.insert(index->as_int64());
    } else if (custom_id != nullptr && custom_id->is_string()) {
      finished.custom_ids.insert(std::string(custom_id->as_string()));
    } else if (custom_id == nullptr || !custom_id->is_null()) {
      return Status::invalid_argument(
          fmt::format("--output: {}, line {} is no answer of an earlier run; name another file, or remove this one", path, number));
    }
  }
  std::error_code failed;
  if (whole < text.size()) std::filesystem::resize_file(path, whole, failed);
  if (failed) return Status::unavailable(fmt::format("--output: {}: {}", path, failed.message()));
  return finished;
}

}  // namespace millrace::cli
