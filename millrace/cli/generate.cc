#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <random>

#include "millrace/cli/generation_run.h"

namespace millrace::cli {

Result<GenerationRequest> make_request(const Run& run, const std::string& text, const json::array& messages, std::size_t index) {
  MR_ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                      messages.empty() ? run.tokenizer.encode(text) : conversation_tokens(run.model, messages));
  GenerationRequest request = answer_request(std::move(tokens), run.sampling, run.seed + index, run.options);
  request.num_prompt_logprobs = run.options.prompt_logprobs;
  return request;
}

namespace {

// As in an answer of the server: the first token has none, each other one has itself and the likeliest in its place.
json::array prompt_logprobs_json(const Tokenizer& tokenizer, const std::vector<TokenLogprob>& logprobs) {
  json::array all{nullptr};
  for (const TokenLogprob& token : logprobs) {
    json::object ids;
    const auto add = [&](int32_t id, float logprob, int64_t rank) {
      ids.emplace(fmt::format("{}", id),
                  json::object{{"logprob", std::max(logprob, -9999.0f)}, {"rank", rank}, {"decoded_token", tokenizer.token_text(id)}});
    };
    add(token.token_id, token.logprob, token.rank);
    for (std::size_t i = 0; i < token.top_logprobs.size(); ++i) {
      const auto& [id, logprob] = token.top_logprobs[i];
      if (id != token.token_id) add(id, logprob, static_cast<int64_t>(i) + 1);
    }
    all.push_back(std::move(ids));
  }
  return all;
}

}  // namespace

void print_prompt_logprobs(const Tokenizer& tokenizer, const std::vector<TokenLogprob>& logprobs) {
  double sum = 0;
  for (const TokenLogprob& token : logprobs) {
    sum += static_cast<double>(token.logprob);
    fmt::print("{:10.4f}  rank {:<6} {}\n", token.logprob, token.rank, json_text(json::value(tokenizer.token_text(token.token_id))));
  }
  if (!logprobs.empty()) fmt::print("{:10.4f}  mean of {} prompt tokens\n", sum / static_cast<double>(logprobs.size()), logprobs.size());
}

json::object answer_json(const Run& run, std::size_t index, const Completion& done) {
  json::object answer{
      {"index", index},
      {"text", done.text},
      {"finish_reason", finish_reason_name(done.finish_reason)},
      {"usage", json::object{{"prompt_tokens", done.usage.prompt_tokens}, {"completion_tokens", done.usage.completion_tokens}}},
      {"ttft_ms", done.ttft_seconds * 1e3},
      {"seconds", done.seconds}};
  if (run.options.prompt_logprobs >= 0) answer["prompt_logprobs"] = prompt_logprobs_json(run.tokenizer, done.prompt_logprobs);
  return answer;
}

