// Filters that make text of text.
#include <fmt/format.h>

#include <algorithm>

#include "millrace/tokenizer/jinja/filters.h"
#include "millrace/tokenizer/jinja/formatting.h"
#include "millrace/tokenizer/jinja/methods.h"
#include "millrace/tokenizer/jinja/operators.h"
#include "millrace/tokenizer/jinja/runtime.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

template <std::string (*convert)(std::string_view)>
Value convert_case(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("upper", {});
  const TextPtr text = runtime.text_of(input);
  runtime.budget().charge_bytes(text->bytes.size());
  return converted_text(runtime.budget(), *text, convert(text->bytes));
}

// The filter's own rule: words begin after spaces, dashes and opening brackets.
std::string to_filter_title(std::string_view text) {
  std::string out;
  std::size_t at = 0;
  const auto separates = [&](std::size_t i) {
    return std::string_view("-({[<").find(text[i]) != std::string_view::npos || is_space(decode_at(text, i).value);
  };
  while (at < text.size()) {
    std::size_t end = at;
    while (end < text.size() && separates(end)) end += decode_at(text, end).num_bytes;
    out += text.substr(at, end - at);
    at = end;
    while (end < text.size() && !separates(end)) end += decode_at(text, end).num_bytes;
    if (end == at) continue;
    const std::size_t first = decode_at(text, at).num_bytes;
    out += to_upper(text.substr(at, first));
    out += to_lower(text.substr(at + first, end - at - first));
    at = end;
  }
  return out;
}

Value trim(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("trim", {"chars"});
  const bool given = bound[0].has_value() && !bound[0]->is_none();
  if (given && !bound[0]->is_string()) fail("strip arg must be None or str");
  return strip_text(runtime, runtime.text_of(input), given ? &bound[0]->text() : nullptr, true, true);
}

Value replace(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("replace", {"old", "new", "count"});
  if (!bound[0].has_value() || !bound[1].has_value()) fail("replace() missing required arguments: 'old' and 'new'");
  const int64_t count = bound[2].has_value() && !bound[2]->is_none() ? require_integer(*bound[2], "count") : -1;
  TextPtr text = runtime.text_of(input);
  if (text->markup) {
    auto plain = std::make_shared<Text>(*text);
    plain->markup = false;
    text = plain;
  }
  return replace_text(runtime, *text, *runtime.text_of(*bound[0]), *runtime.text_of(*bound[1]), count);
}

Value string(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("string", {});
  return runtime.text_of(input);
}

Value safe(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("safe", {});
  auto text = std::make_shared<Text>(*runtime.text_of(input));
  runtime.budget().charge_bytes(text->bytes.size());
  text->markup = true;
  return TextPtr(std::move(text));
}

Value escape(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("escape", {});
  TextBuilder out(runtime.budget());
  out.append_escaped(*runtime.text_of(input));
  return out.finish(true);
}

Value force_escape(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("forceescape", {});
  auto text = std::make_shared<Text>(*runtime.text_of(input));
  text->markup = false;
  TextBuilder out(runtime.budget());
  out.append_escaped(*text);
  return out.finish(true);
}

Value indent(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("indent", {"width", "first", "blank"});
  require_defined(input);
  if (!input.is_string()) fail(fmt::format("unsupported operand type(s) for +=: '{}' and 'str'", type_name(input)));
  TextPtr width = make_text("    ");
  if (bound[0].has_value() && bound[0]->is_string()) {
    width = bound[0]->text_ptr();
  } else if (bound[0].has_value()) {
    const int64_t spaces = std::max<int64_t>(0, require_integer(*bound[0], "width"));
    runtime.budget().charge_bytes(static_cast<std::size_t>(spaces));
    width = make_text(std::string(static_cast<std::size_t>(spaces), ' '));
  }
  const bool first = bound[1].has_value() && runtime.is_true(*bound[1]);
  const bool blank = bound[2].has_value() && runtime.is_true(*bound[2]);
  TextBuilder with_newline(runtime.budget());
  with_newline.append(input.text());
  with_newline.append("\n");
  const std::vector<Value> lines = split_lines(runtime, with_newline.finish(), false);
  TextBuilder out(runtime.budget());
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.append("\n");
    if (i == 0 ? first : (blank || !lines[i].text().bytes.empty())) out.append(*width);
    out.append(lines[i].text());
  }
  return out.finish(input.text().markup);
}

Value truncate(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("truncate", {"length", "killwords", "end", "leeway"});
  const int64_t length = bound[0].has_value() ? require_integer(*bound[0], "length") : 255;
  const bool kill_words = bound[1].has_value() && runtime.is_true(*bound[1]);
  const Value end = bound[2].has_value() ? Value(runtime.text_of(*bound[2])) : Value(make_text("..."));
  const int64_t leeway = bound[3].has_value() && !bound[3]->is_none() ? require_integer(*bound[3], "leeway") : 5;
  const int64_t end_length = *runtime.length(end);
  if (length < end_length) fail(fmt::format("expected length >= {}, got {}", end_length, length));
  if (leeway < 0) fail(fmt::format("expected leeway >= 0, got {}", leeway));
  if (!input.is_string()) fail(fmt::format("object of type '{}' has no len()", type_name(input)));
  const Value& text = input;
  if (*runtime.length(text) <= length + leeway) return input;
  Value kept = slice(runtime, text, None{}, Value(length - end_length), None{});
  if (!kill_words) {
    const std::size_t space = kept.text().bytes.rfind(' ');
    if (space != std::string::npos) kept = slice_text(runtime.budget(), kept.text_ptr(), 0, space);
  }
  return arithmetic(runtime, ArithmeticOp::kAdd, kept, end);
}

