#pragma once

#include <array>
#include <cstdint>

#include "millrace/engine/step_seconds.h"

namespace millrace {

// How many rows of prompts a step may have beside the rows that decode, so that a step takes about as long as asked for: who decodes then
// gets a token that often, whatever prompts arrive. Pure: times come in as arguments. It moves work between steps only, and results do not
// depend on how a prompt is cut (docs/design.md D5).
//
// What a step takes is taken to be a straight line: what its decodes take alone, which steps without prompts have shown; so much because
// it has rows of a prompt at all (where prompts are computed in another way than single tokens, the weights are read twice); and so much
// for each row. The last two are fitted to the last steps with prompts, of which one in a few is made shorter so that there is a line to
// see. Contexts grow and load changes: old times go.
class PrefillPacer {
 public:
  // `rows_max`: what a step has room for.
  PrefillPacer(double target_seconds, int64_t rows_max) : target_seconds_(target_seconds), rows_max_(rows_max) {}

  void observe(int64_t decode_rows, int64_t prefill_rows, double seconds);
  // At least 1. Everything where nobody decodes. Where what a step takes without the rows is most of the target or more, as many rows as
  // take a third of that: a quarter of the rate that a prompt has alone.
  int64_t rows(int64_t decode_rows) const;

 private:
  static constexpr int64_t kKept = 12, kFirstRows = 16, kShorterEvery = 4;

  struct Mixed {
    double rows, seconds;  // of prompts; what the step took beyond its decodes
  };
  struct Line {
    double fixed, row;  // seconds
  };

  double seconds_of(int64_t decode_rows) const;
  Line fit() const;

  double target_seconds_;
  int64_t rows_max_;
  StepSeconds decode_seconds_;
  std::array<Mixed, kKept> mixed_{};
  int64_t num_seen_ = 0, most_rows_ = kFirstRows;
};

}  // namespace millrace
