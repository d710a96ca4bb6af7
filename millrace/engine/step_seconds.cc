#include "millrace/engine/step_seconds.h"

#include <algorithm>

namespace millrace {

void StepSeconds::observe(int64_t rows, double seconds) {
  ++num_steps_;
  if (rows < 1 || rows > kRowsMax) return;
  Times& times = by_rows_[static_cast<std::size_t>(rows)];
  if (num_steps_ - times.last_step > kStepsOfMany) times.count = times.next = 0;
  times.seconds[static_cast<std::size_t>(times.next)] = seconds;
  times.next = (times.next + 1) % kKept;
  times.count = std::min(times.count + 1, kKept);
  times.last_step = num_steps_;
}

// A few times may be outliers, and are soon tried again.
bool StepSeconds::is_fresh(const Times& times) const {
  constexpr int64_t kStepsOfFew = 128;
  return times.count > 0 && num_steps_ - times.last_step <= (times.count < 3 ? kStepsOfFew : kStepsOfMany);
}

double StepSeconds::median(int64_t rows) const {
  const Times& times = by_rows_[static_cast<std::size_t>(rows)];
  std::array<double, kKept> sorted = times.seconds;
  const auto middle = sorted.begin() + (times.count - 1) / 2;
  std::partial_sort(sorted.begin(), middle + 1, sorted.begin() + times.count);
  return *middle;
}

std::optional<double> StepSeconds::estimate(int64_t rows) const {
  if (rows < 1 || rows > kRowsMax) return std::nullopt;
  constexpr double kOptimisticRow = 0.03;  // of a step's time
  const auto fresh = [&](int64_t at) { return is_fresh(by_rows_[static_cast<std::size_t>(at)]); };
  int64_t below = rows, above = rows;
  while (below >= 1 && !fresh(below)) --below;
  while (above <= kRowsMax && !fresh(above)) ++above;
  if (below == rows) return median(rows);
  if (below >= 1 && above <= kRowsMax) {
    const double share = static_cast<double>(rows - below) / static_cast<double>(above - below);
    return median(below) * (1 - share) + median(above) * share;
  }
  if (above <= kRowsMax) return median(above) / (1 + kOptimisticRow * static_cast<double>(above - rows));
  // What was never tried is approached in small leaps: a bad guess then costs little.
  if (below < 1 || rows > below + below / 2 + 1) return std::nullopt;
  double row_seconds = kOptimisticRow * median(below);
  int64_t before = below - 1;
  while (before >= 1 && !fresh(before)) --before;
  if (before >= 1) row_seconds = std::max(row_seconds, (median(below) - median(before)) / static_cast<double>(below - before));
  return median(below) + row_seconds * static_cast<double>(rows - below);
}

}  // namespace millrace
