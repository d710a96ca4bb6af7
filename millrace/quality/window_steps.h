#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "millrace/model/step_plan.h"
#include "millrace/quality/text_windows.h"

namespace millrace {

// The steps in which an executor reads the windows of a text: each as full as it may be, with several windows or parts of them. How they
// are cut changes no result (docs/design.md D5).
class WindowSteps {
 public:
  // A step has at most `rows_max` rows, of which at most `outputs_max` are scored; the windows must outlive this. Their tokens are computed
  // as a prompt's, or as if they had been generated (docs/design.md D4).
  WindowSteps(const TextWindows& text, int64_t rows_max, int64_t outputs_max, bool as_generated = false);

  // A scored row: in the order of the plan's outputs, which over all steps is the order of the windows and of their rows.
  struct Row {
    int64_t window, row;
  };

  int64_t num_steps() const { return static_cast<int64_t>(steps_.size()); }
  int64_t num_rows() const { return num_rows_; }  // of all steps together
  std::span<const Row> rows(int64_t step) const;  // that are scored
  std::span<const Row> rows() const { return rows_; }
  int64_t kv_blocks() const { return num_slots_ * blocks_each_; }  // that each KV group needs

  // An id outside of the vocabulary, or a window longer than the model's context, is an error.
  Status check(const ExecutorInfo& info) const;
  void plan(int64_t step, const ExecutorInfo& info, StepPlan& plan) const;

 private:
  struct Piece {
    int64_t window, begin, end;  // rows of the window
  };
  struct Step {
    std::size_t piece_begin, piece_end, row_begin, row_end;
  };

  const TextWindows& text_;
  bool as_generated_;
  std::vector<Piece> pieces_;
  std::vector<Row> rows_;
  std::vector<Step> steps_;
  int64_t num_slots_ = 1;  // windows that one step touches, at most; window w has slot w % num_slots_ of the KV memory
  int64_t blocks_each_ = 0, num_rows_ = 0;
};

}  // namespace millrace
