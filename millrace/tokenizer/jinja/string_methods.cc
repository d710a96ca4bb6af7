// Python's str methods. Positions are counted in characters; client characters stay the client's through every method.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "millrace/tokenizer/jinja/formatting.h"
#include "millrace/tokenizer/jinja/methods.h"
#include "millrace/tokenizer/jinja/operators.h"
#include "millrace/tokenizer/jinja/runtime.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

const Text& require_text(const Value& value, std::string_view what) {
  require_defined(value);
  if (!value.is_string()) fail(fmt::format("{} must be str, not {}", what, type_name(value)));
  return value.text();
}

const Value& required(const std::optional<Value>& value, std::string_view function, std::string_view name) {
  if (!value.has_value()) fail(fmt::format("{}() missing required argument: '{}'", function, name));
  return *value;
}

void charge(Runtime& runtime, const Value& self) { runtime.budget().charge_bytes(self.text().bytes.size()); }

// The bytes that characters [start, end) of `text` occupy, with Python's rules for absent and negative positions;
// nothing when start lies behind the end.
std::optional<TextRange> byte_range(const Text& text, const std::optional<Value>& start, const std::optional<Value>& end) {
  const auto size = static_cast<int64_t>(text.num_code_points());
  const auto position = [&](const std::optional<Value>& value, int64_t fallback) {
    if (!value.has_value() || value->is_none()) return fallback;
    const int64_t at = require_integer(*value, "slice indices");
    return at < 0 ? std::max<int64_t>(0, at + size) : at;
  };
  const int64_t begin = position(start, 0), stop = std::min(position(end, size), size);
  if (begin > size || begin > stop) return std::nullopt;
  return TextRange{text.byte_offset(static_cast<std::size_t>(begin)), text.byte_offset(static_cast<std::size_t>(stop))};
}

template <bool left, bool right>
Value strip(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  const auto bound = arguments.bind("strip", {"chars"});
  const bool given = bound[0].has_value() && !bound[0]->is_none();
  return strip_text(runtime, self.text_ptr(), given ? &require_text(*bound[0], "strip arg") : nullptr, left, right);
}

std::vector<Value> split_spaces(Runtime& runtime, const TextPtr& text, int64_t max_splits) {
  std::vector<Value> parts;
  const std::string& s = text->bytes;
  for (std::size_t at = 0;;) {
    while (at < s.size() && is_space(decode_at(s, at).value)) at += decode_at(s, at).num_bytes;
    if (at >= s.size()) return parts;
    runtime.budget().charge_steps(1);
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) == max_splits) {
      parts.push_back(slice_text(runtime.budget(), text, at, s.size()));
      return parts;
    }
    const std::size_t begin = at;
    while (at < s.size() && !is_space(decode_at(s, at).value)) at += decode_at(s, at).num_bytes;
    parts.push_back(slice_text(runtime.budget(), text, begin, at));
  }
}

std::vector<Value> rsplit_spaces(Runtime& runtime, const TextPtr& text, int64_t max_splits) {
  std::vector<Value> parts;
  const std::string& s = text->bytes;
  for (std::size_t end = s.size();;) {
    while (end > 0 && is_space(decode_before(s, end).value)) end -= decode_before(s, end).num_bytes;
    if (end == 0) break;
    runtime.budget().charge_steps(1);
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) == max_splits) {
      parts.push_back(slice_text(runtime.budget(), text, 0, end));
      break;
    }
    const std::size_t stop = end;
    while (end > 0 && !is_space(decode_before(s, end).value)) end -= decode_before(s, end).num_bytes;
    parts.push_back(slice_text(runtime.budget(), text, end, stop));
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

