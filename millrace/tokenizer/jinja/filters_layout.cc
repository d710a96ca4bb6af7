// Filters that lay text out over lines: wordwrap as Python's textwrap does it, pprint as its pprint.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "millrace/tokenizer/jinja/filters.h"
#include "millrace/tokenizer/jinja/methods.h"
#include "millrace/tokenizer/jinja/operators.h"
#include "millrace/tokenizer/jinja/runtime.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

bool is_word(char32_t c) { return c == '_' || is_alnum(c); }

struct WrapStyle {
  int64_t width = 79;
  bool break_long_words = true, break_on_hyphens = true;
};

// The lines of one paragraph. Every line is a part of it, so that each byte keeps its author.
class Wrapping {
 public:
  Wrapping(Runtime& runtime, TextPtr paragraph, const WrapStyle& style) : runtime_(runtime), text_(std::move(paragraph)), style_(style) {
    runtime_.budget().charge_bytes(text_->bytes.size() * (sizeof(char32_t) + sizeof(std::size_t)));
    for (std::size_t at = 0; at < text_->bytes.size();) {
      const CodePoint c = decode_at(text_->bytes, at);
      characters_.push_back(c.value);
      offsets_.push_back(at);
      at += c.num_bytes;
    }
    offsets_.push_back(text_->bytes.size());
  }

  std::vector<Value> lines() {
    split();
    std::vector<Value> lines;
    const int64_t width = style_.width;
    for (std::size_t next = 0; next < chunks_.size();) {
      if (!lines.empty() && is_blank(chunks_[next])) ++next;
      if (next == chunks_.size()) break;
      std::vector<Chunk> line;
      int64_t length = 0;
      for (; next < chunks_.size() && length + chunks_[next].length() <= width; ++next) {
        line.push_back(chunks_[next]);
        length += chunks_[next].length();
      }
      if (next < chunks_.size() && chunks_[next].length() > width) {
        if (style_.break_long_words) {
          const std::size_t cut = chunks_[next].begin + num_fitting(chunks_[next], static_cast<std::size_t>(width - length));
          line.push_back({chunks_[next].begin, cut});
          chunks_[next].begin = cut;
        } else if (line.empty()) {
          line.push_back(chunks_[next++]);
        }
      }
      if (!line.empty() && is_blank(line.back())) line.pop_back();
      if (!line.empty()) lines.emplace_back(slice_text(runtime_.budget(), text_, offsets_[line.front().begin], offsets_[line.back().end]));
    }
    return lines;
  }

 private:
  struct Chunk {
    std::size_t begin, end;  // characters; no line break comes between them, but in a word that is too long
    int64_t length() const { return static_cast<int64_t>(end - begin); }
  };

