#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "millrace/tokenizer/jinja/formatting.h"
#include "millrace/tokenizer/jinja/runtime.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

class JsonWriter {
 public:
  JsonWriter(Runtime& runtime, const JsonStyle& style) : runtime_(runtime), style_(style), out_(runtime.budget()) {}

  void write(const Value& value, int depth) {
    runtime_.budget().charge_bytes(16);
    switch (value.kind()) {
      case Kind::kNone: return out_.append("null");
      case Kind::kBool: return out_.append(value.as_bool() ? "true" : "false");
      case Kind::kInt: return out_.append(fmt::format_int(value.as_int()).c_str());
      case Kind::kFloat: return out_.append(number(value.as_double()));
      case Kind::kString: return write_string(value.text().bytes);
      case Kind::kList:
        if (value.list().kind == ListKind::kList || value.list().kind == ListKind::kTuple || value.list().kind == ListKind::kGroup) {
          return write_list(value.list(), depth);
        }
        break;
      case Kind::kDict: return write_dict(value.dict(), depth);
      default: break;
    }
    fail(fmt::format("Object of type {} is not JSON serializable", type_name(value)));
  }

  std::string take() { return out_.take_bytes(); }

 private:
  static std::string number(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return float_repr(value);
  }

  void new_line(int depth) {
    if (!style_.indent.has_value()) return;
    out_.append("\n");
    for (int i = 0; i < depth; ++i) out_.append(*style_.indent);
  }

  void write_list(const List& list, int depth) {
    out_.append("[");
    for (std::size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_.append(style_.item_separator);
      new_line(depth + 1);
      write(list.items[i], depth + 1);
    }
    if (!list.items.empty()) new_line(depth);
    out_.append("]");
  }

  void write_dict(const Dict& dict, int depth) {
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.entries) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [&](const auto* a, const auto* b) { return less(runtime_.budget(), a->first, b->first); });
    }
    out_.append("{");
    bool first = true;
    for (const auto* entry : entries) {
      if (!first) out_.append(style_.item_separator);
      first = false;
      new_line(depth + 1);
      write_key(entry->first);
      out_.append(style_.key_separator);
      write(entry->second, depth + 1);
    }
    if (!first) new_line(depth);
    out_.append("}");
  }

  void write_key(const Value& key) {
    switch (key.kind()) {
      case Kind::kString: return write_string(key.text().bytes);
      case Kind::kNone: return out_.append("\"null\"");
      case Kind::kBool: return out_.append(key.as_bool() ? "\"true\"" : "\"false\"");
      case Kind::kInt: return out_.append(fmt::format("\"{}\"", key.as_int()));
      case Kind::kFloat: return out_.append("\"" + number(key.as_double()) + "\"");
      default: fail(fmt::format("keys must be str, int, float, bool or None, not {}", type_name(key)));
    }
  }

  void write_string(std::string_view text) {
    std::string json = "\"";
    for (std::size_t at = 0; at < text.size();) {
      const unsigned char byte = static_cast<unsigned char>(text[at]);
      if (byte >= 0x80) {
        const CodePoint c = decode_at(text, at);
        if (!style_.ensure_ascii)
          json += text.substr(at, c.num_bytes);
        else if (c.value < 0x10000)
          json += fmt::format("\\u{:04x}", static_cast<uint32_t>(c.value));
        else
          json += fmt::format("\\u{:04x}\\u{:04x}", 0xd7c0 + static_cast<uint32_t>(c.value >> 10),
                              0xdc00 + static_cast<uint32_t>(c.value & 0x3ff));
        at += c.num_bytes;
        continue;
      }
      ++at;
      switch (byte) {
        case '"': json += "\\\""; break;
        case '\\': json += "\\\\"; break;
        case '\n': json += "\\n"; break;
        case '\r': json += "\\r"; break;
        case '\t': json += "\\t"; break;
        case '\b': json += "\\b"; break;
        case '\f': json += "\\f"; break;
        default:
          if (byte < 0x20)
            json += fmt::format("\\u{:04x}", byte);
          else
            json += static_cast<char>(byte);
      }
    }
    out_.append(json + "\"");
  }

  Runtime& runtime_;
  const JsonStyle& style_;
  TextBuilder out_;
};

}  // namespace

TextPtr to_json(Runtime& runtime, const Value& value, const JsonStyle& style) {
  JsonWriter writer(runtime, style);
  writer.write(value, 0);
  return make_text(writer.take(), contains_user_text(value));
}

}  // namespace millrace::jinja
