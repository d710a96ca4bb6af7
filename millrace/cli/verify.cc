#include "millrace/model/verify.h"

#include <fmt/format.h>

#include "millrace/base/mapped_file.h"
#include "millrace/cli/command.h"

namespace millrace::cli {
namespace {

struct VerifyOptions : ModelOptions {
  std::string reference;
  std::string kv_cache_dtype = "auto";
  std::optional<double> exact_tolerance, fast_l2, fast_kl;
};

json::object to_json(const VerifyPrompt& prompt) {
  json::array failures;
  for (const std::string& failure : prompt.failures) failures.emplace_back(failure);
  return {{"name", prompt.name},
          {"num_tokens", prompt.num_tokens},
          {"exact", json::object{{"encoder_difference", prompt.encoder_difference},
                                 {"logit_difference", prompt.logit_difference},
                                 {"logprob_difference", prompt.logprob_difference},
                                 {"greedy_equal", prompt.greedy_equal},
                                 {"greedy_total", prompt.greedy_total}}},
          {"fast", json::object{{"relative_l2", prompt.fast_relative_l2},
                                {"kl", prompt.fast_kl},
                                {"top1_agreement", prompt.fast_top1},
                                {"greedy_equal", prompt.fast_greedy_equal},
                                {"first_differing_margin", prompt.fast_first_margin}}},
          {"failures", std::move(failures)}};
}

json::object to_json(const VerifyText& text) {
  json::array failures;
  for (const std::string& failure : text.failures) failures.emplace_back(failure);
  return {{"name", text.name},
          {"num_tokens", text.num_tokens},
          {"exact", json::object{{"difference", text.difference}}},
          {"fast", json::object{{"relative_l2", text.fast_relative_l2}, {"cosine", text.fast_cosine}}},
          {"failures", std::move(failures)}};
}

void print_texts(const VerifyReport& report, const VerifyTolerance& tolerance) {
  fmt::print("{:<24} {:>6}  {:>14}   {:>9} {:>11}\n", "text", "tokens", "max difference", "fast L2", "fast cosine");
  for (const VerifyText& text : report.texts) {
    fmt::print("{:<24} {:>6}  {:>14.2e}   {:>9.5f} {:>11.6f}\n", text.name.substr(0, 24), text.num_tokens, text.difference,
               text.fast_relative_l2, text.fast_cosine);
  }
  for (const VerifyText& text : report.texts) {
    for (const std::string& failure : text.failures) fmt::print("FAILED {}: {}\n", text.name, failure);
  }
  fmt::print("{}: exact path within {} of the reference, fast path within L2 {} of the exact path\n", report.passed() ? "passed" : "FAILED",
             tolerance.exact_logit, tolerance.fast_relative_l2);
}

void print_text(const VerifyReport& report, const VerifyTolerance& tolerance) {
  if (!report.texts.empty()) return print_texts(report, tolerance);
  fmt::print("{:<24} {:>6}  {:>11} {:>11} {:>7}   {:>9} {:>10} {:>6} {:>7}\n", "prompt", "tokens", "max dlogit", "max dlogp", "exact",
             "fast L2", "fast KL", "top-1", "fast");
  for (const VerifyPrompt& prompt : report.prompts) {
    fmt::print("{:<24} {:>6}  {:>11.2e} {:>11.2e} {:>3}/{:<3}   {:>9.5f} {:>10.6f} {:>6.3f} {:>3}/{:<3}\n", prompt.name.substr(0, 24),
               prompt.num_tokens, prompt.logit_difference, prompt.logprob_difference, prompt.greedy_equal, prompt.greedy_total,
               prompt.fast_relative_l2, prompt.fast_kl, prompt.fast_top1, prompt.fast_greedy_equal, prompt.greedy_total);
  }
  fmt::print("(exact, fast: leading greedy tokens equal to the reference's)\n");
  for (const VerifyPrompt& prompt : report.prompts) {
    if (prompt.fast_greedy_equal < prompt.greedy_total && prompt.fast_greedy_excused) {
      fmt::print("{}: the fast path's first differing token is a near tie, allowed: the reference's margin there is {:.3f}\n", prompt.name,
                 prompt.fast_first_margin);
    }
    for (const std::string& failure : prompt.failures) fmt::print("FAILED {}: {}\n", prompt.name, failure);
  }
  fmt::print("{}: exact path within {} of the reference, fast path within L2 {} and KL {} of the exact path\n",
             report.passed() ? "passed" : "FAILED", tolerance.exact_logit, tolerance.fast_relative_l2, tolerance.fast_kl);
}

Result<bool> run_verify(const VerifyOptions& options) {
  MR_ASSIGN_OR_RETURN(const std::string text, read_text_file(options.reference));
  const auto reference = parse_json(text);
  if (!reference.is_ok()) return reference.status().with_context(options.reference);
  MR_ASSIGN_OR_RETURN(auto model, load_model(options, LoadWeights::kPack));
  MR_ASSIGN_OR_RETURN(const KvDType kv_dtype, parse_kv_dtype(options.kv_cache_dtype));
  bool int8_activations = false;
  for (std::size_t i = 0; i < model->weights().size(); ++i) {
    int8_activations |=
        activation_form(model->weights()[static_cast<WeightId>(i)].weight_class(), model->isa(), GemmPath::kFast) == ActivationForm::kInt8;
  }
  VerifyTolerance tolerance =
      default_tolerance(int8_activations, kv_dtype, model->network().has_mixture(), has_unscaled_scores(model->network()));
  if (options.exact_tolerance) tolerance.exact_logit = static_cast<float>(*options.exact_tolerance);
  if (options.fast_l2) tolerance.fast_relative_l2 = static_cast<float>(*options.fast_l2);
  if (options.fast_kl) tolerance.fast_kl = static_cast<float>(*options.fast_kl);
  const auto make_executor = [&](GemmPath path, int32_t max_rows) -> Result<std::unique_ptr<Executor>> {
    MR_ASSIGN_OR_RETURN(auto executor, model->make_executor(path, path == GemmPath::kExact ? KvDType::kF32 : kv_dtype, max_rows));
    return std::unique_ptr<Executor>(std::move(executor));
  };
  auto report = verify_reference(*reference, make_executor, tolerance);
  if (!report.is_ok()) return report.status().with_context(options.reference);
  if (options.json) {
    json::array prompts, texts;
    for (const VerifyPrompt& prompt : report->prompts) prompts.push_back(to_json(prompt));
    for (const VerifyText& verified : report->texts) texts.push_back(to_json(verified));
    json::object answer{{"model", options.model},
                        {"isa", isa_name(model->isa())},
                        {"kv_cache_dtype", kv_dtype_name(kv_dtype)},
                        {"passed", report->passed()}};
    const bool of_texts = !report->texts.empty();
    answer[of_texts ? "texts" : "prompts"] = of_texts ? std::move(texts) : std::move(prompts);
    fmt::print("{}\n", json_text(answer));
  } else {
    print_text(*report, tolerance);
  }
  return report->passed();
}

}  // namespace

void register_verify(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("verify", "Compare with a reference file: exact and fast path, logits and greedy text");
  auto options = std::make_shared<VerifyOptions>();
  add_model_options(*command, *options);
  add_quantization_options(*command, *options);
  command->add_option("--reference", options->reference, "Reference file, as tools/make_reference.py writes it")
      ->required()
      ->check(CLI::ExistingFile);
  add_kv_dtype_option(*command, options->kv_cache_dtype, "Of the fast path");
  command->add_option("--exact-tolerance", options->exact_tolerance,
                      "Largest difference of a logit or log-probability on the exact path; default 1e-3");
  command->add_option("--fast-l2", options->fast_l2, "Largest relative L2 error of a position's logits on the fast path");
  command->add_option("--fast-kl", options->fast_kl, "Largest mean KL divergence of the fast path");
  command->footer("Exit status 1 when something is beyond tolerance.\nExample:\n  millrace verify ./model --reference golden.json");
  command->callback([options, &exit_status] {
    const auto passed = run_verify(*options);
    exit_status = !passed.is_ok() ? fail(passed.status()) : *passed ? kDone : kCheckFailed;
  });
}

}  // namespace millrace::cli
