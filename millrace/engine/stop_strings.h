#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

// Finds stop strings in text that comes in pieces. What it lets through does not depend on where the pieces were cut: the match that
// ends first counts, and of those that end together the longest.
class StopStringMatcher {
 public:
  // `stop` must outlive the matcher; none of its strings is empty.
  StopStringMatcher(const std::vector<std::string>& stop, bool include_match) : stop_(stop), include_match_(include_match) {}

  // Appends to `out` what has become certain: all but the longest end that may still become a stop string. The index of the stop string
  // where one is complete; then out ends before it (behind it with include_match) and nothing more may be pushed.
  std::optional<std::size_t> push(std::string_view text, std::string& out);
  // Text in which nothing is looked for, and across which nothing matches.
  void pass(std::string_view text, std::string& out);
  // What was held back, when no more text comes.
  void finish(std::string& out);

 private:
  const std::vector<std::string>& stop_;
  bool include_match_;
  std::string held_;  // shorter than the longest stop string
};

}  // namespace millrace
