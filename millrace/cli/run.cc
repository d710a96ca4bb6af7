#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
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

// Ctrl-C while an answer is made stops the answer; at the prompt it leaves, as Ctrl-D and /exit do. The signal stays blocked and is asked
// for, so that none is lost between a check and a read, and none goes to a thread that cannot act on it.
class Interrupts {
 public:
  // Before the engine's thread is made: it inherits the mask. The pool's threads block every signal.
  Interrupts() {
    struct sigaction action{};
    action.sa_handler = [](int) {};  // only so that a wait returns
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, nullptr);
    sigemptyset(&interrupt_);
    sigaddset(&interrupt_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &interrupt_, &waiting_);
    sigdelset(&waiting_, SIGINT);
  }

  // Whether Ctrl-C was pressed since the last call.
  bool take() {
    const timespec now{};
    return sigtimedwait(&interrupt_, nullptr, &now) == SIGINT;
  }

  // Waits until standard input has something, or ended. False: Ctrl-C came first.
  bool wait_for_input() {
    if (std::cin.rdbuf()->in_avail() > 0) return true;
    pollfd input{STDIN_FILENO, POLLIN, 0};
    return ppoll(&input, 1, nullptr, &waiting_) >= 0 || errno != EINTR;
  }

 private:
  sigset_t interrupt_, waiting_;
};

Status run_chat(const RunOptions& options) {
  std::ios::sync_with_stdio(false);  // so that in_avail() knows what was read ahead
  MR_RETURN_IF_ERROR(parse_kv_dtype(options.kv_cache_dtype, options.exact).status());
  MR_ASSIGN_OR_RETURN(auto model, load_decoder(options));
  MR_RETURN_IF_ERROR(model->chat_template().status());
  Interrupts interrupts;  // until here Ctrl-C ends the program
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model->tokenizer());
  MR_ASSIGN_OR_RETURN(const SamplingParams sampling, sampling_params(*model, *tokenizer, options));
  MR_ASSIGN_OR_RETURN(auto running, start_engine(*model, options, options, {}));
  const bool terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
  const auto style = [&](const char* code) { return isatty(STDOUT_FILENO) && std::getenv("NO_COLOR") == nullptr ? code : ""; };
  if (terminal && !options.json)
    fmt::print("{} ({}). Ctrl-C stops an answer, /clear forgets, /exit or Ctrl-D leaves.\n", model->network().family,
               isa_name(model->isa()));

  json::array messages;
  const auto clear = [&] {
    messages.clear();
    if (!options.system.empty()) messages.push_back(json::object{{"role", "system"}, {"content", options.system}});
  };
  clear();
  uint64_t seed = options.seed ? *options.seed : std::random_device{}();
  for (;;) {
    interrupts.take();  // what came after the last answer's end meant that answer
    if (terminal) {
      fmt::print("{}> {}", style("\x1b[1m"), style("\x1b[0m"));
      std::fflush(stdout);
    }
    std::string line;
    if (!interrupts.wait_for_input() || !std::getline(std::cin, line)) break;
    if (line.empty()) continue;
    if (line == "/exit" || line == "/quit") break;
    if (line == "/clear") {
      clear();
      continue;
    }
    if (line == "/help" || (line.front() == '/' && line.find_first_of(" /", 1) == std::string::npos)) {
      fmt::print(stderr, "{}/clear forgets the conversation, /exit leaves; Ctrl-C stops an answer\n",
                 line == "/help" ? "" : "unknown command " + line + ": ");
      continue;
    }
    messages.push_back(json::object{{"role", "user"}, {"content", line}});
    // Text that is no UTF-8, or a conversation that the template refuses: this message is dropped, the conversation goes on.
    auto prompt_tokens = conversation_tokens(*model, messages);
    if (!prompt_tokens.is_ok()) {
      fmt::print(stderr, "millrace: {}\n", prompt_tokens.status().message());
      messages.pop_back();
      continue;
    }
    auto answer = complete(
        *running.engine, answer_request(std::move(prompt_tokens).value(), sampling, seed++, options),
        [&](std::string_view text) {
          if (options.json) return;
          fmt::print("{}", text);
          std::fflush(stdout);
        },
        [&] { return interrupts.take(); });
    if (!answer.is_ok()) {
      // Usually the conversation outgrew the context: say so, and let the user go on with a shorter one.
      fmt::print(stderr, "millrace: {}\n", answer.status().message());
      messages.pop_back();
      continue;
    }
    keep_weights(*model);
    if (options.json) {
      fmt::print("{}\n", json_text(json::object{{"text", answer->text}, {"finish_reason", finish_reason_name(answer->finish_reason)}}));
      std::fflush(stdout);
    } else {
      const double decode_seconds = answer->seconds - answer->ttft_seconds;
      fmt::print("\n{}[{} tokens; first after {:.0f} ms, then {:.1f} tokens/s{}]{}\n", style("\x1b[2m"), answer->usage.completion_tokens,
                 answer->ttft_seconds * 1e3,
                 decode_seconds > 0 ? static_cast<double>(answer->usage.completion_tokens - 1) / decode_seconds : 0.0,
                 answer->finish_reason == FinishReason::kAbort    ? "; stopped"
                 : answer->finish_reason == FinishReason::kLength ? "; cut: max-tokens or the context is full, /clear makes room"
                                                                  : "",
                 style("\x1b[0m"));
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
  add_quantization_options(*command, *options);
  command->add_option("--system", options->system, "System message");
  add_answer_options(*command, *options);
  add_generation_options(*command, *options);
  command->footer("Ctrl-C stops an answer, not the program. Example:\n  millrace run model.gguf --system 'Answer in one sentence.'");
  command->callback([options, &exit_status] {
    if (const Status status = run_chat(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
