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
  // Of an encoder-decoder: the text that `ids`, one token, begin to answer, and what the encoder makes of its first and last token.
  std::vector<int32_t> source;
  std::vector<double> hidden_first, hidden_last;
  std::optional<double> hidden_l2;
  std::vector<std::pair<int32_t, double>> top;
  std::vector<double> first, logprobs, margins;
  std::optional<double> l2;
};

// `ids` as they were read are the source text's.
Status read_source(const json::object& object, ReferencePrompt& prompt) {
  prompt.source = std::move(prompt.ids);
  MR_ASSIGN_OR_RETURN(const json::value* start, reference_field(object, "decoder_start_token_id"));
  MR_ASSIGN_OR_RETURN(prompt.ids, reference_token_ids(json::array{*start}, "decoder_start_token_id"));
  MR_ASSIGN_OR_RETURN(const json::value* hidden, reference_field(object, "encoder_last_hidden"));
  if (!hidden->is_object()) return Status::invalid_argument("reference: \"encoder_last_hidden\" is no object");
  const json::object& rows = hidden->as_object();
  MR_ASSIGN_OR_RETURN(const json::value* first, reference_field(rows, "first_token_first16"));
  MR_ASSIGN_OR_RETURN(prompt.hidden_first, reference_numbers(*first, "first_token_first16"));
  MR_ASSIGN_OR_RETURN(const json::value* last, reference_field(rows, "last_token_first16"));
  MR_ASSIGN_OR_RETURN(prompt.hidden_last, reference_numbers(*last, "last_token_first16"));
  if (const json::value* l2 = rows.if_contains("l2"); l2 != nullptr && l2->is_number()) prompt.hidden_l2 = l2->to_number<double>();
  return Status::ok();
}

Result<ReferencePrompt> read_prompt(const json::value& value, std::size_t index, bool answers_source) {
  if (!value.is_object()) return Status::invalid_argument("reference: \"prompts\" holds something that is no object");
  const char* logits_name = answers_source ? "first_step_logits" : "last_logits";
  const json::object& object = value.as_object();
  ReferencePrompt prompt;
  const json::value* name = object.if_contains("name");
  prompt.name = name != nullptr && name->is_string() ? std::string(name->as_string()) : fmt::format("prompt {}", index + 1);
  MR_ASSIGN_OR_RETURN(const json::value* ids, reference_field(object, "ids"));
  MR_ASSIGN_OR_RETURN(prompt.ids, reference_token_ids(*ids, "ids"));
  if (prompt.ids.empty()) return Status::invalid_argument("reference: a prompt without ids");
  if (answers_source) MR_RETURN_IF_ERROR(read_source(object, prompt));
  MR_ASSIGN_OR_RETURN(const json::value* last, reference_field(object, logits_name));
  if (!last->is_object()) return Status::invalid_argument(fmt::format("reference: \"{}\" is no object", logits_name));
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
    return Status::invalid_argument(fmt::format(
        "reference: \"{}\" of {} has neither \"top20\" nor \"first16\": there is nothing to compare", logits_name, prompt.name));
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
  std::vector<float> hidden;    // of an encoder-decoder: the encoder's last hidden states, [source tokens, hidden_size]
};

constexpr int32_t kChunk = 64;