Value split_from(Runtime& runtime, const Value& self, const CallArguments& arguments, bool from_right) {
  charge(runtime, self);
  const auto bound = arguments.bind("split", {"sep", "maxsplit"});
  const int64_t max_splits = bound[1].has_value() ? require_integer(*bound[1], "maxsplit") : -1;
  const TextPtr& text = self.text_ptr();
  if (!bound[0].has_value() || bound[0]->is_none()) {
    return make_list(from_right ? rsplit_spaces(runtime, text, max_splits) : split_spaces(runtime, text, max_splits));
  }
  const std::string& separator = require_text(*bound[0], "separator").bytes;
  if (separator.empty()) fail("empty separator");
  std::vector<Value> parts;
  const auto more = [&] { return max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits; };
  const std::string& s = text->bytes;
  if (from_right) {
    std::size_t end = s.size();
    while (more() && end >= separator.size()) {
      const std::size_t found = s.rfind(separator, end - separator.size());
      if (found == std::string::npos) break;
      runtime.budget().charge_steps(1);
      parts.push_back(slice_text(runtime.budget(), text, found + separator.size(), end));
      end = found;
    }
    parts.push_back(slice_text(runtime.budget(), text, 0, end));
    std::reverse(parts.begin(), parts.end());
  } else {
    std::size_t begin = 0;
    while (more()) {
      const std::size_t found = s.find(separator, begin);
      if (found == std::string::npos) break;
      runtime.budget().charge_steps(1);
      parts.push_back(slice_text(runtime.budget(), text, begin, found));
      begin = found + separator.size();
    }
    parts.push_back(slice_text(runtime.budget(), text, begin, s.size()));
  }
  return make_list(std::move(parts));
}
Value split(Runtime& runtime, const Value& self, const CallArguments& arguments) { return split_from(runtime, self, arguments, false); }
Value rsplit(Runtime& runtime, const Value& self, const CallArguments& arguments) { return split_from(runtime, self, arguments, true); }

Value splitlines(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  const auto bound = arguments.bind("splitlines", {"keepends"});
  return make_list(split_lines(runtime, self.text_ptr(), bound[0].has_value() && runtime.is_true(*bound[0])));
}

template <bool from_right>
Value partition(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  charge(runtime, self);
  const auto bound = arguments.bind("partition", {"sep"});
  const Value& separator = required(bound[0], "partition", "sep");
  const std::string& sep = require_text(separator, "sep").bytes;
  if (sep.empty()) fail("empty separator");
  const TextPtr& text = self.text_ptr();
  const std::size_t at = from_right ? text->bytes.rfind(sep) : text->bytes.find(sep);
  const Value empty = make_text("");
  if (at == std::string::npos)
    return make_list(from_right ? std::vector<Value>{empty, empty, self} : std::vector<Value>{self, empty, empty}, ListKind::kTuple);
  return make_list(
      {slice_text(runtime.budget(), text, 0, at), separator, slice_text(runtime.budget(), text, at + sep.size(), text->bytes.size())},
      ListKind::kTuple);
}

template <bool at_end>
Value has_affix(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  charge(runtime, self);
  const auto bound = arguments.bind(at_end ? "endswith" : "startswith", {"affix", "start", "end"});
  const Value& affix = required(bound[0], at_end ? "endswith" : "startswith", "affix");
  const std::optional<TextRange> range = byte_range(self.text(), bound[1], bound[2]);
  const auto matches = [&](const Value& one) {
    const std::string& wanted = require_text(one, "affix").bytes;
    if (!range.has_value()) return false;
    const std::string_view part = std::string_view(self.text().bytes).substr(range->begin, range->end - range->begin);
    return at_end ? part.ends_with(wanted) : part.starts_with(wanted);
  };
  if (!affix.is_list() || affix.list().kind != ListKind::kTuple) return matches(affix);
  return std::any_of(affix.list().items.begin(), affix.list().items.end(), matches);
}

// find and index, rfind and rindex: the position of a substring in characters.
template <bool from_right, bool must_exist>
Value find(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  charge(runtime, self);
  const auto bound = arguments.bind("find", {"sub", "start", "end"});
  const std::string& wanted = require_text(required(bound[0], "find", "sub"), "sub").bytes;
  const std::optional<TextRange> range = byte_range(self.text(), bound[1], bound[2]);
  std::size_t found = std::string::npos;
  if (range.has_value()) {
    const std::string_view part = std::string_view(self.text().bytes).substr(range->begin, range->end - range->begin);
    found = from_right ? part.rfind(wanted) : part.find(wanted);
  }
  if (found == std::string::npos) {
    if (must_exist) fail("substring not found");
    return int64_t{-1};
  }
  found += range->begin;
  return static_cast<int64_t>(self.text().ascii ? found : count_code_points(std::string_view(self.text().bytes).substr(0, found)));
}

