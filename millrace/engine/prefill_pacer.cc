#include "millrace/engine/prefill_pacer.h"

#include <algorithm>
#include <cmath>

namespace millrace {

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
  row_seconds_[static_cast<std::size_t>(num_seen_++ % kKept)] = of_prompts / static_cast<double>(prefill_rows);
  last_rows_ = prefill_rows;
}

int64_t PrefillPacer::rows(int64_t decode_rows) const {
  if (decode_rows == 0) return rows_max_;
  if (num_seen_ == 0) return std::min(kFirstRows, rows_max_);
  std::array<double, kKept> sorted = row_seconds_;
  const auto end = sorted.begin() + std::min(num_seen_, kKept);
  const auto middle = sorted.begin() + (end - sorted.begin() - 1) / 2;
  std::nth_element(sorted.begin(), middle, end);
  const double row_seconds = *middle;
  if (!(row_seconds > 0)) return rows_max_;  // the clock stands still
  const double decode_seconds = seconds_of(decode_rows);
  const double seconds = std::max(target_seconds_ - decode_seconds, decode_seconds / 3);
  // Rounded up: the floor is a promise, and a row more or less is nothing to the target. What a row costs among many is known only by
  // trying, in leaps that a wrong guess survives.
  const double wanted = std::min(std::ceil(seconds / row_seconds), static_cast<double>(rows_max_));
  return std::clamp<int64_t>(static_cast<int64_t>(wanted), 1, std::min(rows_max_, std::max(kFirstRows, 2 * last_rows_)));
}

}  // namespace millrace
