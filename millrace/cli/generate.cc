#include <fmt/format.h>

#include <cstdio>
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
};

struct Prompt {
  std::string text;          // of a completion
  json::array messages;      // of a chat
};

// Fields of an HTTP request would otherwise be taken for heard.
Status check_fields(const json::object& line, std::string_view place) {
  for (const auto& field : line) {
    const std::string_view name(field.key().data(), field.key().size());
    if (name == "prompt" || name == "messages") continue;
    return Status::invalid_argument(
        fmt::format("{}: unrecognized field \"{}\", expected \"prompt\" or \"messages\"; options such as --max-tokens are for all lines", place, name.substr(0, 50)));
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
      prompts.push_back({std::string(prompt->as_string()), {}});
    } else if (messages != nullptr && messages->is_array() && prompt == nullptr) {
      prompts.push_back({"", messages->as_array()});
    } else {
      return Status::invalid_argument(fmt::format("{}: expected {{\"prompt\": \"...\"}} or {{\"messages\": [...]}}", place));
    }
  }
  if (prompts.empty()) return Status::invalid_argument(fmt::format("{}: holds no prompt", options.file));
  return prompts;
}

// Every prompt is in the engine at once, so that they are batched; answers are printed in order.
Status run_generate(const GenerateOptions& options) {
  MR_ASSIGN_OR_RETURN(const auto prompts, read_prompts(options));
  MR_ASSIGN_OR_RETURN(auto model, load_decoder(options));
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model->tokenizer());
  MR_ASSIGN_OR_RETURN(auto running, start_engine(*model, options, {}));

  const uint64_t seed = options.seed ? *options.seed : std::random_device{}();
  std::vector<Result<Completion>> completions(prompts.size(), Status::internal("was not run"));
  const auto run_one = [&](std::size_t i, const std::function<void(std::string_view)>& on_text) -> Result<Completion> {
    GenerationRequest request;
    if (prompts[i].messages.empty()) {
      MR_ASSIGN_OR_RETURN(request.prompt_tokens, tokenizer->encode(prompts[i].text));
    } else {
      MR_ASSIGN_OR_RETURN(request.prompt_tokens, conversation_tokens(*model, prompts[i].messages));
    }
    request.sampling = sampling_params(*model, options);
    request.seed = seed + i;
    request.max_tokens = options.max_tokens;
    request.stop = options.stop;
    return complete(*running.engine, std::move(request), on_text);
  };
  const auto print_json = [&](std::size_t i, const Completion& done) {
    fmt::print("{}\n", json::serialize(json::object{{"index", i},
                                                    {"text", done.text},
                                                    {"finish_reason", finish_reason_name(done.finish_reason)},
                                                    {"usage", json::object{{"prompt_tokens", done.usage.prompt_tokens}, {"completion_tokens", done.usage.completion_tokens}}},
                                                    {"ttft_ms", done.ttft_seconds * 1e3},
                                                    {"seconds", done.seconds}}));
    std::fflush(stdout);
  };
  if (prompts.size() == 1) {
    if (!options.json && !options.chat && prompts[0].messages.empty()) fmt::print("{}", prompts[0].text);
    MR_ASSIGN_OR_RETURN(const Completion done, run_one(0, [&](std::string_view text) {
                          keep_weights(*model);
                          if (options.json) return;
                          fmt::print("{}", text);
                          std::fflush(stdout);
                        }));
    if (options.json) {
      print_json(0, done);
    } else {
      fmt::print("\n");
      std::fflush(stdout);
      const double decode_seconds = done.seconds - done.ttft_seconds;
      fmt::print(stderr, "[{} prompt tokens, {} new; first after {:.0f} ms, then {:.1f} tokens/s; ended by {}]\n", done.usage.prompt_tokens, done.usage.completion_tokens,
                 done.ttft_seconds * 1e3, decode_seconds > 0 ? static_cast<double>(done.usage.completion_tokens - 1) / decode_seconds : 0.0, finish_reason_name(done.finish_reason));
    }
    return Status::ok();
  }
  // A waiting thread a prompt would be many; a bounded number of them keeps the engine's batch full.
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::size_t printed = 0;
  std::vector<bool> done(prompts.size());
  const auto work = [&] {
    for (std::size_t i; (i = next.fetch_add(1)) < prompts.size();) {
      auto completion = run_one(i, [](std::string_view) {});
      const std::lock_guard lock(mutex);
      completions[i] = std::move(completion);
      done[i] = true;
      keep_weights(*model);
      for (; printed < prompts.size() && done[printed]; ++printed) {
        const auto& ready = completions[printed];
        if (!ready.is_ok()) continue;
        if (options.json) {
          print_json(printed, *ready);
        } else {
          fmt::print("[{}] {}\n", printed, ready->text);
          std::fflush(stdout);
        }
      }
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < std::min<std::size_t>(32, prompts.size()); ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    if (!completions[i].is_ok()) return completions[i].status().with_context(fmt::format("prompt {}", i));
  }
  return Status::ok();
}

}  // namespace

void register_generate(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("generate", "Continue prompts");
  auto options = std::make_shared<GenerateOptions>();
  add_model_options(*command, *options);
  auto* prompt = command->add_option("--prompt", options->prompt, "Text to continue");
  auto* file = command->add_option("--file", options->file, "JSON lines, each {\"prompt\": \"...\"} or {\"messages\": [...]}; answered together, printed in order")->check(CLI::ExistingFile);
  prompt->excludes(file);
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
