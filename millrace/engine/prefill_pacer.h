#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "millrace/engine/step_seconds.h"

namespace millrace {

// How many rows of prompts a step may have beside the rows that decode, so that a step takes about as long as asked for: who decodes then
// gets a token that often, whatever prompts arrive. Pure: times come in as arguments. It moves work between steps only, and results do not
// depend on how a prompt is cut (docs/design.md D5).
//
// What a step takes is taken to be what its decodes take alone, which steps without prompts have shown, and so much for each row of a
// prompt as the last steps with prompts have shown. Contexts grow and load changes: old times go.
//
// Not handled: what a step costs more because it has rows of a prompt at all, however few. Where that alone passes the target, pieces
// shrink to a row or two, and a prompt gets much less than a quarter of its rate. Costs time, never correctness.
class PrefillPacer {
 public:
  // `rows_max`: what a step has room for.
  PrefillPacer(double target_seconds, int64_t rows_max) : target_seconds_(target_seconds), rows_max_(rows_max) {}

  void observe(int64_t decode_rows, int64_t prefill_rows, double seconds);
  // At least 1. Everything where nobody decodes. Where decodes alone take most of the target or more, as many rows as take a third of their
  // time: a quarter of the rate that a prompt has alone, if each of its rows costs as much as any other.
  int64_t rows(int64_t decode_rows) const;

 private:
  static constexpr int64_t kKept = 5, kFirstRows = 16;

  double seconds_of(int64_t decode_rows) const;

  double target_seconds_;
  int64_t rows_max_;
  StepSeconds decode_seconds_;
  std::array<double, kKept> row_seconds_{};
  int64_t num_seen_ = 0, last_rows_ = kFirstRows;
};

}  // namespace millrace