Value count(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  charge(runtime, self);
  const auto bound = arguments.bind("count", {"sub", "start", "end"});
  const std::string& wanted = require_text(required(bound[0], "count", "sub"), "sub").bytes;
  const std::optional<TextRange> range = byte_range(self.text(), bound[1], bound[2]);
  if (!range.has_value()) return int64_t{0};
  const std::string_view part = std::string_view(self.text().bytes).substr(range->begin, range->end - range->begin);
  if (wanted.empty()) return static_cast<int64_t>(count_code_points(part) + 1);
  int64_t times = 0;
  for (std::size_t at = part.find(wanted); at != std::string_view::npos; at = part.find(wanted, at + wanted.size())) ++times;
  return times;
}

Value replace(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  const auto bound = arguments.bind("replace", {"old", "new", "count"});
  const Text& old_text = require_text(required(bound[0], "replace", "old"), "replace() argument 1");
  const Text& new_text = require_text(required(bound[1], "replace", "new"), "replace() argument 2");
  return replace_text(runtime, self.text(), old_text, new_text, bound[2].has_value() ? require_integer(*bound[2], "count") : -1);
}

Value join(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  const auto bound = arguments.bind("join", {"iterable"});
  const Value& items = required(bound[0], "join", "iterable");
  if (!items.is_list() && !items.is_string() && !items.is_dict() && !items.is_undefined()) fail("can only join an iterable");
  const std::vector<Value> all = runtime.iterate(items);
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!all[i].is_string()) fail(fmt::format("sequence item {}: expected str instance, {} found", i, type_name(all[i])));
  }
  return join_text(runtime, self.text(), all);
}

template <std::string (*convert)(std::string_view)>
Value convert_case(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  arguments.bind("upper", {});
  charge(runtime, self);
  return converted_text(runtime.budget(), self.text(), convert(self.text().bytes));
}

template <bool (*predicate)(char32_t)>
Value all_characters(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  arguments.bind("isalpha", {});
  charge(runtime, self);
  const std::string& s = self.text().bytes;
  for (std::size_t at = 0; at < s.size(); at += decode_at(s, at).num_bytes) {
    if (!predicate(decode_at(s, at).value)) return false;
  }
  return !s.empty();
}

template <bool upper>
Value has_case(Runtime& runtime, const Value& self, const CallArguments&) {
  charge(runtime, self);
  const std::string& s = self.text().bytes;
  bool cased = false;
  for (std::size_t at = 0; at < s.size(); at += decode_at(s, at).num_bytes) {
    const char32_t c = decode_at(s, at).value;
    if (is_title(c) || (upper ? is_lower(c) : is_upper(c))) return false;
    cased |= upper ? is_upper(c) : is_lower(c);
  }
  return cased;
}

Value istitle(Runtime& runtime, const Value& self, const CallArguments&) {
  charge(runtime, self);
  const std::string& s = self.text().bytes;
  bool cased = false, inside = false;
  for (std::size_t at = 0; at < s.size(); at += decode_at(s, at).num_bytes) {
    const char32_t c = decode_at(s, at).value;
    if ((is_upper(c) || is_title(c)) ? inside : (is_lower(c) && !inside)) return false;
    inside = is_cased(c);
    cased |= inside;
  }
  return cased;
}

bool is_ascii_character(char32_t c) { return c < 0x80; }
Value isascii(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  return self.text().bytes.empty() || all_characters<is_ascii_character>(runtime, self, arguments).as_bool();
}
Value isidentifier(Runtime& runtime, const Value& self, const CallArguments&) {
  charge(runtime, self);
  const std::string& s = self.text().bytes;
  for (std::size_t at = 0; at < s.size(); at += decode_at(s, at).num_bytes) {
    const char32_t c = decode_at(s, at).value;
    if (c != '_' && !is_alpha(c) && (at == 0 || !is_decimal(c))) return false;
  }
  return !s.empty();
}

template <bool at_end>
Value remove_affix(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  charge(runtime, self);
  const auto bound = arguments.bind("removeprefix", {"affix"});
  const std::string& affix = require_text(required(bound[0], "removeprefix", "affix"), "affix").bytes;
  const std::string& s = self.text().bytes;
  if (affix.empty() || !(at_end ? s.ends_with(affix) : s.starts_with(affix))) return self;
  return at_end ? slice_text(runtime.budget(), self.text_ptr(), 0, s.size() - affix.size())
                : slice_text(runtime.budget(), self.text_ptr(), affix.size(), s.size());
}

