#include "millrace/quality/text_windows.h"

#include <fmt/format.h>

#include <algorithm>

namespace millrace {

int64_t TextWindows::num_scored() const {
  int64_t sum = 0;
  for (const Window& window : windows) sum += window.num_scored();
  return sum;
}

Result<TextWindows> cut_windows(std::vector<int32_t> tokens, std::optional<int32_t> bos, int64_t context, std::optional<int64_t> stride) {
  if (context < 4) return Status::invalid_argument(fmt::format("a context of {} tokens is too short, at least 4 are needed", context));
  if (stride && (*stride < 1 || *stride > context))
    return Status::invalid_argument(fmt::format("a stride of {} is not between 1 and the context, {}", *stride, context));
  const auto num_tokens = static_cast<int64_t>(tokens.size()), needed = stride ? 2 : context;
  if (num_tokens < needed)
    return Status::invalid_argument(fmt::format("the text has {} tokens, at least {} are needed", num_tokens, needed));
  TextWindows text{std::move(tokens), bos, {}};
  if (!stride) {
    for (int64_t begin = 0; begin + context <= num_tokens; begin += context) text.windows.push_back({begin, context, context / 2});
    return text;
  }
  int64_t read = 1;  // tokens that are scored or, the first, cannot be
  for (int64_t begin = 0; read < num_tokens; begin += *stride) {
    const int64_t end = std::min(begin + context, num_tokens);
    // With windows side by side the first token of one has nothing before it.
    const TextWindows::Window window{begin, end - begin, std::max<int64_t>(read - begin - 1, 0)};
    if (window.num_scored() > 0) text.windows.push_back(window);
    read = end;
  }
  return text;
}

}  // namespace millrace
