#include "millrace/cli/text_file.h"

#include <fmt/format.h>

#include <algorithm>

#include "millrace/base/json_text.h"
#include "millrace/base/mapped_file.h"

namespace millrace::cli {

constexpr std::size_t kFileBytesMax = std::size_t{1} << 30;

Result<std::vector<std::string>> read_texts(const std::string& path) {
  MR_ASSIGN_OR_RETURN(const std::string content, read_text_file(path, kFileBytesMax));
  const bool as_json = path.ends_with(".jsonl");
  std::vector<std::string> texts;
  for (std::size_t begin = 0, line = 1; begin < content.size(); ++line) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    std::string text = content.substr(begin, end - begin);
    begin = end + 1;
    if (!text.empty() && text.back() == '\r') text.pop_back();
    if (as_json) {
      if (text.empty()) continue;
      const auto value = parse_json(text);
      if (!value.is_ok()) return value.status().with_context(fmt::format("{}: line {}", path, line));
      const json::value* found = value->is_object() ? value->get_object().if_contains("text") : &*value;
      if (found == nullptr || !found->is_string())
        return Status::invalid_argument(fmt::format("{}: line {} is neither a text nor an object with \"text\"", path, line));
      text = std::string(std::string_view(found->get_string()));
    }
    texts.push_back(std::move(text));
  }
  return texts;
}

}  // namespace millrace::cli