// center, ljust, rjust, zfill: `left` fill characters before the text and `right` after it.
Value pad(Runtime& runtime, const Value& self, int64_t left, int64_t right, const Text& fill) {
  if (left < 0 || right < 0) return self;
  const auto total =
      static_cast<std::size_t>(std::min<int64_t>(left, INT32_MAX)) + static_cast<std::size_t>(std::min<int64_t>(right, INT32_MAX));
  runtime.budget().charge_bytes(total * fill.bytes.size());
  TextBuilder out(runtime.budget());
  for (int64_t i = 0; i < left; ++i) out.append(fill);
  out.append(self.text());
  for (int64_t i = 0; i < right; ++i) out.append(fill);
  return out.finish(self.text().markup);
}

enum class Side { kLeft, kRight, kCenter };
template <Side side>
Value justify(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  const auto bound = arguments.bind("center", {"width", "fillchar"});
  const int64_t width = require_integer(required(bound[0], "center", "width"), "width");
  static const TextPtr kSpace = make_text(" ");
  const Text& fill = bound[1].has_value() ? require_text(*bound[1], "fillchar") : *kSpace;
  if (fill.num_code_points() != 1) fail("The fill character must be exactly one character long");
  const int64_t missing = width - *runtime.length(self);
  if (missing <= 0) return self;
  // The odd one goes left only when the width is odd, as CPython does.
  const int64_t left = side == Side::kLeft ? 0 : side == Side::kRight ? missing : missing / 2 + (missing & width & 1);
  return pad(runtime, self, left, missing - left, fill);
}

Value zfill(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  const auto bound = arguments.bind("zfill", {"width"});
  const int64_t missing = require_integer(required(bound[0], "zfill", "width"), "width") - *runtime.length(self);
  if (missing <= 0) return self;
  static const TextPtr kZero = make_text("0");
  const std::string& s = self.text().bytes;
  const std::size_t sign = !s.empty() && (s[0] == '+' || s[0] == '-') ? 1 : 0;
  const Value digits = slice_text(runtime.budget(), self.text_ptr(), sign, s.size());
  const Value padded = pad(runtime, digits, missing, 0, *kZero);
  TextBuilder out(runtime.budget());
  out.append(self.text(), 0, sign);
  out.append(padded.text());
  return out.finish();
}

Value expandtabs(Runtime& runtime, const Value& self, const CallArguments& arguments) {
  const auto bound = arguments.bind("expandtabs", {"tabsize"});
  const int64_t tab = bound[0].has_value() ? require_integer(*bound[0], "tabsize") : 8;
  TextBuilder out(runtime.budget());
  int64_t column = 0;
  for (const Value& c : runtime.characters(self.text_ptr())) {
    const std::string& s = c.text().bytes;
    if (s == "\t") {
      const int64_t spaces = tab > 0 ? tab - column % tab : 0;
      runtime.budget().charge_bytes(static_cast<std::size_t>(spaces));
      out.append(std::string(static_cast<std::size_t>(spaces), ' '), c.text().has_user());
      column += spaces;
    } else {
      out.append(c.text());
      column = s == "\n" || s == "\r" ? 0 : column + 1;
    }
  }
  return out.finish();
}

Value format(Runtime& runtime, const Value& self, const CallArguments& arguments) { return brace_format(runtime, self.text(), arguments); }

constexpr NamedMethod kMethods[] = {{"strip", strip<true, true>},
                                    {"lstrip", strip<true, false>},
                                    {"rstrip", strip<false, true>},
                                    {"split", split},
                                    {"rsplit", rsplit},
                                    {"splitlines", splitlines},
                                    {"partition", partition<false>},
                                    {"rpartition", partition<true>},
                                    {"startswith", has_affix<false>},
                                    {"endswith", has_affix<true>},
                                    {"find", find<false, false>},
                                    {"rfind", find<true, false>},
                                    {"index", find<false, true>},
                                    {"rindex", find<true, true>},
                                    {"count", count},
                                    {"replace", replace},
                                    {"join", join},
                                    {"upper", convert_case<to_upper>},
                                    {"lower", convert_case<to_lower>},
                                    {"casefold", convert_case<to_lower>},
                                    {"title", convert_case<to_title>},
                                    {"capitalize", convert_case<to_capitalized>},
                                    {"swapcase", convert_case<to_swapped_case>},
                                    {"isalpha", all_characters<is_alpha>},
                                    {"isdigit", all_characters<is_digit>},
                                    {"isdecimal", all_characters<is_decimal>},
                                    {"isnumeric", all_characters<is_numeric>},
                                    {"isalnum", all_characters<is_alnum>},
                                    {"isspace", all_characters<is_space>},
                                    {"isascii", isascii},
                                    {"isupper", has_case<true>},
                                    {"islower", has_case<false>},
                                    {"istitle", istitle},
                                    {"isidentifier", isidentifier},
                                    {"removeprefix", remove_affix<false>},
                                    {"removesuffix", remove_affix<true>},
                                    {"center", justify<Side::kCenter>},
                                    {"ljust", justify<Side::kLeft>},
                                    {"rjust", justify<Side::kRight>},
                                    {"zfill", zfill},
                                    {"expandtabs", expandtabs},
                                    {"format", format}};

}  // namespace

