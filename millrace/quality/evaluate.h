#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "millrace/base/thread_pool.h"
#include "millrace/model/step_plan.h"
#include "millrace/quality/divergence.h"
#include "millrace/quality/logits_file.h"
#include "millrace/quality/text_windows.h"
#include "millrace/quality/window_steps.h"

// How well a model predicts a text, and how far its predictions are from a reference's.
namespace millrace {

// Where the reference's predictions come from: computed in the same steps, or read from a file.
class Reference {
 public:
  virtual ~Reference() = default;
  virtual int64_t vocab_size() const = 0;
  virtual Status begin(const WindowSteps& steps) = 0;
  virtual void compute(const WindowSteps& steps, int64_t step) = 0;
  // Row `output` of the step that was computed last, row `index` of all. Thread-safe; scratch is [vocab_size] and the thread's own.
  virtual Result<ReferenceRow> row(int64_t output, int64_t index, std::span<float> scratch) const = 0;
};
// The executor must have no KV memory yet. It and the file must outlive the reference.
std::unique_ptr<Reference> reference_from(Executor& executor);
std::unique_ptr<Reference> reference_from(const LogitsFile& file);

struct EvaluateOptions {
  int64_t rows_max = 1024;                        // of a step: no more than the executors were made for
  int64_t logits_bytes_max = int64_t{256} << 20;  // of a step's scored rows; at least one row is scored
  bool as_generated = false;  // computes the tokens as generated ones, which may differ from a prompt's (docs/design.md D4)
  Reference* reference = nullptr;
  LogitsWriter* writer = nullptr;                 // gets the model's predictions
  std::function<void(double share)> on_progress;  // after each step: share of all rows that are done
};

struct Evaluation {
  std::vector<double> nll;  // [num_scored] of each target, in the windows' order
  // With a reference:
  std::vector<double> reference_nll, kl;  // [num_scored]
  int64_t num_same_top = 0;
  double max_difference = 0;  // of a logit, or of a log-probability where the reference has those
  bool log_prob_difference = false;
};

// Reads the windows and scores them. The executor must have no KV memory yet. Errors: windows or tokens that do not fit the model,
// another vocabulary in the reference, predictions that are not finite, a file that cannot be written.
Result<Evaluation> evaluate(Executor& executor, const TextWindows& text, ThreadPool& pool, const EvaluateOptions& options);

}  // namespace millrace
