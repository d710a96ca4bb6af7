#include "millrace/tokenizer/split_behavior.h"

#include <fmt/format.h>

#include <utility>

namespace millrace {

Status Splitter::add(std::size_t begin, std::size_t end, bool is_match) {
  const bool previous_match = std::exchange(previous_match_, is_match);
  bool extends = false, waits = true;
  switch (behavior_) {
    case SplitBehavior::kRemoved: return is_match ? Status::ok() : give(begin, end);
    case SplitBehavior::kIsolated: return give(begin, end);
    case SplitBehavior::kContiguous: extends = is_match == previous_match; break;
    case SplitBehavior::kMergedWithPrevious: extends = is_match && !previous_match; break;
    case SplitBehavior::kMergedWithNext:
      extends = !is_match && previous_match;
      waits = is_match;
      break;
  }
  if (extends && pending_) {
    pending_->end = end;
  } else {
    if (pending_) MR_RETURN_IF_ERROR(give(pending_->begin, pending_->end));
    pending_ = TextRange{begin, end};
  }
  return waits ? Status::ok() : finish();
}

Status Splitter::finish() {
  const std::optional<TextRange> last = std::exchange(pending_, std::nullopt);
  return last ? give(last->begin, last->end) : Status::ok();
}

Result<SplitBehavior> read_split_behavior(const JsonFields& fields, std::string_view fallback) {
  MR_ASSIGN_OR_RETURN(const std::string name, fields.string_or("behavior", fallback));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return Status::invalid_argument(fmt::format("{}: \"behavior\" is \"{}\", which is unknown", fields.what(), name.substr(0, 50)));
}

Result<std::unique_ptr<SplitPattern>> read_split_pattern(const json::value& description, std::string_view what) {
  MR_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::of(description, what));
  if (fields.find("String") != nullptr) {
    MR_ASSIGN_OR_RETURN(const std::string literal, fields.string("String"));
    return make_literal_pattern(literal);
  }
  MR_ASSIGN_OR_RETURN(const std::string regex, fields.string("Regex"));
  Result<std::unique_ptr<SplitPattern>> pattern = make_regex_pattern(regex);
  if (!pattern.is_ok()) return pattern.status().with_context(what);
  return pattern;
}

}  // namespace millrace
