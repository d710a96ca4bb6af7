#include "millrace/engine/engine_metrics.h"

#include <algorithm>
#include <cmath>

namespace millrace {

Histogram::Histogram(std::span<const double> upper_bounds)
    : upper_bounds_(upper_bounds.begin(), upper_bounds.end()), counts_(upper_bounds.size() + 1, 0) {}

void Histogram::observe(double value) {
  const auto bucket = std::lower_bound(upper_bounds_.begin(), upper_bounds_.end(), value);
  ++counts_[static_cast<std::size_t>(bucket - upper_bounds_.begin())];
  ++count_;
  sum_ += value;
}

void DecayingRate::restart(double now) {
  weighted_count_ = weighted_seconds_ = 0;
  last_ = now;
}

void DecayingRate::add(double now, int64_t count) {
  const double kept = decay_to(now);
  weighted_seconds_ = weighted_seconds_ * kept + kSeconds * (1 - kept);
  weighted_count_ = weighted_count_ * kept + static_cast<double>(count);
  last_ = std::max(last_, now);
}

double DecayingRate::per_second(double now) const {
  const double kept = decay_to(now);
  const double seconds = weighted_seconds_ * kept + kSeconds * (1 - kept);
  return seconds > 0 ? weighted_count_ * kept / seconds : 0;
}

double DecayingRate::decay_to(double now) const { return std::exp(-std::max(0.0, now - last_) / kSeconds); }

}  // namespace millrace