namespace {

// The answer of --prompt, on a terminal as it is made. Before there is any, nothing is printed: it may be refused.
Status answer_prompt(const Run& run) {
  json::array messages;
  if (run.options.chat) messages.push_back(json::object{{"role", "user"}, {"content", *run.options.prompt}});
  MR_ASSIGN_OR_RETURN(GenerationRequest request, make_request(run, *run.options.prompt, messages, 0));
  // What answers a source text does not continue it.
  std::string before = run.options.chat || run.model.network().encoder != nullptr ? "" : *run.options.prompt;
  const auto print_text = [&](std::string_view text) {
    fmt::print("{}{}", std::exchange(before, {}), text);
    std::fflush(stdout);
  };
  MR_ASSIGN_OR_RETURN(const Completion done, complete(run.engine, std::move(request), [&](std::string_view text) {
                        keep_weights(run.model);
                        if (!run.options.json) print_text(text);
                      }));
  if (run.options.json) {
    fmt::print("{}\n", json_text(answer_json(run, 0, done)));
    return Status::ok();
  }
  print_text("\n");
  print_prompt_logprobs(run.tokenizer, done.prompt_logprobs);
  const double decode_seconds = done.seconds - done.ttft_seconds;
  fmt::print(stderr, "[{} prompt tokens, {} new; first after {:.0f} ms, then {:.1f} tokens/s; ended by {}]\n", done.usage.prompt_tokens,
             done.usage.completion_tokens, done.ttft_seconds * 1e3,
             decode_seconds > 0 ? static_cast<double>(done.usage.completion_tokens - 1) / decode_seconds : 0.0,
             finish_reason_name(done.finish_reason));
  return Status::ok();
}

Status run_generate(const GenerateOptions& options) {
  MR_RETURN_IF_ERROR(parse_kv_dtype(options.kv_cache_dtype, options.exact).status());
  std::vector<FileLine> lines;
  FinishedLines finished;
  if (!options.prompt) {
    MR_ASSIGN_OR_RETURN(lines, read_file_lines(options.file));
    if (!options.output.empty()) {
      MR_ASSIGN_OR_RETURN(finished, read_finished_lines(options.output));
    }
  }
  MR_ASSIGN_OR_RETURN(auto model, load_model(options, LoadWeights::kPack));
  MR_RETURN_IF_ERROR(model->require_writer());
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model->tokenizer());
  MR_ASSIGN_OR_RETURN(SamplingParams sampling, sampling_params(*model, *tokenizer, options));
  MR_ASSIGN_OR_RETURN(auto running, start_engine(*model, options, options, {}));
  const Run run{options, *model, *tokenizer, *running.engine, std::move(sampling), options.seed ? *options.seed : std::random_device{}()};
  return options.prompt ? answer_prompt(run) : answer_file(run, lines, finished);
}

}  // namespace

void register_generate(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("generate", "Continue prompts");
  auto options = std::make_shared<GenerateOptions>();
  add_model_options(*command, *options);
  add_quantization_options(*command, *options);
  auto* prompt = command->add_option("--prompt", options->prompt, "Text to continue");
  auto* file =
      command
          ->add_option("--file", options->file,
                       "JSON lines, each {\"prompt\": \"...\"}, {\"messages\": [...]} or a request of OpenAI's batch format; answered "
                       "together, printed in order")
          ->check(CLI::ExistingFile);
  command
      ->add_option("--output", options->output,
                   "File for the answers to --file, as JSON lines and as they are finished; what it has already is not made again")
      ->needs(file);
  prompt->excludes(file);
  command
      ->add_option("--prompt-logprobs", options->prompt_logprobs,
                   "Also how likely the prompt's tokens are: each one's log probability and rank, with --json the K likeliest too")
      ->type_name("K")
      ->check(CLI::Range(0, 1000));
  auto* packing =
      command
          ->add_option(
              "--batch-prompting", options->batch_prompting,
              "Put K questions of --file in one prompt: {\"messages\"} lines that differ in the user's last message only. Answers are "
              "split again, and what cannot be is asked alone")
          ->type_name("K")
          ->check(CLI::Range(1, 64))
          ->needs(file);
  command
      ->add_flag("--compare-alone", options->compare_alone,
                 "Ask every question alone as well, and report the agreement, the tokens and the time of both")
      ->needs(packing);
  command->add_flag("--chat", options->chat, "--prompt is a user's message: apply the chat template");
  add_answer_options(*command, *options);
  add_generation_options(*command, *options);
  command->footer(
      "Examples:\n  millrace generate model.gguf --prompt 'Once upon a time' --max-tokens 64\n"
      "  millrace generate model.gguf --chat --prompt 'Explain gravity in one sentence.' --temperature 0\n"
      "  millrace generate model.gguf --file prompts.jsonl --json > answers.jsonl\n"
      "  millrace generate model.gguf --file batch.jsonl --output answers.jsonl\n"
      "  millrace generate model.gguf --file questions.jsonl --batch-prompting 8 --temperature 0 --compare-alone");
  command->callback([options, &exit_status] {
    if (!options->prompt && options->file.empty()) {
      exit_status = fail(Status::invalid_argument("generate needs --prompt or --file"));
      return;
    }
    if (const Status status = run_generate(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