  char32_t at(std::size_t i) const { return i < characters_.size() ? characters_[i] : U'\n'; }
  static bool is_gap(char32_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
  bool is_letter(std::size_t i) const { return i < characters_.size() && is_word(characters_[i]) && !is_decimal(characters_[i]); }
  bool ends_a_word(std::size_t i) const {
    return is_word(characters_[i]) || std::u32string_view(U"!\"'&.,?").find(characters_[i]) != std::u32string_view::npos;
  }
  bool is_blank(const Chunk& chunk) const {
    return std::all_of(characters_.begin() + static_cast<std::ptrdiff_t>(chunk.begin),
                       characters_.begin() + static_cast<std::ptrdiff_t>(chunk.end), is_space);
  }

  // The end of a dash between words, of two hyphens or more, that begins at `i`; `i` where there is none.
  std::size_t dash_end(std::size_t i) const {
    if (i == 0 || at(i) != '-' || !ends_a_word(i - 1)) return i;
    std::size_t end = i;
    while (at(end) == '-') ++end;
    return end - i >= 2 && end < characters_.size() && is_word(characters_[end]) ? end : i;
  }

  // Whether a line may end behind the hyphen at `i`: two letters before it and two behind, hyphens between them not counted.
  bool is_breaking_hyphen(std::size_t i) const {
    if (at(i) != '-' || i < 2 || !is_letter(i - 1)) return false;
    const bool before = is_letter(i - 2) || (i >= 3 && at(i - 2) == '-' && is_letter(i - 3));
    return before && is_letter(i + 1) && (is_letter(i + 2) || (at(i + 2) == '-' && is_letter(i + 3)));
  }

  void split() {
    for (std::size_t begin = 0; begin < characters_.size();) {
      std::size_t end = begin + 1;
      if (is_gap(characters_[begin])) {
        while (end < characters_.size() && is_gap(characters_[end])) ++end;
      } else if (!style_.break_on_hyphens) {
        while (!is_gap(at(end))) ++end;
      } else if (const std::size_t dash = dash_end(begin); dash > begin) {
        end = dash;
      } else {
        for (; !is_gap(at(end)) && dash_end(end) == end; ++end) {
          if (!is_breaking_hyphen(end)) continue;
          ++end;
          break;
        }
      }
      chunks_.push_back({begin, end});
      begin = end;
    }
    runtime_.budget().charge_bytes(chunks_.size() * sizeof(Chunk));
  }

  // How many characters of a word that is too long still go on the line: up to a hyphen where there is one.
  std::size_t num_fitting(const Chunk& chunk, std::size_t room) const {
    if (!style_.break_on_hyphens) return room;
    std::size_t hyphen = room;
    while (hyphen > 0 && characters_[chunk.begin + hyphen - 1] != '-') --hyphen;
    const auto first = characters_.begin() + static_cast<std::ptrdiff_t>(chunk.begin);
    const bool has_word_before =
        hyphen > 1 && std::any_of(first, first + static_cast<std::ptrdiff_t>(hyphen) - 1, [](char32_t c) { return c != '-'; });
    return has_word_before ? hyphen : room;
  }

  Runtime& runtime_;
  TextPtr text_;
  WrapStyle style_;
  std::vector<char32_t> characters_;
  std::vector<std::size_t> offsets_;  // of each character, and the end
  std::vector<Chunk> chunks_;
};

Value wordwrap(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("wordwrap", {"width", "break_long_words", "wrapstring", "break_on_hyphens"});
  require_defined(input);
  if (!input.is_string()) fail(fmt::format("'{}' object has no attribute 'splitlines'", type_name(input)));
  WrapStyle style;
  if (bound[0].has_value()) style.width = require_integer(*bound[0], "width");
  if (bound[1].has_value()) style.break_long_words = runtime.is_true(*bound[1]);
  if (bound[3].has_value()) style.break_on_hyphens = runtime.is_true(*bound[3]);
  TextPtr separator = make_text("\n");
  if (bound[2].has_value() && !bound[2]->is_none()) {
    if (!bound[2]->is_string()) fail(fmt::format("'{}' object has no attribute 'join'", type_name(*bound[2])));
    separator = bound[2]->text_ptr();
  }
  std::vector<Value> paragraphs = split_lines(runtime, input.text_ptr(), false);
  if (style.width <= 0 && !paragraphs.empty()) fail(fmt::format("invalid width {} (must be > 0)", style.width));
  for (Value& paragraph : paragraphs) {
    // What is cut out of markup is plain text, as Python's regular expressions give it.
    auto plain = std::make_shared<Text>(paragraph.text());
    plain->markup = false;
    paragraph = join_text(runtime, *separator, Wrapping(runtime, std::move(plain), style).lines());
  }
  return join_text(runtime, *separator, paragraphs);
}

// Python's pprint.pformat with its defaults: lines of 80 characters where a value has a place to break, keys in order.
class PrettyPrinter {
 public:
  PrettyPrinter(Runtime& runtime, TextBuilder& out) : runtime_(runtime), out_(out) {}

  // The value stands at column `indent`, and `allowance` characters follow it on its last line.
  void print(const Value& value, int64_t indent, int64_t allowance, bool outermost) {
    const std::string repr = repr_of(value);
    if (num_characters(repr) <= kWidth - indent - allowance) return out_.append(repr);
    const bool is_plain_list = value.is_list() && (value.list().kind == ListKind::kList || value.list().kind == ListKind::kTuple);
    if (value.is_dict()) return print_dict(value.dict(), indent, allowance);
    if (is_plain_list) return print_list(value.list(), indent, allowance);
    if (value.is_string() && !value.text().markup) return print_string(value.text_ptr(), indent, allowance, outermost);
    out_.append(repr);
  }

  // The same value, each dict in the order of its keys.
  Value ordered(const Value& value, int depth = 0) const {
    if (depth > kMaxValueDepth + 1) throw LimitError{"a value nests too deeply to be written"};
    runtime_.budget().charge_steps(1);
    if (value.is_list() && (value.list().kind == ListKind::kList || value.list().kind == ListKind::kTuple)) {
      std::vector<Value> items;
      for (const Value& item : value.list().items) items.push_back(ordered(item, depth + 1));
      return make_list(std::move(items), value.list().kind);
    }
    if (!value.is_dict()) return value;
    std::vector<std::pair<Value, Value>> entries = value.dict().entries;
    std::stable_sort(entries.begin(), entries.end(), [this](const auto& a, const auto& b) { return comes_before(a.first, b.first); });
    Dict dict;
    for (auto& [key, item] : entries) dict.set(ordered(key, depth + 1), ordered(item, depth + 1));
    return std::move(dict).finish();
  }

 private:
  static constexpr int64_t kWidth = 80;

  static int64_t num_characters(std::string_view text) { return static_cast<int64_t>(count_code_points(text)); }

