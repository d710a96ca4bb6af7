#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>

namespace millrace::cli {

// One line on standard error that shows how far long work is; nothing where that is no terminal.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // `share` is from 0 to 1. Drawn at most ten times a second, with the time that is left at this pace, and with `note`, which is made only
  // when it is drawn.
  void update(double share, const std::function<std::string()>& note = {});
  // Takes the line away.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  bool terminal_, drawn_ = false;
  Clock::time_point start_ = Clock::now(), last_;
};

}  // namespace millrace::cli
