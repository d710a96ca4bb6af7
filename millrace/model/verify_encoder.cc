// Encoders against their reference: every text's last hidden state and output, on both paths.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "millrace/model/verify_fields.h"

namespace millrace {
namespace {

struct ReferenceText {
  std::string name;
  std::vector<int32_t> ids, types;
  const json::object* fields = nullptr;
};

Result<ReferenceText> read_text(const json::value& value, std::size_t index) {
  if (!value.is_object()) return Status::invalid_argument("reference: \"results\" holds something that is no object");
  ReferenceText text;
  text.name = fmt::format("text {}", index + 1);
  text.fields = &value.as_object();
  MR_ASSIGN_OR_RETURN(const json::value* ids, reference_field(*text.fields, "ids"));
  MR_ASSIGN_OR_RETURN(text.ids, reference_token_ids(*ids, "ids"));
  if (text.ids.empty()) return Status::invalid_argument("reference: a text without ids");
  if (const json::value* types = text.fields->if_contains("token_type_ids"); types != nullptr && !types->is_null()) {
    MR_ASSIGN_OR_RETURN(text.types, reference_token_ids(*types, "token_type_ids"));
    if (text.types.size() != text.ids.size()) return Status::invalid_argument("reference: \"token_type_ids\" is not as long as \"ids\"");
  } else {
    text.types.assign(text.ids.size(), 0);
  }
  return text;
}

Status check_texts(const std::vector<ReferenceText>& texts, const ExecutorInfo& info) {
  if (!info.is_encoder) return Status::invalid_argument("reference: is of an encoder, the model is a decoder");
  for (const ReferenceText& text : texts) {
    if (static_cast<int64_t>(text.ids.size()) > info.max_positions) {
      return Status::invalid_argument(
          fmt::format("reference: {} has {} tokens, the model's longest text is {}", text.name, text.ids.size(), info.max_positions));
    }
    for (std::size_t i = 0; i < text.ids.size(); ++i) {
      if (text.ids[i] >= info.vocab_size)
        return Status::invalid_argument(
            fmt::format("reference: token id {} is outside the vocabulary [0, {})", text.ids[i], info.vocab_size));
      if (text.types[i] >= std::max<int64_t>(1, info.num_token_types)) {
        return Status::invalid_argument(fmt::format("reference: token type {}, the model has {}", text.types[i], info.num_token_types));
      }
    }
  }
  return Status::ok();
}

// What one path computes for a text.
struct TextOutput {
  int64_t hidden_size = 0;
  std::vector<float> hidden;  // [num_tokens, hidden_size]
  std::vector<float> output;  // [output_size]

  std::span<const float> row(std::size_t r) const {
    return std::span(hidden).subspan(r * static_cast<std::size_t>(hidden_size), static_cast<std::size_t>(hidden_size));
  }
  std::size_t num_rows() const { return hidden.size() / static_cast<std::size_t>(hidden_size); }
};

// All texts in one step: what a text's tokens see is its own.
std::vector<TextOutput> run_texts(Executor& executor, const std::vector<ReferenceText>& texts) {
  StepPlan plan;
  for (const ReferenceText& text : texts) {
    const auto begin = static_cast<int32_t>(plan.tokens.size());
    plan.tokens.insert(plan.tokens.end(), text.ids.begin(), text.ids.end());
    plan.token_types.insert(plan.token_types.end(), text.types.begin(), text.types.end());
    plan.sequences.push_back({.row_begin = begin, .row_end = static_cast<int32_t>(plan.tokens.size())});
    plan.outputs.push_back({begin, nullptr});
  }
  executor.enqueue(plan);
  const StepOutput& step = executor.wait();
  std::vector<TextOutput> outputs;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    TextOutput output{.hidden_size = executor.info().hidden_size};
    for (int32_t row = plan.sequences[i].row_begin; row < plan.sequences[i].row_end; ++row) {
      const auto numbers =
          step.hidden.subspan(static_cast<std::size_t>(row * step.hidden_stride), static_cast<std::size_t>(output.hidden_size));
      output.hidden.insert(output.hidden.end(), numbers.begin(), numbers.end());
    }
    const auto result = step.logits_of(static_cast<int64_t>(i), executor.info().output_size);
    output.output.assign(result.begin(), result.end());
    outputs.push_back(std::move(output));
  }
  return outputs;
}

double length(std::span<const double> numbers) {
  double sum = 0;
  for (const double x : numbers) sum += x * x;
  return std::sqrt(sum);
}

std::vector<double> mean_row(const TextOutput& text) {
  std::vector<double> mean(static_cast<std::size_t>(text.hidden_size));
  for (std::size_t r = 0; r < text.num_rows(); ++r) {
    for (std::size_t i = 0; i < mean.size(); ++i) mean[i] += text.row(r)[i];
  }
  for (double& x : mean) x /= static_cast<double>(text.num_rows());
  return mean;
}

// One text of the reference against the exact path. What a file does not have is not compared.
class ExactComparison {
 public:
  ExactComparison(const ReferenceText& reference, const TextOutput& exact, const VerifyTolerance& tolerance, VerifyText& result)
      : reference_(reference), exact_(exact), tolerance_(tolerance), result_(result) {}