const NamedMethod* find_string_method(std::string_view name) {
  const auto* found = std::find_if(std::begin(kMethods), std::end(kMethods), [&](const auto& m) { return m.name == name; });
  return found == std::end(kMethods) ? nullptr : found;
}

TextPtr strip_text(Runtime& runtime, const TextPtr& text, const Text* characters, bool left, bool right) {
  const std::string& s = text->bytes;
  const auto strips = [&](const CodePoint& c, std::size_t at) {
    if (characters == nullptr) return is_space(c.value);
    return characters->bytes.find(s.substr(at, c.num_bytes)) != std::string::npos;
  };
  std::size_t begin = 0, end = s.size();
  while (left && begin < end) {
    const CodePoint c = decode_at(s, begin);
    if (!strips(c, begin)) break;
    begin += c.num_bytes;
    runtime.budget().charge_bytes(1 + (characters != nullptr ? characters->bytes.size() : 0));
  }
  while (right && end > begin) {
    const CodePoint c = decode_before(s, end);
    if (!strips(c, end - c.num_bytes)) break;
    end -= c.num_bytes;
    runtime.budget().charge_bytes(1 + (characters != nullptr ? characters->bytes.size() : 0));
  }
  return slice_text(runtime.budget(), text, begin, end);
}

std::vector<Value> split_lines(Runtime& runtime, const TextPtr& text, bool keep_ends) {
  std::vector<Value> lines;
  const std::string& s = text->bytes;
  runtime.budget().charge_bytes(s.size());
  for (std::size_t begin = 0; begin < s.size();) {
    std::size_t end = begin;
    while (end < s.size() && !is_line_break(decode_at(s, end).value)) end += decode_at(s, end).num_bytes;
    std::size_t next = end;
    if (next < s.size()) next += s.compare(next, 2, "\r\n") == 0 ? 2 : decode_at(s, next).num_bytes;
    runtime.budget().charge_steps(1);
    lines.push_back(slice_text(runtime.budget(), text, begin, keep_ends ? next : end));
    begin = next;
  }
  return lines;
}

TextPtr join_text(Runtime& runtime, const Text& separator, const std::vector<Value>& items) {
  TextBuilder out(runtime.budget());
  for (std::size_t i = 0; i < items.size(); ++i) {
    const TextPtr item = runtime.text_of(items[i]);
    if (separator.markup) {
      if (i > 0) out.append(separator);
      out.append_escaped(*item);
    } else {
      if (i > 0) out.append(separator);
      out.append(*item);
    }
  }
  return out.finish(separator.markup);
}

TextPtr replace_text(Runtime& runtime, const Text& text, const Text& old_text, const Text& new_text, int64_t count) {
  TextBuilder out(runtime.budget());
  const std::string& s = text.bytes;
  const auto put = [&] { text.markup ? out.append_escaped(new_text) : out.append(new_text); };
  runtime.budget().charge_bytes(s.size());
  std::size_t copied = 0;
  if (old_text.bytes.empty()) {
    // Before every character and at the end.
    for (std::size_t at = 0; at <= s.size() && count != 0; --count) {
      runtime.budget().charge_bytes(16);
      put();
      const std::size_t next = at < s.size() ? at + decode_at(s, at).num_bytes : at + 1;
      out.append(text, at, std::min(next, s.size()));
      copied = std::min(next, s.size());
      at = next;
    }
  } else {
    for (std::size_t at = s.find(old_text.bytes); at != std::string::npos && count != 0; at = s.find(old_text.bytes, copied), --count) {
      runtime.budget().charge_bytes(16);
      out.append(text, copied, at);
      put();
      copied = at + old_text.bytes.size();
    }
  }
  out.append(text, copied, s.size());
  return out.finish(text.markup);
}

}  // namespace millrace::jinja
