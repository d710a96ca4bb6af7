#pragma once

#include <memory>
#include <string_view>

#include "millrace/base/status.h"
#include "millrace/tokenizer/function_ref.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {

// Finds the non-overlapping matches of a pattern, left to right. A match may be empty, but not where another one ends.
class SplitPattern {
 public:
  using OnMatch = FunctionRef<Status(std::size_t begin, std::size_t end)>;

  virtual ~SplitPattern() = default;
  virtual Status for_each_match(std::string_view text, OnMatch on_match) const = 0;
};

// The patterns of the GPT-2 and GPT-4 families are recognized by their exact text and matched by hand in linear time; any
// other goes to a regex engine with limits on its work.
Result<std::unique_ptr<SplitPattern>> make_regex_pattern(std::string_view regex);
bool is_built_in_pattern(std::string_view regex);
// Matches the text as it is.
std::unique_ptr<SplitPattern> make_literal_pattern(std::string_view literal);
// What ByteLevel cuts with.
extern const std::string_view kGpt2Pattern;

}  // namespace millrace