Result<PathOutput> run_path(Executor& executor, SequenceRunner& runner, const ReferencePrompt& prompt) {
  PathOutput out;
  const auto num_tokens = static_cast<int64_t>(prompt.ids.size() + prompt.greedy.size());
  if (prompt.source.empty()) {
    runner.reset(num_tokens, static_cast<int64_t>(prompt.ids.size()));
  } else {
    MR_RETURN_IF_ERROR(runner.reset_with_source(prompt.source, num_tokens, static_cast<int64_t>(prompt.ids.size())));
  }
  MR_RETURN_IF_ERROR(runner.append(prompt.ids, kChunk, true,
                                   [&](int64_t, std::span<const float> logits) { out.logits.emplace_back(logits.begin(), logits.end()); }));
  const StepOutput& step = executor.wait();
  for (std::size_t row = 0; row < prompt.source.size(); ++row) {
    const auto numbers =
        step.hidden.subspan(row * static_cast<std::size_t>(step.hidden_stride), static_cast<std::size_t>(executor.info().hidden_size));
    out.hidden.insert(out.hidden.end(), numbers.begin(), numbers.end());
  }
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

// The encoder of both paths.
void compare_encoder(const ReferencePrompt& reference, const PathOutput& exact, const PathOutput& fast, const VerifyTolerance& tolerance,
                     VerifyPrompt& result) {
  const std::size_t rows = reference.source.size(), size = exact.hidden.size() / rows;
  double exact_sum = 0, difference_sum = 0;
  for (std::size_t i = 0; i < exact.hidden.size(); ++i) {
    exact_sum += static_cast<double>(exact.hidden[i]) * exact.hidden[i];
    difference_sum += (static_cast<double>(fast.hidden[i]) - exact.hidden[i]) * (static_cast<double>(fast.hidden[i]) - exact.hidden[i]);
  }
  const auto compare = [&](std::size_t row, const std::vector<double>& want) {
    for (std::size_t i = 0; i < want.size(); ++i) {
      const double difference = i < size ? std::abs(exact.hidden[row * size + i] - want[i]) : INFINITY;
      if (!(difference <= tolerance.exact_logit) && result.encoder_difference <= tolerance.exact_logit) {
        result.failures.push_back(
            fmt::format("exact path: encoder, token {}: number {} of the last hidden state differs by {:.6f}, tolerance {}", row, i,
                        difference, tolerance.exact_logit));
      }
      result.encoder_difference = std::isnan(difference) ? INFINITY : std::max(result.encoder_difference, difference);
    }
  };
  compare(0, reference.hidden_first);
  compare(rows - 1, reference.hidden_last);
  if (reference.hidden_l2 && !(std::abs(std::sqrt(exact_sum) - *reference.hidden_l2) <= 1e-4 * std::max(*reference.hidden_l2, 1e-9))) {
    result.failures.push_back(fmt::format("exact path: encoder: the last hidden states' L2 norm is {:.6f}, the reference has {:.6f}",
                                          std::sqrt(exact_sum), *reference.hidden_l2));
  }
  const double relative = std::sqrt(difference_sum / std::max(exact_sum, 1e-30));
  if (!(relative <= tolerance.fast_relative_l2)) {
    result.failures.push_back(fmt::format("fast path: encoder: relative L2 error of the last hidden states {:.5f}, tolerance {}", relative,
                                          tolerance.fast_relative_l2));
  }
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

bool has_unscaled_scores(const Network& network) {
  return std::any_of(network.layers.begin(), network.layers.end(),
                     [](const DecoderLayer& layer) { return layer.attention.scale >= 1 && layer.attention.head_dim > 1; });
}

VerifyTolerance default_tolerance(bool int8_activations, KvDType kv_dtype, bool has_mixture, bool unscaled_scores) {
  // Measured on the tiny random models of tests/golden, whose logits are noisier than a trained model's (docs/verify.md).
  // fp8's steps are four times int8's, relative to a head's values: errors are four times as large, divergences up to sixteen times.
  VerifyTolerance tolerance;
  if (kv_dtype == KvDType::kFp8E4M3) {
    tolerance.fast_relative_l2 = has_mixture ? 0.2f : 0.12f;
    tolerance.fast_kl = 0.04f;
    if (unscaled_scores) tolerance.fast_relative_l2 *= 4, tolerance.fast_kl *= 25;
    return tolerance;
  }
  if (kv_dtype == KvDType::kInt4) {
    // No more where scores are unscaled: whether 16 steps do for such a network is what is to be found out.
    tolerance.fast_relative_l2 = has_mixture ? 0.4f : 0.35f;
    tolerance.fast_kl = 0.3f;
    return tolerance;
  }
  const bool int8 = int8_activations || kv_dtype == KvDType::kInt8;
  tolerance.fast_relative_l2 = int8 ? 0.06f : 0.02f;
  tolerance.fast_kl = int8 ? 0.02f : 0.002f;
  if (has_mixture) {
    tolerance.fast_relative_l2 = std::max(tolerance.fast_relative_l2, 0.1f);
    tolerance.fast_kl = std::max(tolerance.fast_kl, 0.01f);
  }
  if (unscaled_scores) tolerance.fast_relative_l2 *= 2, tolerance.fast_kl *= 4;
  return tolerance;
}

bool VerifyReport::passed() const {
  const auto fine = [](const auto& part) { return part.failures.empty(); };
  return std::all_of(prompts.begin(), prompts.end(), fine) && std::all_of(texts.begin(), texts.end(), fine);
}

Result<VerifyReport> verify_reference(const json::value& reference, const MakeExecutor& make_executor, const VerifyTolerance& tolerance) {
  if (!reference.is_object()) return Status::invalid_argument("reference: is no JSON object");
  const json::value* kind = reference.as_object().if_contains("kind");
  const bool answers_source = kind != nullptr && kind->is_string() && kind->as_string() == "seq2seq";
  if (kind != nullptr && !answers_source && (!kind->is_string() || kind->as_string() != "decoder")) {
    if (kind->is_string() && (kind->as_string() == "encoder" || kind->as_string() == "classify"))
      return verify_encoder(reference.as_object(), make_executor, tolerance);
    return Status::unsupported(fmt::format(
        "reference: kind is {}, only \"decoder\", \"seq2seq\", \"encoder\" and \"classify\" can be verified", json::serialize(*kind)));
  }
  // Where the reference rounds activations too (int8, fp8), it also says what the weights alone give: that is what both paths are held to,
  // since they round activations in their own, finer way or not at all.
  const bool weight_only = reference.as_object().contains("prompts_weight_only");
  const char* list_name = answers_source ? "results" : weight_only ? "prompts_weight_only" : "prompts";
  MR_ASSIGN_OR_RETURN(const json::value* list, reference_field(reference.as_object(), list_name));
  if (!list->is_array() || list->as_array().empty())
    return Status::invalid_argument(fmt::format("reference: \"{}\" is no list of prompts", list_name));
  std::vector<ReferencePrompt> prompts;
  int64_t longest = 0;
  for (const json::value& value : list->as_array()) {
    MR_ASSIGN_OR_RETURN(auto prompt, read_prompt(value, prompts.size(), answers_source));
    longest = std::max(longest, static_cast<int64_t>(std::max(prompt.ids.size() + prompt.greedy.size(), prompt.source.size())));
    prompts.push_back(std::move(prompt));
  }
  MR_ASSIGN_OR_RETURN(auto exact_executor, make_executor(GemmPath::kExact, kChunk));
  MR_ASSIGN_OR_RETURN(auto fast_executor, make_executor(GemmPath::kFast, kChunk));
  if (exact_executor->info().is_encoder) return Status::invalid_argument("reference: kind is \"decoder\", the model is an encoder");
  if (exact_executor->info().start_tokens.empty() == answers_source) {
    return Status::invalid_argument(fmt::format("reference: kind is \"{}\", the model is {}", answers_source ? "seq2seq" : "decoder",
                                                answers_source ? "a decoder" : "an encoder-decoder"));
  }
  MR_ASSIGN_OR_RETURN(auto exact_runner, SequenceRunner::create(*exact_executor, longest));
  MR_ASSIGN_OR_RETURN(auto fast_runner, SequenceRunner::create(*fast_executor, longest));
  VerifyReport report;
  for (const ReferencePrompt& prompt : prompts) {
    MR_ASSIGN_OR_RETURN(const auto exact, run_path(*exact_executor, exact_runner, prompt));
    MR_ASSIGN_OR_RETURN(const auto fast, run_path(*fast_executor, fast_runner, prompt));
    VerifyPrompt result;
    result.name = prompt.name;
    result.num_tokens = static_cast<int64_t>(answers_source ? prompt.source.size() : prompt.ids.size());
    if (answers_source) compare_encoder(prompt, exact, fast, tolerance, result);
    compare_exact(prompt, exact, tolerance, result);
    compare_fast(prompt, exact, fast, tolerance, result);
    report.prompts.push_back(std::move(result));
  }
  excuse_near_ties(report.prompts);
  return report;
}

}  // namespace millrace
