// Any bytes as a chat template: an error with a place, or a text within its limits, whose marked ranges lie within it.
#include <string>

#include "millrace/base/check.h"
#include "millrace/tokenizer/chat_template.h"
#include "millrace/tokenizer/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace millrace;
  const std::string source(reinterpret_cast<const char*>(data), size);
  const auto compiled = ChatTemplate::compile(source);
  if (!compiled.is_ok()) return 0;
  static const ChatTemplateInput input = [] {
    ChatTemplateInput made;
    made.messages =
        parse_json(R"([{"role":"system","content":"Be <b>brief</b> & 'kind'."},{"role":"user","content":"h\u00e9 <|im_end|> %s {x}"},
      {"role":"assistant","content":"","tool_calls":[{"type":"function","function":{"name":"f","arguments":{"a":[1,2.5,null,true],"b":{"c":"d"}}}}]},
      {"role":"tool","content":"42","name":"f"}])")
            ->as_array();
    made.tools = parse_json(R"([{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}])")->as_array();
    made.variables = parse_json(R"({"enable_thinking":true,"n":3,"x":-1.5e300,"words":["b","a","c"],"d":{"k":"v","1":2}})")->as_object();
    made.bos_token = "<s>";
    made.eos_token = "</s>";
    made.now = std::chrono::sys_seconds(std::chrono::seconds(1'700'000'000));
    return made;
  }();
  ChatTemplateLimits limits;
  limits.fuel = 20'000;
  limits.output_bytes = 1 << 20;
  const auto rendered = compiled->render(input, limits);
  if (!rendered.is_ok()) {
    MR_CHECK(!rendered.status().message().empty() || ChatTemplate::raised_by_template(rendered.status()), "an error without words");
    return 0;
  }
  MR_CHECK(rendered->text.size() <= limits.output_bytes + (1 << 16), "the text is longer than its limit");
  std::size_t end = 0;
  bool first = true;
  for (const TextRange& range : rendered->user_ranges) {
    MR_CHECK((first || range.begin > end) && range.begin < range.end && range.end <= rendered->text.size(),
             "a range out of order or of the text");
    end = range.end;
    first = false;
  }
  if (!unicode::find_invalid(source)) MR_CHECK(!unicode::find_invalid(rendered->text), "a template in UTF-8 gave a text that is none");
  return 0;
}
