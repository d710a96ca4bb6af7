#include <fmt/format.h>

#include "millrace/base/mapped_file.h"
#include "millrace/cli/command.h"

namespace millrace::cli {
namespace {

struct TemplateOptions : ModelOptions {
  std::string messages;
  bool no_generation_prompt = false, ids = false;
};

// The file holds a list of messages, or a chat completion request: {"messages": [...], "tools": [...], "chat_template_kwargs": {...}}.
Result<ChatTemplateInput> read_input(const TemplateOptions& options) {
  MR_ASSIGN_OR_RETURN(const std::string text, read_text_file(options.messages));
  const auto value = parse_json(text);
  if (!value.is_ok()) return value.status().with_context(options.messages);
  ChatTemplateInput input;
  input.add_generation_prompt = !options.no_generation_prompt;
  const json::value* messages = &*value;
  if (value->is_object()) {
    const json::object& object = value->as_object();
    messages = object.if_contains("messages");
    if (messages == nullptr) return Status::invalid_argument(fmt::format("{}: \"messages\" is missing", options.messages));
    if (const json::value* tools = object.if_contains("tools"); tools != nullptr && tools->is_array()) input.tools = tools->as_array();
    if (const json::value* variables = object.if_contains("chat_template_kwargs"); variables != nullptr && variables->is_object())
      input.variables = variables->as_object();
  }
  if (!messages->is_array()) return Status::invalid_argument(fmt::format("{}: expected a list of messages", options.messages));
  input.messages = messages->as_array();
  return input;
}

Status run_template(const TemplateOptions& options) {
  MR_ASSIGN_OR_RETURN(ChatTemplateInput input, read_input(options));
  MR_ASSIGN_OR_RETURN(auto model, load_model(options, LoadWeights::kNone));
  MR_ASSIGN_OR_RETURN(const ChatTemplate* chat_template, model->chat_template());
  input.bos_token = model->bos_token();
  input.eos_token = model->eos_token();
  auto rendered = chat_template->render(input);
  if (!rendered.is_ok()) return rendered.status().with_context("chat template");
  std::vector<int32_t> ids;
  if (options.ids || options.json) {
    MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model->tokenizer());
    MR_ASSIGN_OR_RETURN(ids, tokenizer->encode(rendered->text, {.add_special_tokens = false, .plain_ranges = rendered->user_ranges}));
  }
  if (options.json) {
    json::array ranges;
    for (const TextRange& range : rendered->user_ranges) ranges.push_back(json::array{range.begin, range.end});
    fmt::print("{}\n",
               json_text(json::object{{"text", rendered->text}, {"user_ranges", std::move(ranges)}, {"ids", json::value_from(ids)}}));
  } else if (options.ids) {
    fmt::print("{}\n", fmt::join(ids, " "));
  } else {
    fmt::print("{}", rendered->text);
  }
  return Status::ok();
}

}  // namespace

void register_template(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("template", "Render messages with the model's chat template");
  auto options = std::make_shared<TemplateOptions>();
  add_source_options(*command, *options);
  command->add_option("--messages", options->messages, "JSON file: a list of messages, or a chat completion request")
      ->required()
      ->check(CLI::ExistingFile);
  command->add_flag("--no-generation-prompt", options->no_generation_prompt, "Do not open the assistant's turn");
  command->add_flag("--ids", options->ids, "Print token ids instead of text");
  command->footer("Example:\n  millrace template model.gguf --messages m.json");
  command->callback([options, &exit_status] {
    if (const Status status = run_template(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
