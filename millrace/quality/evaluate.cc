#include "millrace/quality/evaluate.h"

#include <fmt/format.h>

#include <algorithm>

#include "millrace/sampling/softmax.h"

namespace millrace {
namespace {

Status allocate_kv(Executor& executor, const WindowSteps& steps) {
  return executor.allocate_kv(std::vector<int64_t>(executor.info().kv_groups.size(), steps.kv_blocks()));
}

class ExecutorReference final : public Reference {
 public:
  explicit ExecutorReference(Executor& executor) : executor_(executor) {}
  int64_t vocab_size() const override { return executor_.info().vocab_size; }

  Status begin(const WindowSteps& steps) override {
    MR_RETURN_IF_ERROR(steps.check(executor_.info()));
    return allocate_kv(executor_, steps);
  }
  void compute(const WindowSteps& steps, int64_t step) override {
    steps.plan(step, executor_.info(), plan_);
    executor_.enqueue(plan_);
    output_ = &executor_.wait();
  }
  Result<ReferenceRow> row(int64_t output, int64_t index, std::span<float>) const override {
    const std::span<const float> logits = output_->logits_of(output, vocab_size());
    if (!all_finite(logits)) return Status::data_loss(fmt::format("the reference's prediction {} is not finite", index));
    return ReferenceRow{logits, false};
  }

 private:
  Executor& executor_;
  StepPlan plan_;
  const StepOutput* output_ = nullptr;
};

class FileReference final : public Reference {
 public:
  explicit FileReference(const LogitsFile& file) : file_(file) {}
  int64_t vocab_size() const override { return file_.vocab_size(); }
  Status begin(const WindowSteps& steps) override {
    MR_CHECK(static_cast<int64_t>(steps.rows().size()) == file_.text().num_scored(), "the windows are the file's");
    return Status::ok();
  }
  void compute(const WindowSteps&, int64_t) override {}
  Result<ReferenceRow> row(int64_t, int64_t index, std::span<float> scratch) const override { return file_.row(index, scratch); }

 private:
  const LogitsFile& file_;
};

}  // namespace

std::unique_ptr<Reference> reference_from(Executor& executor) { return std::make_unique<ExecutorReference>(executor); }
std::unique_ptr<Reference> reference_from(const LogitsFile& file) { return std::make_unique<FileReference>(file); }

Result<Evaluation> evaluate(Executor& executor, const TextWindows& text, ThreadPool& pool, const EvaluateOptions& options) {
  const int64_t vocab_size = executor.info().vocab_size;
  Reference* const reference = options.reference;
  if (reference != nullptr && reference->vocab_size() != vocab_size) {
    return Status::invalid_argument(
        fmt::format("the reference predicts {} tokens, the model {}: they have no common vocabulary", reference->vocab_size(), vocab_size));
  }
  const int64_t logits_bytes = vocab_size * static_cast<int64_t>(sizeof(float));
  const WindowSteps steps(text, options.rows_max, std::max<int64_t>(options.logits_bytes_max / logits_bytes, 1), options.as_generated);
  MR_RETURN_IF_ERROR(steps.check(executor.info()));
  MR_RETURN_IF_ERROR(allocate_kv(executor, steps));
  if (reference != nullptr) MR_RETURN_IF_ERROR(reference->begin(steps));

  const std::size_t num_scored = steps.rows().size();
  Evaluation evaluation;
  evaluation.nll.resize(num_scored);
  std::vector<RowDivergence> divergences(reference != nullptr ? num_scored : 0);
  std::vector<Status> failures(static_cast<std::size_t>(pool.num_threads()));
  std::vector<std::vector<float>> scratch(failures.size(),
                                          std::vector<float>(reference != nullptr ? static_cast<std::size_t>(vocab_size) : 0));
  std::vector<std::byte> encoded;
  StepPlan plan;
  int64_t first = 0, rows_done = 0;  // scored rows, and rows, of the steps before
  for (int64_t step = 0; step < steps.num_steps(); ++step) {
    steps.plan(step, executor.info(), plan);
    executor.enqueue(plan);
    const StepOutput& output = executor.wait();
    if (reference != nullptr) reference->compute(steps, step);
    const std::span<const WindowSteps::Row> rows = steps.rows(step);
    const std::size_t row_bytes = options.writer != nullptr ? static_cast<std::size_t>(options.writer->row_bytes()) : 0;
    encoded.resize(rows.size() * row_bytes);
    pool.run_chunks(static_cast<int64_t>(rows.size()), [&](int64_t i, int worker) {
      const auto [window, row] = rows[static_cast<std::size_t>(i)];
      const auto index = static_cast<std::size_t>(first + i);
      const std::span<const float> logits = output.logits_of(i, vocab_size);
      Status& failure = failures[static_cast<std::size_t>(worker)];
      if (!all_finite(logits)) {
        failure = Status::data_loss(fmt::format("window {}: the logits after its token {} are not finite", window, row));
        return;
      }
      const int32_t target = text.target(text.windows[static_cast<std::size_t>(window)], row);
      if (reference != nullptr) {
        const auto judge = reference->row(i, first + i, scratch[static_cast<std::size_t>(worker)]);
        if (!judge.is_ok()) {
          failure = judge.status();
          return;
        }
        divergences[index] = compare_rows(*judge, logits, target);
        evaluation.nll[index] = divergences[index].nll;
        if (i == 0 && first == 0) evaluation.log_prob_difference = judge->log_probs;
      } else {
        evaluation.nll[index] = negative_log_likelihood(logits, target);
      }
      if (row_bytes > 0) options.writer->encode(logits, std::span(encoded).subspan(static_cast<std::size_t>(i) * row_bytes, row_bytes));
    });
    for (const Status& failure : failures) MR_RETURN_IF_ERROR(failure);
    if (options.writer != nullptr) MR_RETURN_IF_ERROR(options.writer->write(encoded));
    first += static_cast<int64_t>(rows.size());
    rows_done += static_cast<int64_t>(plan.tokens.size());
    if (options.on_progress) options.on_progress(static_cast<double>(rows_done) / static_cast<double>(steps.num_rows()));
  }
  if (options.writer != nullptr) MR_RETURN_IF_ERROR(options.writer->finish());
  for (const RowDivergence& row : divergences) {
    evaluation.reference_nll.push_back(row.reference_nll);
    evaluation.kl.push_back(row.kl);
    evaluation.num_same_top += row.same_top;
    evaluation.max_difference = std::max(evaluation.max_difference, row.max_difference);
  }
  return evaluation;
}

}  // namespace millrace
