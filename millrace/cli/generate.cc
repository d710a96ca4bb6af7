#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <random>
#include <sstream>

#include "millrace/base/mapped_file.h"
#include "millrace/cli/conversation.h"

namespace millrace::cli {
namespace {

struct GenerateOptions : ModelOptions, GenerationOptions {
  std::optional<std::string> prompt;
  std::string file;
  bool chat = false;
  int prompt_logprobs = -1;  // -1: none
};

struct Prompt {
  std::string text;      // of a completion
  json::array messages;  // of a chat
  std::string place;     // "prompts.jsonl, line 3"; empty: from the command line
};

// Fields of an HTTP request would otherwise be taken for heard.
Status check_fields(const json::object& line, std::string_view place) {
  for (const auto& field : line) {
    const std::string_view name(field.key().data(), field.key().size());
    if (name == "prompt" || name == "messages") continue;
    return Status::invalid_argument(
        fmt::format("{}: unrecognized field \"{}\", expected \"prompt\" or \"messages\"; options such as --max-tokens are for all lines",
                    place, name.substr(0, 50)));
  }
  return Status::ok();
}

// One JSON object a line: {"prompt": "..."} or {"messages": [...]}.
Result<std::vector<Prompt>> read_prompts(const GenerateOptions& options) {
  std::vector<Prompt> prompts;
  if (options.prompt) {
    Prompt prompt;
    if (options.chat) {
      prompt.messages.push_back(json::object{{"role", "user"}, {"content", *options.prompt}});
    } else {
      prompt.text = *options.prompt;
    }
    prompts.push_back(std::move(prompt));
    return prompts;
  }
  MR_ASSIGN_OR_RETURN(const std::string text, read_text_file(options.file));
  std::istringstream lines(text);
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto value = parse_json(line);
    const std::string place = fmt::format("{}, line {}", options.file, number);
    if (!value.is_ok()) return value.status().with_context(place);
    const json::object* object = value->if_object();
    if (object != nullptr) MR_RETURN_IF_ERROR(check_fields(*object, place));
    const json::value* prompt = object != nullptr ? object->if_contains("prompt") : nullptr;
    const json::value* messages = object != nullptr ? object->if_contains("messages") : nullptr;
    if (prompt != nullptr && prompt->is_string() && messages == nullptr) {
      prompts.push_back({std::string(prompt->as_string()), {}, place});
    } else if (messages != nullptr && messages->is_array() && prompt == nullptr) {
      prompts.push_back({"", messages->as_array(), place});
    } else {
      return Status::invalid_argument(fmt::format("{}: expected {{\"prompt\": \"...\"}} or {{\"messages\": [...]}}", place));
    }
  }
  if (prompts.empty()) return Status::invalid_argument(fmt::format("{}: holds no prompt", options.file));
  return prompts;
}

// What all answers of a run share.
struct Run {
  const GenerateOptions& options;
  LoadedModel& model;
  const Tokenizer& tokenizer;
  Engine& engine;
  SamplingParams sampling;
  uint64_t seed;
};

Result<GenerationRequest> make_request(const Run& run, const Prompt& prompt, std::size_t index) {
  MR_ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                      prompt.messages.empty() ? run.tokenizer.encode(prompt.text) : conversation_tokens(run.model, prompt.messages));
  GenerationRequest request = answer_request(std::move(tokens), run.sampling, run.seed + index, run.options);
  request.num_prompt_logprobs = run.options.prompt_logprobs;
  return request;
}

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

void print_prompt_logprobs(const Tokenizer& tokenizer, const std::vector<TokenLogprob>& logprobs) {
  double sum = 0;
  for (const TokenLogprob& token : logprobs) {
    sum += static_cast<double>(token.logprob);
    fmt::print("{:10.4f}  rank {:<6} {}\n", token.logprob, token.rank, json_text(json::value(tokenizer.token_text(token.token_id))));
  }
  if (!logprobs.empty()) fmt::print("{:10.4f}  mean of {} prompt tokens\n", sum / static_cast<double>(logprobs.size()), logprobs.size());
}

