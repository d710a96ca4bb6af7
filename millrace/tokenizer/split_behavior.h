#pragma once

#include <memory>
#include <optional>
#include <string_view>

#include "millrace/base/status.h"
#include "millrace/tokenizer/json_fields.h"
#include "millrace/tokenizer/pre_tokenizer.h"
#include "millrace/tokenizer/split_pattern.h"

namespace millrace {

// What becomes of the matches of a pattern: of "the-final--countdown" and "-",
enum class SplitBehavior {
  kRemoved,             // the, final, countdown
  kIsolated,            // the, -, final, -, -, countdown
  kMergedWithPrevious,  // the-, final-, -, countdown
  kMergedWithNext,      // the, -final, -, -countdown
  kContiguous,          // the, -, final, --, countdown
};

// Turns the matches (which may be empty) and the text between them, in order, into pieces.
class Splitter {
 public:
  Splitter(std::string_view text, bool at_start, SplitBehavior behavior, PreTokenizer::OnPiece on_piece)
      : text_(text), at_start_(at_start), behavior_(behavior), on_piece_(on_piece) {}

  Status add(std::size_t begin, std::size_t end, bool is_match);
  Status finish();

 private:
  Status give(std::size_t begin, std::size_t end) {
    if (begin == end) return Status::ok();
    return on_piece_(text_.substr(begin, end - begin), at_start_ && begin == 0);
  }

  std::string_view text_;
  bool at_start_;
  SplitBehavior behavior_;
  PreTokenizer::OnPiece on_piece_;
  std::optional<TextRange> pending_;  // may still be extended
  bool previous_match_ = false;
};

Result<SplitBehavior> read_split_behavior(const JsonFields& fields, std::string_view fallback);
// {"String": "..."} or {"Regex": "..."}
Result<std::unique_ptr<SplitPattern>> read_split_pattern(const json::value& description, std::string_view what);

}  // namespace millrace
