#include <fmt/format.h>

#include <iostream>
#include <iterator>
#include <sstream>

#include "millrace/cli/command.h"

namespace millrace::cli {
namespace {

struct TokenizeOptions : ModelOptions {
  std::optional<std::string> text;
  std::string ids;
  bool decode = false, no_special = false, plain = false;
};

Status run_tokenize(const TokenizeOptions& options) {
  MR_ASSIGN_OR_RETURN(auto model, load_model(options, LoadWeights::kNone));
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model->tokenizer());
  std::string text;
  if (options.text) {
    text = *options.text;
  } else {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  }
  std::vector<int32_t> ids;
  if (options.decode) {
    std::istringstream words(text);
    for (int64_t id = 0; words >> id;) {
      if (id < 0 || id >= tokenizer->vocab_size())
        return Status::invalid_argument(fmt::format("token id {} is outside the vocabulary [0, {})", id, tokenizer->vocab_size()));
      ids.push_back(static_cast<int32_t>(id));
    }
    if (!words.eof()) return Status::invalid_argument("expected token ids separated by spaces");
  } else {
    EncodeOptions encode;
    encode.add_special_tokens = !options.no_special;
    encode.parse_special = !options.plain;
    MR_ASSIGN_OR_RETURN(ids, tokenizer->encode(text, encode));
  }
  MR_ASSIGN_OR_RETURN(const std::string decoded, tokenizer->decode(ids, false));
  if (options.json) {
    json::array pieces;
    for (int32_t id : ids) pieces.push_back(json::string(tokenizer->id_to_token(id)));
    fmt::print("{}\n", json_text(json::object{
                           {"ids", json::value_from(ids)}, {"count", ids.size()}, {"pieces", std::move(pieces)}, {"decoded", decoded}}));
  } else if (options.decode) {
    fmt::print("{}\n", decoded);
  } else {
    fmt::print("{}\n", fmt::join(ids, " "));
  }
  return Status::ok();
}

}  // namespace

void register_tokenize(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("tokenize", "Text to token ids, or back");
  auto options = std::make_shared<TokenizeOptions>();
  add_source_options(*command, *options);
  command->add_option("--text", options->text, "What to convert; default: standard input");
  command->add_flag("--decode", options->decode, "The input is token ids");
  command->add_flag("--no-special", options->no_special, "Do not add BOS and the like");
  command->add_flag("--plain", options->plain, "Special tokens in the text are ordinary text");
  command->footer("Examples:\n  millrace tokenize model.gguf --text 'Hello'\n  echo '1 2 3' | millrace tokenize model.gguf --decode");
  command->callback([options, &exit_status] {
    if (const Status status = run_tokenize(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
