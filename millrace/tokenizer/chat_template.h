// Turns a conversation into the text a model was trained on, with the Jinja template that came with the model.
//
// The language is Jinja2's as Hugging Face transformers sets it up (ImmutableSandboxedEnvironment, trim_blocks, lstrip_blocks,
// the loopcontrols and generation tags, raise_exception, strftime_now, tojson without HTML escapes). Expected texts come from
// jinja2 itself. Templates are data from a model file or a client, so a render has a budget and no way out of its variables.
//
// Every string knows which of its bytes the client wrote. The tokenizer needs this: a "<|im_end|>" that the template wrote is a
// special token, the same characters in a message are only characters. Concatenation, slices, strip, split, join, replace,
// formatting and macros keep track byte by byte; tojson, the printing of lists and case changes of characters beyond ASCII
// count all of their result as the client's when any of it is. Two exceptions: the role of a message is template text when it
// is one of the usual words (templates build "<|user|>" from it), and numbers, booleans and none are nobody's.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/status.h"
#include "millrace/tokenizer/text_range.h"

namespace millrace {

namespace jinja {
struct Program;
}

struct RenderedPrompt {
  std::string text;                    // UTF-8
  std::vector<TextRange> user_ranges;  // ascending, not empty, neither overlapping nor touching: bytes the client wrote
};

struct ChatTemplateInput {
  json::array messages;
  std::optional<json::array> tools;      // absent: the template sees none
  std::optional<json::array> documents;  // absent: the template sees none
  bool add_generation_prompt = true;
  std::string bos_token;
  std::string eos_token;
  // What else the template may name (chat_template_kwargs). Client text, like messages, tools and documents. May replace
  // bos_token, eos_token and add_generation_prompt, not messages, tools or documents.
  json::object variables;
  // What strftime_now shows: seconds since 1970 of the wall clock to print, not shifted by a time zone.
  // Absent: the system clock in local time.
  std::optional<std::chrono::sys_seconds> now;
};

struct ChatTemplateLimits {
  // Steps: one for each node evaluated, and one for each 256 bytes of text built or searched. So it bounds memory too: a render
  // holds at most about 256 * fuel bytes beside the values it was given.
  int64_t fuel = 1'000'000;
  std::size_t output_bytes = std::size_t{8} << 20;
  int depth = 100;  // of macros and recursive loops called inside each other
};

// A compiled template. Copies share the program; render may be called by any number of threads at once.
class ChatTemplate {
 public:
  // Error: invalid_argument, "line L, column C: what" (columns count bytes from 1).
  static Result<ChatTemplate> compile(std::string source);

  // Errors: invalid_argument "line L, column C: what" when the template fails on this conversation;
  // invalid_argument with exactly the template's own words when it called raise_exception (see raised_by_template);
  // resource_exhausted "line L, column C: what" when a limit was reached.
  Result<RenderedPrompt> render(const ChatTemplateInput& input, const ChatTemplateLimits& limits = {}) const;

  // Whether `status`, from render, carries the words of raise_exception rather than an error the engine found.
  static bool raised_by_template(const Status& status);

  const std::string& source() const;

 private:
  explicit ChatTemplate(std::shared_ptr<const jinja::Program> program);

  std::shared_ptr<const jinja::Program> program_;
};

}  // namespace millrace