  Status run() {
    const auto wide = [](std::span<const float> row) { return std::vector<double>(row.begin(), row.end()); };
    const std::vector<double> mean = mean_row(exact_);
    std::vector<double> unit = mean;
    for (double& x : unit) x /= std::max(length(mean), 1e-12);
    MR_RETURN_IF_ERROR(compare("cls_first16", wide(exact_.row(0))));
    MR_RETURN_IF_ERROR(compare("last_token_first16", wide(exact_.row(exact_.num_rows() - 1))));
    MR_RETURN_IF_ERROR(compare("mean_pooled_first16", mean));
    MR_RETURN_IF_ERROR(compare("mean_pooled_normalised_first16", unit));
    MR_RETURN_IF_ERROR(compare("embedding", wide(exact_.output)));
    MR_RETURN_IF_ERROR(compare("logits", wide(exact_.output)));
    const std::vector<double> hidden = wide(exact_.hidden);
    compare_length("last_hidden_l2", length(hidden));
    compare_length("mean_pooled_l2", length(mean));
    if (num_compared_ > 0) return Status::ok();
    return Status::invalid_argument(
        fmt::format("reference: {} has none of the fields that docs/verify.md lists: there is nothing to compare", reference_.name));
  }

 private:
  void fail(std::string message) { result_.failures.push_back("exact path: " + std::move(message)); }

  Status compare(const char* name, const std::vector<double>& got) {
    const json::value* value = reference_.fields->if_contains(name);
    if (value == nullptr || value->is_null()) return Status::ok();
    MR_ASSIGN_OR_RETURN(const std::vector<double> want, reference_numbers(*value, name));
    if (want.size() > got.size())
      return Status::invalid_argument(fmt::format("reference: \"{}\" has {} numbers, the model has {}", name, want.size(), got.size()));
    ++num_compared_;
    double worst = -1;
    std::size_t at = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      const double difference = std::abs(got[i] - want[i]);
      if (!(difference <= worst)) worst = difference, at = i;
    }
    result_.difference = std::isnan(worst) ? INFINITY : std::max(result_.difference, worst);
    if (!(worst <= tolerance_.exact_logit)) {
      fail(fmt::format("\"{}\": number {} is {:.6f}, the reference has {:.6f} (tolerance {})", name, at, got[at], want[at],
                       tolerance_.exact_logit));
    }
    return Status::ok();
  }

  void compare_length(const char* name, double got) {
    const json::value* value = reference_.fields->if_contains(name);
    if (value == nullptr || !value->is_number()) return;
    ++num_compared_;
    const double want = value->to_number<double>();
    if (!(std::abs(got - want) <= 1e-4 * std::max(want, 1e-9)))
      fail(fmt::format("\"{}\" is {:.6f}, the reference has {:.6f}", name, got, want));
  }

  const ReferenceText& reference_;
  const TextOutput& exact_;
  const VerifyTolerance& tolerance_;
  VerifyText& result_;
  int num_compared_ = 0;
};

double relative_error(const std::vector<float>& fast, const std::vector<float>& exact) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    difference += (static_cast<double>(fast[i]) - exact[i]) * (static_cast<double>(fast[i]) - exact[i]);
    norm += static_cast<double>(exact[i]) * exact[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double product = 0, a_norm = 0, b_norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    product += static_cast<double>(a[i]) * b[i];
    a_norm += static_cast<double>(a[i]) * a[i];
    b_norm += static_cast<double>(b[i]) * b[i];
  }
  return product / std::max(std::sqrt(a_norm * b_norm), 1e-30);
}

}  // namespace

Result<VerifyReport> verify_encoder(const json::object& reference, const MakeExecutor& make_executor, const VerifyTolerance& tolerance) {
  MR_ASSIGN_OR_RETURN(const json::value* list, reference_field(reference, "results"));
  if (!list->is_array() || list->as_array().empty()) return Status::invalid_argument("reference: \"results\" is no list of texts");
  std::vector<ReferenceText> texts;
  int64_t num_tokens = 0;
  for (const json::value& value : list->as_array()) {
    MR_ASSIGN_OR_RETURN(ReferenceText text, read_text(value, texts.size()));
    num_tokens += static_cast<int64_t>(text.ids.size());
    texts.push_back(std::move(text));
  }
  constexpr int64_t kTokensMax = 1 << 16;
  if (num_tokens > kTokensMax)
    return Status::invalid_argument(fmt::format("reference: {} token ids in all, expected at most {}", num_tokens, kTokensMax));
  MR_ASSIGN_OR_RETURN(const auto exact_executor, make_executor(GemmPath::kExact, static_cast<int32_t>(num_tokens)));
  MR_RETURN_IF_ERROR(check_texts(texts, exact_executor->info()));
  MR_ASSIGN_OR_RETURN(const auto fast_executor, make_executor(GemmPath::kFast, static_cast<int32_t>(num_tokens)));
  const std::vector<TextOutput> exact = run_texts(*exact_executor, texts), fast = run_texts(*fast_executor, texts);
  VerifyReport report;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    VerifyText result;
    result.name = texts[i].name;
    result.num_tokens = static_cast<int64_t>(texts[i].ids.size());
    MR_RETURN_IF_ERROR(ExactComparison(texts[i], exact[i], tolerance, result).run());
    result.fast_relative_l2 = relative_error(fast[i].hidden, exact[i].hidden);
    result.fast_cosine = cosine(fast[i].output, exact[i].output);
    if (!(result.fast_relative_l2 <= tolerance.fast_relative_l2)) {
      result.failures.push_back(fmt::format("fast path: relative L2 error of the last hidden state {:.5f}, tolerance {}",
                                            result.fast_relative_l2, tolerance.fast_relative_l2));
    }
    // Two vectors whose difference is e of their length have a cosine of at least sqrt(1 - e^2); pooling and dense layers make an error no
    // larger than three times that of the rows.
    const double cosine_min = 1 - 4.5 * tolerance.fast_relative_l2 * tolerance.fast_relative_l2;
    if (!(result.fast_cosine >= cosine_min)) {
      result.failures.push_back(fmt::format("fast path: cosine of the output with the exact path's {:.6f}, expected at least {:.6f}",
                                            result.fast_cosine, cosine_min));
    }
    report.texts.push_back(std::move(result));
  }
  return report;
}

}  // namespace millrace
