#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "millrace/base/status.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {

// A regular expression out of a model file, run by PCRE2 with bounds on its work. The classes \s \w \d \p{..} are spelled
// out from our own tables, because PCRE2 carries the Unicode version of the distribution. Any number of threads may match.
class Regex {
 public:
  static Result<Regex> compile(std::string_view pattern);
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  // The first match at or after byte `begin`, with the whole text as context. `text` is valid UTF-8.
  // A pattern that needs too much work on this text is an error.
  Result<std::optional<TextRange>> find(std::string_view text, std::size_t begin) const;

 private:
  struct Code;
  explicit Regex(std::unique_ptr<Code> code);
  std::unique_ptr<Code> code_;
};

// The pattern with its character classes spelled out; exposed for tests.
Result<std::string> expand_classes(std::string_view pattern);

}  // namespace millrace
