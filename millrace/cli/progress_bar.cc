#include "millrace/cli/progress_bar.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace millrace::cli {

ProgressBar::ProgressBar(std::string label) : label_(std::move(label)), terminal_(isatty(STDERR_FILENO)) {}

void ProgressBar::update(double share, const std::function<std::string()>& note) {
  const Clock::time_point now = Clock::now();
  if (!terminal_ || (drawn_ && now - last_ < std::chrono::milliseconds(100))) return;
  last_ = now;
  drawn_ = true;
  constexpr int kWidth = 30;
  const auto filled = static_cast<std::size_t>(std::clamp(share, 0.0, 1.0) * kWidth);
  const double seconds = std::chrono::duration<double>(now - start_).count(), left = share > 0 ? seconds * (1 - share) / share : 0;
  const auto minutes = static_cast<int64_t>(left) / 60;
  // \33[K: the rest of the line may hold an older, longer text.
  fmt::print(stderr, "\r{} [{}{}] {:3.0f} %  {}{} left\33[K", label_, std::string(filled, '='), std::string(kWidth - filled, ' '),
             100 * share, note ? note() + ", " : "",
             minutes > 0 ? fmt::format("{} min {} s", minutes, static_cast<int64_t>(left) % 60) : fmt::format("{:.0f} s", left));
  std::fflush(stderr);
}

void ProgressBar::clear() {
  if (drawn_) fmt::print(stderr, "\r\33[K");
  drawn_ = false;
}

}  // namespace millrace::cli