Value center(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("center", {"width"});
  CallArguments width;
  width.positional.push_back(bound[0].has_value() ? *bound[0] : Value(int64_t{80}));
  return find_string_method("center")->function(runtime, runtime.text_of(input), width);
}

// Runs of word characters: letters, digits and underscores.
Value word_count(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("wordcount", {});
  const TextPtr text = runtime.text_of(input);
  runtime.budget().charge_bytes(text->bytes.size());
  int64_t words = 0;
  bool inside = false;
  for (std::size_t at = 0; at < text->bytes.size();) {
    const CodePoint c = decode_at(text->bytes, at);
    const bool word = c.value == '_' || is_alnum(c.value);
    words += word && !inside ? 1 : 0;
    inside = word;
    at += c.num_bytes;
  }
  return words;
}

Value format(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const TextPtr text = runtime.text_of(input);
  if (!arguments.named.empty() && !arguments.positional.empty()) fail("can't handle positional and keyword arguments at the same time");
  if (arguments.named.empty()) return percent_format(runtime, *text, make_list(arguments.positional, ListKind::kTuple));
  Dict dict;
  for (const auto& [name, value] : arguments.named) dict.set(make_text(name), value);
  return percent_format(runtime, *text, std::move(dict).finish());
}

std::string url_quote(std::string_view text, bool for_query) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
                       std::string_view("_.-~").find(c) != std::string_view::npos || (c == '/' && !for_query);
    if (plain)
      out += c;
    else if (c == ' ' && for_query)
      out += '+';
    else
      out += fmt::format("%{:02X}", byte);
  }
  return out;
}

Value urlencode(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("urlencode", {});
  const auto quote = [&](const Value& value, bool for_query) {
    const TextPtr text = runtime.text_of(value);
    runtime.budget().charge_bytes(text->bytes.size() * 3);
    return url_quote(text->bytes, for_query);
  };
  if (!input.is_list() && !input.is_dict()) return make_text(quote(input, false), contains_user_text(input));
  std::string out;
  const auto add = [&](const Value& key, const Value& value) {
    if (!out.empty()) out += '&';
    out += quote(key, true) + "=" + quote(value, true);
  };
  if (input.is_dict()) {
    for (const auto& [key, value] : input.dict().entries) add(key, value);
  } else {
    for (const Value& item : runtime.iterate(input)) {
      const std::vector<Value> pair = runtime.iterate(item);
      if (pair.size() != 2) fail("urlencode needs pairs");
      add(pair[0], pair[1]);
    }
  }
  return make_text(out, contains_user_text(input));
}

Value striptags(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("striptags", {});
  const TextPtr text = runtime.text_of(input);
  runtime.budget().charge_bytes(text->bytes.size());
  const std::string& s = text->bytes;
  TextBuilder kept(runtime.budget());
  std::size_t copied = 0;
  const auto drop = [&](std::string_view open, std::string_view close, const TextPtr& from, TextBuilder& out) {
    copied = 0;
    for (std::size_t at = from->bytes.find(open); at != std::string::npos; at = from->bytes.find(open, copied)) {
      const std::size_t end = from->bytes.find(close, at + open.size());
      if (end == std::string::npos) break;
      out.append(*from, copied, at);
      copied = end + close.size();
    }
    out.append(*from, copied, from->bytes.size());
  };
  TextBuilder without_comments(runtime.budget());
  drop("<!--", "-->", text, without_comments);
  drop("<", ">", without_comments.finish(), kept);
  // Runs of spaces become one; entities stay as they are written.
  const Value words = kept.finish();
  const Value parts = find_string_method("split")->function(runtime, words, {});
  return s.empty() ? words : Value(join_text(runtime, *make_text(" "), parts.list().items));
}

Value to_json_filter(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = bound[0].has_value() && runtime.is_true(*bound[0]);
  style.sort_keys = bound[3].has_value() && runtime.is_true(*bound[3]);
  if (bound[1].has_value() && !bound[1]->is_none()) {
    style.item_separator = ",";
    if (bound[1]->is_string()) {
      style.indent = bound[1]->text().bytes;
    } else {
      const int64_t spaces = std::max<int64_t>(0, require_integer(*bound[1], "indent"));
      runtime.budget().charge_bytes(static_cast<std::size_t>(spaces));
      style.indent = std::string(static_cast<std::size_t>(spaces), ' ');
    }
  }
  if (bound[2].has_value() && !bound[2]->is_none()) {
    const std::vector<Value> separators = runtime.iterate(*bound[2]);
    if (separators.size() != 2 || !separators[0].is_string() || !separators[1].is_string()) fail("separators must be two strings");
    style.item_separator = separators[0].text().bytes;
    style.key_separator = separators[1].text().bytes;
  }
  return to_json(runtime, input, style);
}

constexpr NamedFilter kFilters[] = {{"upper", convert_case<to_upper>},
                                    {"lower", convert_case<to_lower>},
                                    {"capitalize", convert_case<to_capitalized>},
                                    {"title", convert_case<to_filter_title>},
                                    {"trim", trim},
                                    {"replace", replace},
                                    {"string", string},
                                    {"safe", safe},
                                    {"escape", escape},
                                    {"e", escape},
                                    {"forceescape", force_escape},
                                    {"indent", indent},
                                    {"truncate", truncate},
                                    {"center", center},
                                    {"wordcount", word_count},
                                    {"format", format},
                                    {"urlencode", urlencode},
                                    {"striptags", striptags},
                                    {"tojson", to_json_filter}};

}  // namespace

FilterFunction find_text_filter(std::string_view name) {
  for (const auto& filter : kFilters) {
    if (filter.name == name) return filter.function;
  }
  return nullptr;
}

}  // namespace millrace::jinja
