#include "millrace/engine/prefill_pacer.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace millrace {
namespace {

double median(std::vector<double>& values) {
  const auto middle = values.begin() + (std::ssize(values) - 1) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

// Of decodes alone. Nothing where it is not known: then what prompts cost seems more than it is, and fewer rows are planned.
double PrefillPacer::seconds_of(int64_t decode_rows) const {
  return decode_rows == 0 ? 0 : decode_seconds_.estimate(decode_rows).value_or(0);
}

void PrefillPacer::observe(int64_t decode_rows, int64_t prefill_rows, double seconds) {
  if (prefill_rows == 0) {
    decode_seconds_.observe(decode_rows, seconds);
    return;
  }
  // A row costs something, also where a step was lucky.
  constexpr double kShareMin = 0.1;
  const double of_prompts = std::max(seconds - seconds_of(decode_rows), kShareMin * seconds);
  mixed_[static_cast<std::size_t>(num_seen_++ % kKept)] = {static_cast<double>(prefill_rows), of_prompts};
  most_rows_ = 1;
  for (int64_t i = 0; i < std::min(num_seen_, kShorterEvery); ++i)
    most_rows_ = std::max(most_rows_, static_cast<int64_t>(mixed_[static_cast<std::size_t>((num_seen_ - 1 - i) % kKept)].rows));
}

// The median of the slopes between any two steps (Theil 1950, Sen 1968): a few steps that something held up change little.
PrefillPacer::Line PrefillPacer::fit() const {
  constexpr double kApart = 0.15;     // steps closer than this in rows show noise, not a slope
  constexpr double kFixedMax = 0.75;  // of a step's time for prompts: a slope that noise made flat must not let rows multiply
  const int64_t count = std::min(num_seen_, kKept);
  std::vector<double> slopes, ratios, rest;
  for (int64_t i = 0; i < count; ++i) {
    const Mixed& a = mixed_[static_cast<std::size_t>(i)];
    ratios.push_back(a.seconds / a.rows);
    for (int64_t j = 0; j < i; ++j) {
      const Mixed& b = mixed_[static_cast<std::size_t>(j)];
      if (std::abs(a.rows - b.rows) > kApart * std::max(a.rows, b.rows)) slopes.push_back((a.seconds - b.seconds) / (a.rows - b.rows));
    }
  }
  const double ratio = median(ratios);  // the slope if rows were all that costs
  constexpr std::size_t kSlopesMin = 6;
  if (slopes.size() < kSlopesMin) return {0, ratio};
  const double row = std::clamp(median(slopes), (1 - kFixedMax) * ratio, ratio);
  for (int64_t i = 0; i < count; ++i)
    rest.push_back(mixed_[static_cast<std::size_t>(i)].seconds - row * mixed_[static_cast<std::size_t>(i)].rows);
  return {std::max(0.0, median(rest)), row};
}

int64_t PrefillPacer::rows(int64_t decode_rows) const {
  if (decode_rows == 0) return rows_max_;
  if (num_seen_ == 0) return std::min(kFirstRows, rows_max_);
  const Line line = fit();
  if (!(line.row > 0)) return rows_max_;  // the clock stands still
  const double without_rows = seconds_of(decode_rows) + line.fixed;
  constexpr double kFloor = 0.36;  // a third, and what the shorter steps lack
  const double seconds = std::max(target_seconds_ - without_rows, kFloor * without_rows);
  // Rounded up: the floor is a promise, and a row more or less is nothing to the target. What a row costs among many is known only by
  // trying, in leaps that a wrong guess survives.
  double wanted = std::min(std::ceil(seconds / line.row), static_cast<double>(rows_max_));
  wanted = std::clamp(wanted, 1.0, static_cast<double>(std::min(rows_max_, std::max(kFirstRows, 2 * most_rows_))));
  constexpr double kShorter = 0.75;
  if (num_seen_ % kShorterEvery == 0) wanted *= kShorter;
  return static_cast<int64_t>(std::ceil(wanted));
}

}  // namespace millrace
