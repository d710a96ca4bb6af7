#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "millrace/base/mapped_file.h"
#include "millrace/cli/command.h"

namespace millrace::cli {
namespace {

int lost_answer(const char* reason) {
  std::fprintf(stderr, "millrace: the answer could not be written to standard output%s%s\n", *reason == '\0' ? "" : ": ", reason);
  return kError;
}

int run(int argc, char** argv) {
  explain_lost_pages();
  CLI::App app("millrace: runs large language models fast on the machine at hand", "millrace");
  app.set_version_flag("--version", MILLRACE_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  millrace serve ./SmolLM2-135M-Instruct        OpenAI-compatible server and chat page on 127.0.0.1:8000\n"
      "  millrace run model.gguf                       chat in the terminal\n"
      "  millrace generate model.gguf --prompt 'Once'  continue a text\n"
      "  millrace embed ./all-MiniLM-L6-v2 --text Hi   the embedding of a text\n"
      "  millrace inspect model.gguf                   what the model is and what it takes\n"
      "MODEL is a Hugging Face directory, a GGUF file, or org/name on the hub. `millrace COMMAND --help` says more.");
  int exit_status = kDone;
  register_serve(app, exit_status);
  register_run(app, exit_status);
  register_generate(app, exit_status);
  register_inspect(app, exit_status);
  register_tokenize(app, exit_status);
  register_template(app, exit_status);
  register_logits(app, exit_status);
  register_embed(app, exit_status);
  register_verify(app, exit_status);
  register_eval(app, exit_status);
  register_bench(app, exit_status);
  register_probe(app, exit_status);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // CLI11 would only say that a command is required.
    if (argc > 1 && argv[1][0] != '-' && app.get_subcommands().empty()) {
      return fail(Status::invalid_argument(fmt::format("there is no command \"{}\"; `millrace --help` lists them", argv[1])));
    }
    const int status = app.exit(error);
    return status == 0 ? kDone : kError;
  }
  return exit_status;
}

}  // namespace
}  // namespace millrace::cli

// An answer that did not reach its file, on a full disk for example, is no success.
int main(int argc, char** argv) {
  using namespace millrace::cli;
  try {
    const int status = run(argc, argv);
    errno = 0;
    const bool flushed = std::fflush(stdout) == 0;
    if (!flushed || std::ferror(stdout) != 0) return lost_answer(errno != 0 ? std::strerror(errno) : "");
    return status;
  } catch (const std::system_error& error) {  // fmt::print's
    if (std::ferror(stdout) == 0) throw;
    return lost_answer(error.code().message().c_str());
  }
}
