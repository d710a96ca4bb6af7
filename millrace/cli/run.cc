#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <random>

#include "millrace/cli/conversation.h"

namespace millrace::cli {
namespace {

struct RunOptions : ModelOptions, GenerationOptions {
  std::string system;
};

std::atomic<bool> g_interrupted{false};  // a signal handler has nowhere else to write

void on_interrupt(int) { g_interrupted = true; }

// Ctrl-C while an answer is made stops the answer; at the prompt it leaves, as Ctrl-D and /exit do.
void handle_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  action.sa_flags = 0;  // no SA_RESTART: a read at the prompt returns
  sigaction(SIGINT, &action, nullptr);
}

Status run_chat(const RunOptions& options) {
  MR_ASSIGN_OR_RETURN(auto model, load_model(options, true));
  MR_RETURN_IF_ERROR(model->chat_template().status());
  MR_ASSIGN_OR_RETURN(auto running, start_engine(*model, options, {}));
  handle_interrupts();
  const bool terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
  const auto style = [&](const char* code) { return isatty(STDOUT_FILENO) && std::getenv("NO_COLOR") == nullptr ? code : ""; };
  if (terminal && !options.json) fmt::print("{} ({}). Ctrl-C stops an answer, /clear forgets, /exit or Ctrl-D leaves.\n", model->network().family, isa_name(model->isa()));

  json::array messages;
  const auto clear = [&] {
    messages.clear();
    if (!options.system.empty()) messages.push_back(json::object{{"role", "system"}, {"content", options.system}});
  };
  clear();
  uint64_t seed = options.seed ? *options.seed : std::random_device{}();
  for (;;) {
    if (terminal) {
      fmt::print("{}> {}", style("\x1b[1m"), style("\x1b[0m"));
      std::fflush(stdout);
    }
    std::string line;
    g_interrupted = false;
    if (!std::getline(std::cin, line)) break;
    if (line.empty()) continue;
    if (line == "/exit" || line == "/quit") break;
    if (line == "/clear") {
      clear();
      continue;
    }
    messages.push_back(json::object{{"role", "user"}, {"content", line}});
    GenerationRequest request;
    // Text that is no UTF-8, or a conversation that the template refuses: this message is dropped, the conversation goes on.
    auto prompt_tokens = conversation_tokens(*model, messages);
    if (!prompt_tokens.is_ok()) {
      fmt::print(stderr, "millrace: {}\n", prompt_tokens.status().message());
      messages.pop_back();
      continue;
    }
    request.prompt_tokens = std::move(prompt_tokens).value();
    request.sampling = sampling_params(*model, options);
    request.seed = seed++;
    request.max_tokens = options.max_tokens;
    request.stop = options.stop;
    auto answer = complete(
        *running.engine, std::move(request),
        [&](std::string_view text) {
          if (options.json) return;
          fmt::print("{}", text);
          std::fflush(stdout);
        },
        [] { return g_interrupted.exchange(false); });
    if (!answer.is_ok()) {
      // Usually the conversation outgrew the context: say so, and let the user go on with a shorter one.
      fmt::print(stderr, "millrace: {}\n", answer.status().message());
      messages.pop_back();
      continue;
    }
    if (options.json) {
      fmt::print("{}\n", json::serialize(json::object{{"text", answer->text}, {"finish_reason", finish_reason_name(answer->finish_reason)}}));
      std::fflush(stdout);
    } else {
      const double decode_seconds = answer->seconds - answer->ttft_seconds;
      fmt::print("\n{}[{} tokens; first after {:.0f} ms, then {:.1f} tokens/s{}]{}\n", style("\x1b[2m"), answer->usage.completion_tokens, answer->ttft_seconds * 1e3,
                 decode_seconds > 0 ? static_cast<double>(answer->usage.completion_tokens - 1) / decode_seconds : 0.0,
                 answer->finish_reason == FinishReason::kAbort ? "; stopped" : "", style("\x1b[0m"));
    }
    messages.push_back(json::object{{"role", "assistant"}, {"content", answer->text}});
  }
  if (terminal) fmt::print("\n");
  return Status::ok();
}

}  // namespace

void register_run(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("run", "Chat in the terminal");
  auto options = std::make_shared<RunOptions>();
  add_model_options(*command, *options);
  command->add_option("--system", options->system, "System message");
  add_answer_options(*command, *options);
  add_generation_options(*command, *options);
  command->footer("Ctrl-C stops an answer, not the program. Example:\n  millrace run model.gguf --system 'Answer in one sentence.'");
  command->callback([options, &exit_status] {
    if (const Status status = run_chat(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
