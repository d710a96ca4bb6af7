#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace millrace {

// The median of the last few numbers: what was lucky or held up once changes little, and what has changed is believed soon.
template <int64_t kKept>
class RecentMedian {
 public:
  void observe(double value) {
    values_[static_cast<std::size_t>(next_)] = value;
    next_ = (next_ + 1) % kKept;
    count_ = std::min(count_ + 1, kKept);
  }
  int64_t count() const { return count_; }
  // Of at least one.
  double value() const {
    std::array<double, kKept> sorted = values_;
    const auto middle = sorted.begin() + (count_ - 1) / 2;
    std::nth_element(sorted.begin(), middle, sorted.begin() + count_);
    return *middle;
  }

 private:
  std::array<double, kKept> values_{};
  int64_t next_ = 0, count_ = 0;
};

}  // namespace millrace