  // Keys without an order between them are sorted by the names of their types.
  bool comes_before(const Value& a, const Value& b) const {
    const bool alike = (a.is_number() && b.is_number()) || (a.is_string() && b.is_string());
    if (alike) return less(runtime_.budget(), a, b);
    if (!a.is_list() || !b.is_list()) return type_name(a) < type_name(b);
    try {
      return less(runtime_.budget(), a, b);
    } catch (const TemplateError&) {
      return false;
    }
  }

  std::string repr_of(const Value& value) const {
    TextBuilder repr(runtime_.budget());
    append_repr(runtime_, repr, value, 1);
    return repr.take_bytes();
  }

  void break_line(int64_t indent) {
    out_.append("\n");
    out_.append(std::string(static_cast<std::size_t>(indent), ' '));
  }

  void print_dict(const Dict& dict, int64_t indent, int64_t allowance) {
    out_.append("{");
    for (std::size_t i = 0; i < dict.entries.size(); ++i) {
      const auto& [key, item] = dict.entries[i];
      const bool last = i + 1 == dict.entries.size();
      const std::string name = repr_of(key) + ": ";
      out_.append(name);
      print(item, indent + 1 + num_characters(name), last ? allowance + 1 : 1, false);
      if (last) break;
      out_.append(",");
      break_line(indent + 1);
    }
    out_.append("}");
  }

  void print_list(const List& list, int64_t indent, int64_t allowance) {
    const bool is_tuple = list.kind == ListKind::kTuple;
    const std::string_view end = !is_tuple ? "]" : list.items.size() == 1 ? ",)" : ")";
    out_.append(is_tuple ? "(" : "[");
    for (std::size_t i = 0; i < list.items.size(); ++i) {
      const bool last = i + 1 == list.items.size();
      print(list.items[i], indent + 1, last ? allowance + static_cast<int64_t>(end.size()) : 1, false);
      if (last) break;
      out_.append(",");
      break_line(indent + 1);
    }
    out_.append(end);
  }

  // Adjacent literals, one a line, cut behind spaces; in parentheses when nothing else encloses them.
  void print_string(const TextPtr& text, int64_t indent, int64_t allowance, bool outermost) {
    if (outermost) {
      ++indent;
      ++allowance;
    }
    if (text->bytes.empty()) return out_.append("''");
    const std::vector<Value> lines = split_lines(runtime_, text, true);
    std::vector<std::string> literals;
    for (std::size_t i = 0; i < lines.size(); ++i) {
      const int64_t reserved = i + 1 == lines.size() ? allowance : 0;
      std::string literal = repr_of(lines[i]);
      if (num_characters(literal) <= kWidth - indent - reserved) {
        literals.push_back(std::move(literal));
      } else {
        cut_line(lines[i].text_ptr(), kWidth - indent, reserved, literals);
      }
    }
    if (outermost && literals.size() > 1) out_.append("(");
    for (std::size_t i = 0; i < literals.size(); ++i) {
      if (i > 0) break_line(indent);
      out_.append(literals[i]);
    }
    if (outermost && literals.size() > 1) out_.append(")");
  }

  // `reserved`: how much shorter the literal with the line's end must be.
  void cut_line(const TextPtr& line, int64_t width, int64_t reserved, std::vector<std::string>& literals) const {
    const std::string& s = line->bytes;
    const auto literal = [&](std::size_t begin, std::size_t end) { return repr_of(slice_text(runtime_.budget(), line, begin, end)); };
    std::size_t begin = 0;
    for (std::size_t at = 0; at < s.size();) {
      std::size_t end = at;
      while (end < s.size() && !is_space(decode_at(s, end).value)) end += decode_at(s, end).num_bytes;
      while (end < s.size() && is_space(decode_at(s, end).value)) end += decode_at(s, end).num_bytes;
      if (end == s.size()) width -= reserved;
      if (num_characters(literal(begin, end)) > width) {
        if (at > begin) literals.push_back(literal(begin, at));
        begin = at;
      }
      at = end;
    }
    literals.push_back(literal(begin, s.size()));
  }

  Runtime& runtime_;
  TextBuilder& out_;
};

Value pretty_print(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  arguments.bind("pprint", {});
  if (input.kind() == Kind::kObject) return runtime.text_of(input);
  TextBuilder out(runtime.budget());
  PrettyPrinter printer(runtime, out);
  printer.print(printer.ordered(input), 0, 0, true);
  return make_text(out.take_bytes(), contains_user_text(input));
}

constexpr NamedFilter kFilters[] = {{"wordwrap", wordwrap}, {"pprint", pretty_print}};

}  // namespace

FilterFunction find_layout_filter(std::string_view name) {
  for (const auto& filter : kFilters) {
    if (filter.name == name) return filter.function;
  }
  return nullptr;
}

}  // namespace millrace::jinja
