// str(value), repr(value).
#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "millrace/tokenizer/jinja/runtime.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

void append_string_repr(TextBuilder& out, const Text& text) {
  const bool has_single = text.bytes.find('\'') != std::string::npos;
  const bool has_double = text.bytes.find('"') != std::string::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  std::string repr(1, quote);
  for (std::size_t at = 0; at < text.bytes.size();) {
    const CodePoint c = decode_at(text.bytes, at);
    if (c.value == static_cast<char32_t>(quote) || c.value == '\\') repr += '\\';
    if (c.value == '\n')
      repr += "\\n";
    else if (c.value == '\r')
      repr += "\\r";
    else if (c.value == '\t')
      repr += "\\t";
    else if (c.value >= 0x20 && c.value < 0x7f)
      repr += static_cast<char>(c.value);
    else if (c.value >= 0x80 && is_printable(c.value))
      repr.append(text.bytes, at, c.num_bytes);
    else if (c.value < 0x100)
      repr += fmt::format("\\x{:02x}", static_cast<uint32_t>(c.value));
    else if (c.value < 0x10000)
      repr += fmt::format("\\u{:04x}", static_cast<uint32_t>(c.value));
    else
      repr += fmt::format("\\U{:08x}", static_cast<uint32_t>(c.value));
    at += c.num_bytes;
  }
  repr += quote;
  if (text.markup) repr = "Markup(" + repr + ")";
  out.append(repr);
}

void append_items_repr(Runtime& runtime, TextBuilder& out, const std::vector<Value>& items, int depth) {
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.append(", ");
    append_repr(runtime, out, items[i], depth + 1);
  }
}

void append_list_repr(Runtime& runtime, TextBuilder& out, const List& list, int depth) {
  switch (list.kind) {
    case ListKind::kList:
      out.append("[");
      append_items_repr(runtime, out, list.items, depth);
      out.append("]");
      return;
    case ListKind::kTuple:
    case ListKind::kGroup:
      out.append("(");
      append_items_repr(runtime, out, list.items, depth);
      out.append(list.items.size() == 1 ? ",)" : ")");
      return;
    case ListKind::kRange:
      out.append(list.step == 1 ? fmt::format("range({}, {})", list.start, list.stop)
                                : fmt::format("range({}, {}, {})", list.start, list.stop, list.step));
      return;
    case ListKind::kGenerator: out.append("<generator object>"); return;
    case ListKind::kDictKeys: out.append("dict_keys(["); break;
    case ListKind::kDictValues: out.append("dict_values(["); break;
    case ListKind::kDictItems: out.append("dict_items(["); break;
  }
  append_items_repr(runtime, out, list.items, depth);
  out.append("])");
}

}  // namespace

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  // Shortest digits that read back the same, then Python's choice of form: an exponent below -4 or from 16 on.
  const auto scientific = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  std::string text(buffer, scientific.ptr);
  const int exponent = std::atoi(text.c_str() + text.find('e') + 1);
  if (exponent < -4 || exponent >= 16) return text;
  const auto fixed = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed);
  text.assign(buffer, fixed.ptr);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

void append_repr(Runtime& runtime, TextBuilder& out, const Value& value, int depth) {
  if (depth > kMaxValueDepth + 1) throw LimitError{"a value nests too deeply to be written"};
  runtime.budget().charge_bytes(16);
  switch (value.kind()) {
    case Kind::kUndefined: return out.append("Undefined");
    case Kind::kNone: return out.append("None");
    case Kind::kBool: return out.append(value.as_bool() ? "True" : "False");
    case Kind::kInt: return out.append(fmt::format_int(value.as_int()).c_str());
    case Kind::kFloat: return out.append(float_repr(value.as_double()));
    case Kind::kString: return append_string_repr(out, value.text());
    case Kind::kList: return append_list_repr(runtime, out, value.list(), depth);
    case Kind::kDict: {
      out.append("{");
      bool first = true;
      for (const auto& [key, item] : value.dict().entries) {
        if (!first) out.append(", ");
        first = false;
        append_repr(runtime, out, key, depth + 1);
        out.append(": ");
        append_repr(runtime, out, item, depth + 1);
      }
      return out.append("}");
    }
    case Kind::kMethod:
      return out.append(fmt::format("<built-in method {} of {} object>", value.method().name, type_name(value.method().self)));
    case Kind::kObject:
      // A namespace may hold itself: inside another value it is named, not opened.
      return out.append(depth == 0 ? value.object()->repr(runtime) : "<" + value.object()->type_name() + ">");
  }
}

TextPtr to_text(Runtime& runtime, const Value& value) {
  if (value.is_string()) return value.text_ptr();
  TextBuilder builder(runtime.budget());
  if (value.is_undefined()) return builder.finish();
  append_repr(runtime, builder, value);
  // What an object holds is not searched.
  return make_text(builder.take_bytes(), value.kind() == Kind::kObject || contains_user_text(value));
}

}  // namespace millrace::jinja
