#include "millrace/tokenizer/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "millrace/tokenizer/jinja/ast.h"
#include "millrace/tokenizer/jinja/runtime.h"

namespace millrace {
namespace {

// Roles that templates wrap in special tokens themselves ("<|" + role + "|>" in Phi-3): as plain words of a fixed list they
// can say nothing the client chose, so they count as template text.
constexpr std::array<std::string_view, 10> kRoles = {"system",   "developer", "user",  "assistant",   "tool",
                                                     "function", "ipython",   "model", "observation", "environment"};

jinja::Value message_value(jinja::Budget& budget, const json::value& message) {
  if (!message.is_object()) return jinja::from_json(budget, message, 1);
  jinja::Dict dict;
  for (const auto& entry : message.get_object()) {
    jinja::Value value = jinja::from_json(budget, entry.value(), 2);
    if (entry.key() == "role" && value.is_string() && std::find(kRoles.begin(), kRoles.end(), value.text().bytes) != kRoles.end()) {
      value = jinja::make_text(value.text().bytes);
    }
    dict.set(jinja::make_text(std::string(entry.key()), true), std::move(value));
  }
  return std::move(dict).finish();
}

jinja::Value array_value(jinja::Budget& budget, const std::optional<json::array>& array) {
  if (!array.has_value()) return jinja::None{};
  std::vector<jinja::Value> items;
  for (const auto& item : *array) items.push_back(jinja::from_json(budget, item, 1));
  return jinja::make_list(std::move(items));
}

std::string place(const jinja::Program& program, std::size_t offset, std::string_view message) {
  const std::string_view before = std::string_view(program.normalized).substr(0, offset);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t newline = before.rfind('\n');
  const std::size_t column = newline == std::string_view::npos ? before.size() + 1 : before.size() - newline;
  return fmt::format("line {}, column {}: {}", line, column, message);
}

void define_variables(jinja::Runtime& runtime, const jinja::Program& program, const ChatTemplateInput& input) {
  // What the client sent is paid for by the size of its request, not by the template.
  jinja::Budget unlimited(INT64_MAX);
  std::vector<jinja::Value> messages;
  for (const auto& message : input.messages) messages.push_back(message_value(unlimited, message));
  runtime.define("messages", jinja::make_list(std::move(messages)));
  runtime.define("tools", array_value(unlimited, input.tools));
  runtime.define("documents", array_value(unlimited, input.documents));
  runtime.define("add_generation_prompt", input.add_generation_prompt);
  runtime.define("bos_token", jinja::make_text(input.bos_token));
  runtime.define("eos_token", jinja::make_text(input.eos_token));
  // By the template's names, which are few, not by the client's, of which there may be a million.
  for (const std::string& name : program.names) {
    if (const json::value* value = input.variables.if_contains(name)) runtime.define(name, jinja::from_json(unlimited, *value));
  }
}

}  // namespace

ChatTemplate::ChatTemplate(std::shared_ptr<const jinja::Program> program) : program_(std::move(program)) {}

const std::string& ChatTemplate::source() const { return program_->source; }

Result<ChatTemplate> ChatTemplate::compile(std::string source) {
  try {
    return ChatTemplate(jinja::parse(std::move(source)));
  } catch (const jinja::TemplateError& error) {
    return Status::invalid_argument(error.message);
  }
}

Result<RenderedPrompt> ChatTemplate::render(const ChatTemplateInput& input, const ChatTemplateLimits& limits) const {
  for (const char* name : {"messages", "tools", "documents"}) {
    if (input.variables.contains(name)) return Status::invalid_argument(fmt::format("a template variable cannot be named \"{}\"", name));
  }
  jinja::RuntimeOptions options;
  options.fuel = limits.fuel;
  options.output_bytes = limits.output_bytes;
  options.call_depth = limits.depth;
  options.now = input.now;
  jinja::Runtime runtime(*program_, options);
  try {
    define_variables(runtime, *program_, input);
    jinja::TextBuilder out(runtime.budget());
    runtime.run(out);
    RenderedPrompt prompt;
    prompt.text = out.take_bytes();
    prompt.user_ranges = out.take_user();
    return prompt;
  } catch (const jinja::RaisedByTemplate& raised) {
    return Status::invalid_argument(raised.message);
  } catch (const jinja::TemplateError& error) {
    return Status::invalid_argument(place(*program_, runtime.offset(), error.message));
  } catch (const jinja::LimitError& error) {
    return Status::resource_exhausted(place(*program_, runtime.offset(), error.message));
  }
}

bool ChatTemplate::raised_by_template(const Status& status) {
  return status.code() == StatusCode::kInvalidArgument && !status.message().starts_with("line ");
}

}  // namespace millrace
