#include "millrace/engine/stop_strings.h"

#include <algorithm>

namespace millrace {

std::optional<std::size_t> StopStringMatcher::push(std::string_view text, std::string& out) {
  if (stop_.empty()) {
    out += text;
    return std::nullopt;
  }
  held_ += text;
  std::optional<std::size_t> best;
  std::size_t best_begin = 0, best_end = 0;
  for (std::size_t i = 0; i < stop_.size(); ++i) {
    const std::size_t begin = held_.find(stop_[i]);
    if (begin == std::string::npos) continue;
    const std::size_t end = begin + stop_[i].size();
    if (!best || end < best_end || (end == best_end && begin < best_begin)) best = i, best_begin = begin, best_end = end;
  }
  if (best) {
    out.append(held_, 0, include_match_ ? best_end : best_begin);
    held_.clear();
    return best;
  }
  std::size_t keep = 0;
  for (const std::string& stop : stop_) {
    for (std::size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (std::string_view(held_).substr(held_.size() - length) == std::string_view(stop).substr(0, length)) keep = length;
    }
  }
  out.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return std::nullopt;
}

void StopStringMatcher::pass(std::string_view text, std::string& out) {
  finish(out);
  out += text;
}

void StopStringMatcher::finish(std::string& out) {
  out += held_;
  held_.clear();
}

}  // namespace millrace
