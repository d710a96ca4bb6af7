#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "millrace/base/status.h"

namespace millrace {

// A text, cut into the windows that a model reads one by one, and which of their predictions count. Each window starts with an empty
// KV cache.
struct TextWindows {
  struct Window {
    int64_t begin = 0, count = 0;  // reads tokens [begin, begin + count) of the text
    int64_t first_row = 0;         // rows [first_row, count - 1) are scored: row i predicts the window's token i + 1
    int64_t num_scored() const { return count - 1 - first_row; }
  };

  std::vector<int32_t> tokens;  // of the whole text
  std::optional<int32_t> bos;   // read in place of every window's first token, for models whose texts begin with it
  std::vector<Window> windows;  // by rising `begin`; each has at least one scored row

  int64_t num_scored() const;
  // What the model reads, and what it should predict, at row i of the window.
  int32_t input(const Window& window, int64_t i) const { return i == 0 && bos ? *bos : tokens[static_cast<std::size_t>(window.begin + i)]; }
  int32_t target(const Window& window, int64_t i) const { return tokens[static_cast<std::size_t>(window.begin + i + 1)]; }
};

// Without a stride, as llama.cpp's perplexity tool: windows of `context` tokens side by side, the second half of each is scored, so that
// every prediction has at least context / 2 tokens before it; what is left at the end of the text is not read.
//
// With a stride (1 .. context) as in the transformers documentation: a window begins every `stride` tokens and scores what no earlier
// window did, so that every token but the first is scored; the last window may be shorter. A smaller stride gives more context to each
// prediction and costs more.
//
// InvalidArgument: a context under 4, a stride out of range, a text too short for one window.
Result<TextWindows> cut_windows(std::vector<int32_t> tokens, std::optional<int32_t> bos, int64_t context, std::optional<int64_t> stride);

}  // namespace millrace
