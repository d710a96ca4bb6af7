#include "millrace/model/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "millrace/model/sequence_runner.h"
#include "millrace/model/verify_fields.h"

namespace millrace {
namespace {

struct ReferencePrompt {
  std::string name;
  std::vector<int32_t> ids, greedy;
  std::vector<std::pair<int32_t, double>> top;
  std::vector<double> first, logprobs, margins;
  std::optional<double> l2;
};

Result<ReferencePrompt> read_prompt(const json::value& value, std::size_t index) {
  if (!value.is_object()) return Status::invalid_argument("reference: \"prompts\" holds something that is no object");
  const json::object& object = value.as_object();
  ReferencePrompt prompt;
  const json::value* name = object.if_contains("name");
  prompt.name = name != nullptr && name->is_string() ? std::string(name->as_string()) : fmt::format("prompt {}", index + 1);
  MR_ASSIGN_OR_RETURN(const json::value* ids, reference_field(object, "ids"));
  MR_ASSIGN_OR_RETURN(prompt.ids, reference_token_ids(*ids, "ids"));
  if (prompt.ids.empty()) return Status::invalid_argument("reference: a prompt without ids");
  MR_ASSIGN_OR_RETURN(const json::value* last, reference_field(object, "last_logits"));
  if (!last->is_object()) return Status::invalid_argument("reference: \"last_logits\" is no object");
  if (const json::value* top = last->as_object().if_contains("top20"); top != nullptr && top->is_array()) {
    for (const json::value& pair : top->as_array()) {
      MR_ASSIGN_OR_RETURN(auto both, reference_numbers(pair, "top20"));
      if (both.size() != 2 || both[0] < 0 || both[0] > INT32_MAX)
        return Status::invalid_argument("reference: \"top20\" holds something other than [id, logit]");
      prompt.top.emplace_back(static_cast<int32_t>(both[0]), both[1]);
    }
  }
  if (const json::value* first = last->as_object().if_contains("first16")) {
    MR_ASSIGN_OR_RETURN(prompt.first, reference_numbers(*first, "first16"));
  }
  if (prompt.top.empty() && prompt.first.empty()) {
    return Status::invalid_argument(
        fmt::format("reference: \"last_logits\" of {} has neither \"top20\" nor \"first16\": there is nothing to compare", prompt.name));
  }
  if (const json::value* l2 = last->as_object().if_contains("l2"); l2 != nullptr && l2->is_number()) prompt.l2 = l2->to_number<double>();
  if (const json::value* list = object.if_contains("prompt_logprobs")) {
    MR_ASSIGN_OR_RETURN(prompt.logprobs, reference_numbers(*list, "prompt_logprobs"));
  }
  if (const json::value* list = object.if_contains("greedy")) {
    MR_ASSIGN_OR_RETURN(prompt.greedy, reference_token_ids(*list, "greedy"));
  }
  if (const json::value* list = object.if_contains("greedy_margins")) {
    MR_ASSIGN_OR_RETURN(prompt.margins, reference_numbers(*list, "greedy_margins"));
  }
  return prompt;
}

double log_sum_exp(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - top);
  return top + std::log(sum);
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// What one path computes for one prompt: every position's logits, and the greedy continuation.
struct PathOutput {
  std::vector<std::vector<float>> logits;  // [prompt tokens][vocab_size]
  std::vector<int32_t> greedy;
  std::vector<double> margins;  // of the first over the second, at each greedy step
};

constexpr int32_t kChunk = 64;

Result<PathOutput> run_path(SequenceRunner& runner, const ReferencePrompt& prompt) {
  PathOutput out;
  const auto num_tokens = static_cast<int64_t>(prompt.ids.size() + prompt.greedy.size());
  runner.reset(num_tokens, static_cast<int64_t>(prompt.ids.size()));
  MR_RETURN_IF_ERROR(runner.append(prompt.ids, kChunk, true,
                                   [&](int64_t, std::span<const float> logits) { out.logits.emplace_back(logits.begin(), logits.end()); }));
  std::vector<float> current = out.logits.back();
  for (std::size_t i = 0; i < prompt.greedy.size(); ++i) {
    const int32_t best = argmax(current);
    float second = -INFINITY;
    for (std::size_t id = 0; id < current.size(); ++id) {
      if (static_cast<int32_t>(id) != best) second = std::max(second, current[id]);
    }
    out.greedy.push_back(best);
    out.margins.push_back(current[static_cast<std::size_t>(best)] - second);
    // The reference's token goes in, not ours: one disagreement says nothing about the steps after it.
    if (i + 1 < prompt.greedy.size()) {
      MR_RETURN_IF_ERROR(runner.append({&prompt.greedy[i], 1}, kChunk, false,
                                       [&](int64_t, std::span<const float> logits) { current.assign(logits.begin(), logits.end()); }));
    }
  }
  return out;
}

void compare_exact(const ReferencePrompt& reference, const PathOutput& exact, const VerifyTolerance& tolerance, VerifyPrompt& result) {
  const auto& last = exact.logits.back();
  const auto fail = [&](std::string message) { result.failures.push_back("exact path: " + std::move(message)); };
  const auto check_logit = [&](int64_t id, double want) {
    const double difference = id < static_cast<int64_t>(last.size()) ? std::abs(last[static_cast<std::size_t>(id)] - want) : INFINITY;
    if (!(difference <= tolerance.exact_logit) && result.logit_difference <= tolerance.exact_logit) {
      fail(fmt::format("position {}: logit of token {} is {:.6f}, the reference has {:.6f} (difference {:.6f}, tolerance {})",
                       reference.ids.size() - 1, id, id < static_cast<int64_t>(last.size()) ? last[static_cast<std::size_t>(id)] : NAN,
                       want, difference, tolerance.exact_logit));
    }
    result.logit_difference = std::isnan(difference) ? INFINITY : std::max(result.logit_difference, difference);
  };
  for (const auto& [id, want] : reference.top) check_logit(id, want);
  for (std::size_t i = 0; i < reference.first.size(); ++i) check_logit(static_cast<int64_t>(i), reference.first[i]);
  if (reference.l2) {
    double sum = 0;
    for (float logit : last) sum += static_cast<double>(logit) * logit;
    const double relative = std::abs(std::sqrt(sum) - *reference.l2) / std::max(*reference.l2, 1e-9);
    if (!(relative <= 1e-4))
      fail(fmt::format("position {}: the logits' L2 norm is {:.6f}, the reference has {:.6f}", reference.ids.size() - 1, std::sqrt(sum),
                       *reference.l2));
  }
  for (std::size_t i = 0; i < reference.logprobs.size() && i + 1 < reference.ids.size(); ++i) {
    const double got = exact.logits[i][static_cast<std::size_t>(reference.ids[i + 1])] - log_sum_exp(exact.logits[i]);
    const double difference = std::abs(got - reference.logprobs[i]);
    if (!(difference <= tolerance.exact_logit) && result.logprob_difference <= tolerance.exact_logit) {
      fail(fmt::format("position {}: log p(next token) is {:.6f}, the reference has {:.6f} (difference {:.6f}, tolerance {})", i, got,
                       reference.logprobs[i], difference, tolerance.exact_logit));
    }
    result.logprob_difference = std::isnan(difference) ? INFINITY : std::max(result.logprob_difference, difference);
  }
  result.greedy_total = static_cast<int64_t>(reference.greedy.size());
  while (result.greedy_equal < result.greedy_total &&
         exact.greedy[static_cast<std::size_t>(result.greedy_equal)] == reference.greedy[static_cast<std::size_t>(result.greedy_equal)]) {
    ++result.greedy_equal;
  }
  if (result.greedy_equal < result.greedy_total) {
    const auto i = static_cast<std::size_t>(result.greedy_equal);
    fail(fmt::format("greedy token {} is {}, the reference has {}", i, exact.greedy[i], reference.greedy[i]));
  }
}

void compare_fast(const ReferencePrompt& reference, const PathOutput& exact, const PathOutput& fast, const VerifyTolerance& tolerance,
                  VerifyPrompt& result) {
  double kl_sum = 0, difference_sum = 0, norm_sum = 0, worst_relative = -1;
  int64_t top1 = 0;
  std::size_t worst = 0;
  for (std::size_t position = 0; position < exact.logits.size(); ++position) {
    const auto &e = exact.logits[position], &f = fast.logits[position];
    const double e_norm = log_sum_exp(e), f_norm = log_sum_exp(f);
    double difference = 0, norm = 0, kl = 0;
    for (std::size_t i = 0; i < e.size(); ++i) {
      const double d = static_cast<double>(f[i]) - e[i];
      difference += d * d;
      norm += static_cast<double>(e[i]) * e[i];
      result.fast_logit_error = std::max(result.fast_logit_error, std::abs(d));
      kl += std::exp(e[i] - e_norm) * ((e[i] - e_norm) - (f[i] - f_norm));
    }
    kl_sum += kl;
    top1 += argmax(e) == argmax(f);
    const double relative = std::sqrt(difference / std::max(norm, 1e-30));
    if (!(relative <= worst_relative)) {
      worst_relative = relative;
      worst = position;
    }
    difference_sum += difference;
    norm_sum += norm;
  }
  const auto count = static_cast<double>(exact.logits.size());
  result.fast_relative_l2 = std::sqrt(difference_sum / std::max(norm_sum, 1e-30));
  result.fast_kl = kl_sum / count;
  result.fast_top1 = static_cast<double>(top1) / count;
  if (!(result.fast_relative_l2 <= tolerance.fast_relative_l2)) {
    result.failures.push_back(fmt::format("fast path: relative L2 error {:.5f}, tolerance {} (worst at position {}: {:.5f})",
                                          result.fast_relative_l2, tolerance.fast_relative_l2, worst, worst_relative));
  }
  if (!(result.fast_kl <= tolerance.fast_kl)) {
    result.failures.push_back(fmt::format("fast path: mean KL divergence {:.6f}, tolerance {}", result.fast_kl, tolerance.fast_kl));
  }
  while (result.fast_greedy_equal < result.greedy_total && fast.greedy[static_cast<std::size_t>(result.fast_greedy_equal)] ==
                                                               reference.greedy[static_cast<std::size_t>(result.fast_greedy_equal)]) {
    ++result.fast_greedy_equal;
  }
  if (result.fast_greedy_equal < result.greedy_total) {
    const auto i = static_cast<std::size_t>(result.fast_greedy_equal);
    result.fast_first_margin = i < reference.margins.size() ? reference.margins[i] : exact.margins[i];
    result.fast_greedy_excused = false;
  }
}

// A greedy step may differ where the two best logits are closer than twice the error that the path was seen to have, on all prompts: of one
// token's logits alone it says little.
void excuse_near_ties(std::vector<VerifyPrompt>& prompts) {
  double error = 0;
  for (const VerifyPrompt& prompt : prompts) error = std::max(error, prompt.fast_logit_error);
  for (VerifyPrompt& prompt : prompts) {
    if (prompt.fast_greedy_excused) continue;
    prompt.fast_greedy_excused = prompt.fast_first_margin <= 2 * error;
    if (prompt.fast_greedy_excused) continue;
    prompt.failures.push_back(fmt::format(
        "fast path: greedy token {} is not the reference's, which has it by a margin of {:.4f}, above twice the largest logit error {:.4f}",
        prompt.fast_greedy_equal, prompt.fast_first_margin, error));
  }
}

}  // namespace

VerifyTolerance default_tolerance(bool int8_activations, KvDType kv_dtype, bool has_mixture) {
  // Measured on the tiny random models of tests/golden, whose logits are noisier than a trained model's (docs/verify.md).
  VerifyTolerance tolerance;
  tolerance.fast_relative_l2 = int8_activations || kv_dtype == KvDType::kInt8 ? 0.06f : 0.02f;
  tolerance.fast_kl = int8_activations || kv_dtype == KvDType::kInt8 ? 0.02f : 0.002f;
  if (has_mixture) {
    tolerance.fast_relative_l2 = std::max(tolerance.fast_relative_l2, 0.1f);
    tolerance.fast_kl = std::max(tolerance.fast_kl, 0.01f);
  }
  return tolerance;
}

bool VerifyReport::passed() const {
  const auto fine = [](const auto& part) { return part.failures.empty(); };
  return std::all_of(prompts.begin(), prompts.end(), fine) && std::all_of(texts.begin(), texts.end(), fine);
}

Result<VerifyReport> verify_reference(const json::value& reference, const MakeExecutor& make_executor, const VerifyTolerance& tolerance) {
  if (!reference.is_object()) return Status::invalid_argument("reference: is no JSON object");
  if (const json::value* kind = reference.as_object().if_contains("kind");
      kind != nullptr && (!kind->is_string() || kind->as_string() != "decoder")) {
    if (kind->is_string() && (kind->as_string() == "encoder" || kind->as_string() == "classify"))
      return verify_encoder(reference.as_object(), make_executor, tolerance);
    return Status::unsupported(
        fmt::format("reference: kind is {}, only \"decoder\", \"encoder\" and \"classify\" can be verified", json::serialize(*kind)));
  }
  // Where the reference rounds activations too (int8, fp8), it also says what the weights alone give: that is what both paths are held to,
  // since they round activations in their own, finer way or not at all.
  const bool weight_only = reference.as_object().contains("prompts_weight_only");
  MR_ASSIGN_OR_RETURN(const json::value* list, reference_field(reference.as_object(), weight_only ? "prompts_weight_only" : "prompts"));
  if (!list->is_array() || list->as_array().empty()) return Status::invalid_argument("reference: \"prompts\" is no list of prompts");
  std::vector<ReferencePrompt> prompts;
  int64_t longest = 0;
  for (const json::value& value : list->as_array()) {
    MR_ASSIGN_OR_RETURN(auto prompt, read_prompt(value, prompts.size()));
    longest = std::max(longest, static_cast<int64_t>(prompt.ids.size() + prompt.greedy.size()));
    prompts.push_back(std::move(prompt));
  }
  MR_ASSIGN_OR_RETURN(auto exact_executor, make_executor(GemmPath::kExact, kChunk));
  MR_ASSIGN_OR_RETURN(auto fast_executor, make_executor(GemmPath::kFast, kChunk));
  if (exact_executor->info().is_encoder) return Status::invalid_argument("reference: kind is \"decoder\", the model is an encoder");
  MR_ASSIGN_OR_RETURN(auto exact_runner, SequenceRunner::create(*exact_executor, longest));
  MR_ASSIGN_OR_RETURN(auto fast_runner, SequenceRunner::create(*fast_executor, longest));
  VerifyReport report;
  for (const ReferencePrompt& prompt : prompts) {
    MR_ASSIGN_OR_RETURN(const auto exact, run_path(exact_runner, prompt));
    MR_ASSIGN_OR_RETURN(const auto fast, run_path(fast_runner, prompt));
    VerifyPrompt result;
    result.name = prompt.name;
    result.num_tokens = static_cast<int64_t>(prompt.ids.size());
    compare_exact(prompt, exact, tolerance, result);
    compare_fast(prompt, exact, fast, tolerance, result);
    report.prompts.push_back(std::move(result));
  }
  excuse_near_ties(report.prompts);
  return report;
}

}  // namespace millrace
