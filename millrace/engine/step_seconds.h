#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace millrace {

// What a step takes by its number of rows, learned from the steps themselves: the median of the last few of each number, straight lines
// between numbers, and a little beyond them an optimistic guess, so that what was never tried is tried. Old times are forgotten: contexts
// and other load change.
class StepSeconds {
 public:
  static constexpr int64_t kRowsMax = 128;

  void observe(int64_t rows, double seconds);
  // Absent before anything was observed, for far more rows than were, and for more than kRowsMax.
  std::optional<double> estimate(int64_t rows) const;

 private:
  static constexpr int64_t kKept = 5, kStepsOfMany = 512;
  struct Times {
    std::array<double, kKept> seconds{};
    int64_t count = 0, next = 0, last_step = 0;
  };
  bool is_fresh(const Times& times) const;
  double median(int64_t rows) const;

  std::array<Times, kRowsMax + 1> by_rows_;
  int64_t num_steps_ = 0;
};

}  // namespace millrace