void print_json(const Run& run, std::size_t index, const Completion& done) {
  json::object answer{
      {"index", index},
      {"text", done.text},
      {"finish_reason", finish_reason_name(done.finish_reason)},
      {"usage", json::object{{"prompt_tokens", done.usage.prompt_tokens}, {"completion_tokens", done.usage.completion_tokens}}},
      {"ttft_ms", done.ttft_seconds * 1e3},
      {"seconds", done.seconds}};
  if (run.options.prompt_logprobs >= 0) answer["prompt_logprobs"] = prompt_logprobs_json(run.tokenizer, done.prompt_logprobs);
  fmt::print("{}\n", json_text(answer));
}

// The answer of --prompt, on a terminal as it is made. Before there is any, nothing is printed: it may be refused.
Status answer_prompt(const Run& run, const Prompt& prompt) {
  MR_ASSIGN_OR_RETURN(GenerationRequest request, make_request(run, prompt, 0));
  std::string before = prompt.text;
  const auto print_text = [&](std::string_view text) {
    fmt::print("{}{}", std::exchange(before, {}), text);
    std::fflush(stdout);
  };
  MR_ASSIGN_OR_RETURN(const Completion done, complete(run.engine, std::move(request), [&](std::string_view text) {
                        keep_weights(run.model);
                        if (!run.options.json) print_text(text);
                      }));
  if (run.options.json) {
    print_json(run, 0, done);
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

// Answers of a file while they are made. The engine's thread writes them, and may do so after a printing that failed: shared.
struct Answers {
  struct Answer {
    std::chrono::steady_clock::time_point start;
    Completion completion;
    Status error;
    bool finished = false;
  };

  explicit Answers(std::size_t count) : answers(count) {}

  void finish(Answer& answer) {
    answer.finished = true;
    ++num_finished;
    changed.notify_one();
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Answer> answers;
  std::size_t num_finished = 0;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void take_delta(Answers& answers, std::size_t index, OutputDelta& delta) {
  const std::lock_guard lock(answers.mutex);
  Answers::Answer& answer = answers.answers[index];
  Completion& completion = answer.completion;
  if (completion.text.empty() && !delta.text.empty()) completion.ttft_seconds = seconds_since(answer.start);
  completion.text += delta.text;
  completion.usage = delta.usage;
  if (!delta.prompt_logprobs.empty()) completion.prompt_logprobs = std::move(delta.prompt_logprobs);
  if (delta.finish_reason) completion.finish_reason = *delta.finish_reason;
  if (!delta.error.is_ok()) answer.error = delta.error;
  if (!delta.request_finished) return;
  completion.seconds = seconds_since(answer.start);
  answers.finish(answer);
}

// Prints what is finished, in the order of the prompts, as far as no earlier answer is missing.
class AnswerPrinter {
 public:
  AnswerPrinter(const Run& run, const std::vector<Prompt>& prompts, Answers& answers) : run_(run), prompts_(prompts), answers_(answers) {}

  std::size_t num_printed() const { return next_; }
  std::size_t num_failed() const { return num_failed_; }

  void print_ready() {
    for (; next_ < prompts_.size(); ++next_) {
      Answers::Answer answer;
      {
        const std::lock_guard lock(answers_.mutex);
        if (!answers_.answers[next_].finished) break;
        answer = std::move(answers_.answers[next_]);
        answers_.answers[next_].finished = true;
      }
      print(answer);
    }
    std::fflush(stdout);
  }

 private:
  void print(const Answers::Answer& answer) {
    if (!answer.error.is_ok()) {
      ++num_failed_;
      fail(answer.error.with_context(prompts_[next_].place));
      if (run_.options.json) fmt::print("{}\n", json_text(json::object{{"index", next_}, {"error", answer.error.message()}}));
      return;
    }
    keep_weights(run_.model);
    if (run_.options.json) {
      print_json(run_, next_, answer.completion);
    } else {
      fmt::print("[{}] {}\n", next_, answer.completion.text);
      print_prompt_logprobs(run_.tokenizer, answer.completion.prompt_logprobs);
    }
  }

  const Run& run_;
  const std::vector<Prompt>& prompts_;
  Answers& answers_;
  std::size_t next_ = 0, num_failed_ = 0;
};

// Every prompt is in the engine at once, as far as its queue holds them, so that they are batched; answers are printed in order. A prompt
// that cannot be answered does not keep the others from it.
Status answer_file(const Run& run, const std::vector<Prompt>& prompts) {
  const auto answers = std::make_shared<Answers>(prompts.size());
  AnswerPrinter printer(run, prompts, *answers);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto request = make_request(run, prompts[i], i);
    Status refused = request.is_ok() ? Status::ok() : request.status();
    while (request.is_ok()) {
      std::unique_lock lock(answers->mutex);
      answers->answers[i].start = std::chrono::steady_clock::now();
      const std::size_t num_finished = answers->num_finished;
      lock.unlock();
      refused = run.engine.add(*request, [answers, i](OutputDelta& delta) { take_delta(*answers, i, delta); }).status();
      if (refused.code() != StatusCode::kResourceExhausted || num_finished == i) break;
      // The queue is full: one of those in it ends first.
      lock.lock();
      answers->changed.wait(lock, [&] { return answers->num_finished != num_finished; });
      lock.unlock();
      printer.print_ready();
    }
    if (!refused.is_ok()) {
      const std::lock_guard lock(answers->mutex);
      answers->answers[i].error = refused;
      answers->finish(answers->answers[i]);
    }
    printer.print_ready();
  }
  while (printer.num_printed() < prompts.size()) {
    std::unique_lock lock(answers->mutex);
    answers->changed.wait(lock, [&] { return answers->answers[printer.num_printed()].finished; });
    lock.unlock();
    printer.print_ready();
  }
  if (printer.num_failed() == 0) return Status::ok();
  return Status::unavailable(fmt::format("{}: {} of {} prompts have no answer", run.options.file, printer.num_failed(), prompts.size()));
}

Status run_generate(const GenerateOptions& options) {
  MR_RETURN_IF_ERROR(parse_kv_dtype(options.kv_cache_dtype, options.exact).status());
  MR_ASSIGN_OR_RETURN(const auto prompts, read_prompts(options));
  MR_ASSIGN_OR_RETURN(auto model, load_decoder(options));
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model->tokenizer());
  MR_ASSIGN_OR_RETURN(SamplingParams sampling, sampling_params(*model, *tokenizer, options));
  MR_ASSIGN_OR_RETURN(auto running, start_engine(*model, options, {}));
  const Run run{options, *model, *tokenizer, *running.engine, std::move(sampling), options.seed ? *options.seed : std::random_device{}()};
  return options.prompt ? answer_prompt(run, prompts[0]) : answer_file(run, prompts);
}

}  // namespace

void register_generate(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("generate", "Continue prompts");
  auto options = std::make_shared<GenerateOptions>();
  add_model_options(*command, *options);
  add_quantization_options(*command, *options);
  auto* prompt = command->add_option("--prompt", options->prompt, "Text to continue");
  auto* file = command
                   ->add_option("--file", options->file,
                                "JSON lines, each {\"prompt\": \"...\"} or {\"messages\": [...]}; answered together, printed in order")
                   ->check(CLI::ExistingFile);
  prompt->excludes(file);
  command
      ->add_option("--prompt-logprobs", options->prompt_logprobs,
                   "Also how likely the prompt's tokens are: each one's log probability and rank, with --json the K likeliest too")
      ->type_name("K")
      ->check(CLI::Range(0, 1000));
  command->add_flag("--chat", options->chat, "--prompt is a user's message: apply the chat template");
  add_answer_options(*command, *options);
  add_generation_options(*command, *options);
  command->footer(
      "Examples:\n  millrace generate model.gguf --prompt 'Once upon a time' --max-tokens 64\n"
      "  millrace generate model.gguf --chat --prompt 'Explain gravity in one sentence.' --temperature 0\n"
      "  millrace generate model.gguf --file prompts.jsonl --json > answers.jsonl");
  command->callback([options, &exit_status] {
    if (!options->prompt && options->file.empty()) {
      exit_status = fail(Status::invalid_argument("generate needs --prompt or --file"));
      return;
    }
    if (const Status status = run_generate(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
