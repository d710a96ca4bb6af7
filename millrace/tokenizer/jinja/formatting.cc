#include "millrace/tokenizer/jinja/formatting.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/jinja/operators.h"
#include "millrace/tokenizer/jinja/runtime.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxPrecision = 300;

// What stands between '%' or '{:' and the letter of the conversion.
struct Spec {
  std::string fill = " ";
  bool user_fill = false;  // the fill may be the client's
  char align = 0;          // '<', '>', '^', '='; 0: the default of the kind
  char sign = '-';
  bool alternate = false;
  bool grouping_comma = false;
  int64_t width = 0;
  int64_t precision = -1;
  char type = 0;
};

int64_t read_number(std::string_view text, std::size_t& at, int64_t limit) {
  int64_t value = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    value = value * 10 + (text[at++] - '0');
    if (value > limit) fail("a width or precision of the format is too large");
  }
  return value;
}

void append_padded(Runtime& runtime, TextBuilder& out, const Text& text, const Spec& spec, char default_align) {
  const auto missing = std::max<int64_t>(0, spec.width - static_cast<int64_t>(text.num_code_points()));
  runtime.budget().charge_bytes(static_cast<std::size_t>(missing) * spec.fill.size());
  const char align = spec.align != 0 ? spec.align : default_align;
  const auto fill = [&](int64_t times) {
    for (int64_t i = 0; i < times; ++i) out.append(spec.fill, spec.user_fill);
  };
  const int64_t left = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  std::size_t head = 0;
  if (align == '=') {  // the fill goes between sign or prefix and digits
    const std::string& s = text.bytes;
    if (!s.empty() && (s[0] == '-' || s[0] == '+' || s[0] == ' ')) head = 1;
    if (s.size() > head + 1 && s[head] == '0' && (s[head + 1] == 'x' || s[head + 1] == 'X' || s[head + 1] == 'o' || s[head + 1] == 'b'))
      head += 2;
  }
  out.append(text, 0, head);
  fill(left);
  out.append(text, head, text.bytes.size());
  fill(missing - left);
}

std::string with_sign(std::string digits, bool negative, char sign) {
  if (negative) return "-" + digits;
  return sign == '+' || sign == ' ' ? sign + digits : digits;
}

void group_thousands(std::string& digits) {
  std::size_t end = digits.find_first_of(".e");
  if (end == std::string::npos) end = digits.size();
  for (std::size_t at = end; at > 3; at -= 3) digits.insert(at - 3, ",");
}

std::string integer_digits(int64_t value, const Spec& spec) {
  const uint64_t magnitude = value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  std::string digits;
  switch (spec.type) {
    case 'x': digits = fmt::format("{}{:x}", spec.alternate ? "0x" : "", magnitude); break;
    case 'X': digits = fmt::format("{}{:X}", spec.alternate ? "0X" : "", magnitude); break;
    case 'o': digits = fmt::format("{}{:o}", spec.alternate ? "0o" : "", magnitude); break;
    case 'b': digits = fmt::format("{}{:b}", spec.alternate ? "0b" : "", magnitude); break;
    default: digits = fmt::format("{}", magnitude);
  }
  if (spec.grouping_comma) group_thousands(digits);
  return with_sign(std::move(digits), value < 0, spec.sign);
}

std::string float_digits(double value, const Spec& spec) {
  const bool percent = spec.type == '%';
  const double magnitude = std::fabs(percent ? value * 100 : value);
  std::string digits;
  if (std::isnan(magnitude) || std::isinf(magnitude)) {
    digits = std::isnan(magnitude) ? "nan" : "inf";
  } else if (spec.type == 0 && spec.precision < 0) {
    digits = float_repr(magnitude);
  } else {
    const char conversion = percent || spec.type == 'F' ? 'f' : spec.type == 0 || spec.type == 'n' ? 'g' : spec.type;
    const std::string format = fmt::format("%{}.{}{}", spec.alternate ? "#" : "", spec.precision < 0 ? 6 : spec.precision, conversion);
    std::string buffer(800, '\0');
    // The format is built above from checked parts only.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    buffer.resize(static_cast<std::size_t>(std::snprintf(buffer.data(), buffer.size(), format.c_str(), magnitude)));
#pragma GCC diagnostic pop
    digits = std::move(buffer);
    // Without a type a float shows that it is one.
    if (spec.type == 0 && digits.find_first_of(".e") == std::string::npos) digits += ".0";
  }
  if (spec.grouping_comma) group_thousands(digits);
  if (percent) digits += '%';
  return with_sign(std::move(digits), std::signbit(value) && !std::isnan(value), spec.sign);
}

// %s and {} with a precision keep that many characters.
Value clip(Runtime& runtime, const Value& text, int64_t precision) {
  return precision < 0 ? text : slice(runtime, text, None{}, Value(precision), None{});
}

class PercentFormatter {
 public:
  PercentFormatter(Runtime& runtime, const Text& format, const Value& arguments)
      : runtime_(runtime), format_(format), arguments_(arguments), out_(runtime.budget()) {}

  TextPtr run() {
    const std::string& f = format_.bytes;
    std::size_t copied = 0;
    for (std::size_t at = f.find('%'); at != std::string::npos; at = f.find('%', copied)) {
      out_.append(format_, copied, at);
      copied = at + 1;
      convert(copied);
    }
    out_.append(format_, copied, f.size());
    if (!by_name_ && is_tuple() && next_ < arguments_.list().items.size()) fail("not all arguments converted during string formatting");
    if (!by_name_ && !is_tuple() && next_ == 0 && !arguments_.is_dict()) fail("not all arguments converted during string formatting");
    return out_.finish(format_.markup);
  }

 private:
  bool is_tuple() const {
    return arguments_.is_list() && (arguments_.list().kind == ListKind::kTuple || arguments_.list().kind == ListKind::kGroup);
  }

  const Value& next_argument() {
    if (!is_tuple()) {
      if (next_++ > 0) fail("not enough arguments for format string");
      return arguments_;
    }
    if (next_ >= arguments_.list().items.size()) fail("not enough arguments for format string");
    return arguments_.list().items[next_++];
  }

  void convert(std::size_t& at) {
    const std::string& f = format_.bytes;
    const Value* named = nullptr;
    Value found;
    if (at < f.size() && f[at] == '(') {
      const std::size_t close = f.find(')', at);
      if (close == std::string::npos) fail("incomplete format key");
      if (!arguments_.is_dict()) fail("format requires a mapping");
      const Value* value = arguments_.dict().find(std::string_view(f).substr(at + 1, close - at - 1));
      if (value == nullptr) fail(fmt::format("KeyError: '{}'", f.substr(at + 1, close - at - 1)));
      found = *value;
      named = &found;
      by_name_ = true;
      at = close + 1;
    }
    Spec spec;
    bool left = false, zero = false;
    for (; at < f.size() && std::string_view("-+ #0").find(f[at]) != std::string_view::npos; ++at) {
      left |= f[at] == '-';
      zero |= f[at] == '0';
      if (f[at] == '+' || (f[at] == ' ' && spec.sign != '+')) spec.sign = f[at];
      spec.alternate |= f[at] == '#';
    }
    spec.width = read_star_or_number(at, kMaxWidth);
    if (spec.width < 0) {
      left = true;
      spec.width = -spec.width;
    }
    if (at < f.size() && f[at] == '.') {
      ++at;
      spec.precision = std::max<int64_t>(0, read_star_or_number(at, kMaxPrecision));
    }
    while (at < f.size() && (f[at] == 'l' || f[at] == 'h' || f[at] == 'L')) ++at;
    if (at >= f.size()) fail("incomplete format");
    spec.type = f[at++];
    if (spec.type == '%') return out_.append("%");
    write(named != nullptr ? *named : next_argument(), spec, left, zero);
  }

  int64_t read_star_or_number(std::size_t& at, int64_t limit) {
    if (at >= format_.bytes.size() || format_.bytes[at] != '*') return read_number(format_.bytes, at, limit);
    ++at;
    const int64_t value = require_integer(next_argument(), "* wants int:");
    if (value > limit || value < -limit) fail("a width or precision of the format is too large");
    return value;
  }

  void write(const Value& value, Spec spec, bool left, bool zero) {
    spec.align = left ? '<' : '>';
    const bool numeric = std::string_view("diuxXofFeEgG").find(spec.type) != std::string_view::npos;
    if (numeric) {
      require_defined(value);
      if (!value.is_number()) fail(fmt::format("%{} format: a real number is required, not {}", spec.type, type_name(value)));
      if (zero && !left) {
        spec.fill = "0";
        spec.align = '=';
      }
    }
    Value text;
    switch (spec.type) {
      case 's': text = clip(runtime_, runtime_.text_of(value), spec.precision); break;
      case 'r':
      case 'a': {
        TextBuilder repr(runtime_.budget());
        append_repr(runtime_, repr, value);
        text = clip(runtime_, make_text(repr.take_bytes(), contains_user_text(value)), spec.precision);
        break;
      }
      case 'c': {
        std::string character;
        if (value.is_integral())
          utf8::append(character, static_cast<char32_t>(std::clamp<int64_t>(value.as_int(), 0, 0x10ffff)));
        else if (value.is_string() && value.text().num_code_points() == 1)
          character = value.text().bytes;
        else
          fail("%c requires int or char");
        // A number has no author, so a character made of one counts as the client's.
        text = make_text(std::move(character), true);
        break;
      }
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o': {
        const bool truncates = spec.type == 'd' || spec.type == 'i' || spec.type == 'u';
        if (value.kind() == Kind::kFloat && !truncates) fail(fmt::format("%{} format: an integer is required, not float", spec.type));
        if (value.kind() == Kind::kFloat && !(std::fabs(value.as_double()) < 9.2e18)) fail("cannot convert this float to an integer");
        std::string digits = integer_digits(value.kind() == Kind::kFloat ? static_cast<int64_t>(value.as_double()) : value.as_int(), spec);
        const std::size_t sign = !digits.empty() && (digits[0] == '-' || digits[0] == '+' || digits[0] == ' ') ? 1 : 0;
        if (const auto missing = spec.precision - static_cast<int64_t>(digits.size() - sign); missing > 0)
          digits.insert(sign, static_cast<std::size_t>(missing), '0');
        text = make_text(std::move(digits));
        break;
      }
      case 'f':
      case 'F':
      case 'e':
      case 'E':
      case 'g':
      case 'G': text = make_text(float_digits(value.as_double(), spec)); break;
      default: fail(fmt::format("unsupported format character '{}'", spec.type));
    }
    if (!format_.markup || text.text().markup) return append_padded(runtime_, out_, text.text(), spec, '>');
    TextBuilder escaped(runtime_.budget());
    escaped.append_escaped(text.text());
    append_padded(runtime_, out_, *escaped.finish(), spec, '>');
  }

  Runtime& runtime_;
  const Text& format_;
  const Value& arguments_;
  TextBuilder out_;
  std::size_t next_ = 0;
  bool by_name_ = false;
};

Spec parse_spec(std::string_view text) {
  Spec spec;
  std::size_t at = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  if (!text.empty()) {
    const std::size_t fill_bytes = decode_at(text, 0).num_bytes;
    if (fill_bytes < text.size() && is_align(text[fill_bytes])) {
      spec.fill = text.substr(0, fill_bytes);
      spec.align = text[fill_bytes];
      at = fill_bytes + 1;
    } else if (is_align(text[0])) {
      spec.align = text[0];
      at = 1;
    }
  }
  const auto take = [&](std::string_view any) -> char {
    return at < text.size() && any.find(text[at]) != std::string_view::npos ? text[at++] : 0;
  };
  if (const char sign = take("+- ")) spec.sign = sign;
  spec.alternate = take("#") != 0;
  if (take("0") != 0 && spec.align == 0) {
    spec.fill = "0";
    spec.align = '=';
  }
  spec.width = read_number(text, at, kMaxWidth);
  spec.grouping_comma = take(",") != 0;
  if (take(".") != 0) {
    if (at >= text.size() || text[at] < '0' || text[at] > '9') fail("Format specifier missing precision");
    spec.precision = read_number(text, at, kMaxPrecision);
  }
  spec.type = take("sdnbcoxXeEfFgG%");
  if (at != text.size()) fail(fmt::format("Invalid format specifier '{}'", text));
  return spec;
}

class BraceFormatter {
 public:
  BraceFormatter(Runtime& runtime, const Text& format, const CallArguments& arguments)
      : runtime_(runtime), format_(format), arguments_(arguments), out_(runtime.budget()) {}

  TextPtr run() {
    const std::string& f = format_.bytes;
    std::size_t copied = 0;
    for (std::size_t at = f.find_first_of("{}"); at != std::string::npos; at = f.find_first_of("{}", copied)) {
      out_.append(format_, copied, at);
      if (at + 1 < f.size() && f[at + 1] == f[at]) {
        out_.append(format_, at, at + 1);
        copied = at + 2;
        continue;
      }
      if (f[at] == '}') fail("Single '}' encountered in format string");
      // A field may nest one level of fields inside its format specification.
      std::size_t end = at + 1;
      for (int depth = 1; depth > 0; ++end) {
        if (end >= f.size()) fail("expected '}' before end of string");
        if (f[end] == '{') ++depth;
        if (f[end] == '}') --depth;
      }
      write_field(std::string_view(f).substr(at + 1, end - at - 2));
      copied = end;
    }
    out_.append(format_, copied, f.size());
    return out_.finish(format_.markup);
  }

 private:
  void write_field(std::string_view field) {
    std::size_t name_end = 0;
    while (name_end < field.size() && field[name_end] != ':' && field[name_end] != '!') {
      name_end = field[name_end] == '[' ? std::min(field.find(']', name_end), field.size()) : name_end + 1;
    }
    Value value = look_up(field.substr(0, name_end));
    std::string_view rest = field.substr(name_end);
    if (rest.starts_with('!')) {
      if (rest.size() < 2 || (rest.size() > 2 && rest[2] != ':')) fail("expected ':' after conversion specifier");
      if (rest[1] == 's') {
        value = runtime_.text_of(value);
      } else if (rest[1] == 'r' || rest[1] == 'a') {
        TextBuilder repr(runtime_.budget());
        append_repr(runtime_, repr, value);
        value = make_text(repr.take_bytes(), contains_user_text(value));
      } else {
        fail(fmt::format("Unknown conversion specifier '{}'", rest[1]));
      }
      rest.remove_prefix(2);
    }
    if (rest.starts_with(':')) rest.remove_prefix(1);
    write_value(value, expand(rest));
  }

  // Fields inside a format specification.
  std::string expand(std::string_view spec) {
    std::string out;
    for (std::size_t at = 0; at < spec.size();) {
      if (spec[at] != '{') {
        out += spec[at++];
        continue;
      }
      const std::size_t close = spec.find('}', at);
      if (close == std::string_view::npos) fail("expected '}' before end of string");
      const TextPtr text = runtime_.text_of(look_up(spec.substr(at + 1, close - at - 1)));
      user_spec_ |= text->has_user();
      out += text->bytes;
      at = close + 1;
    }
    return out;
  }

  Value look_up(std::string_view path) {
    const std::size_t end = std::min(path.find_first_of(".["), path.size());
    const std::string_view first = path.substr(0, end);
    Value value;
    if (first.empty() || std::all_of(first.begin(), first.end(), [](char c) { return c >= '0' && c <= '9'; })) {
      const std::size_t index = first.empty() ? next_++ : static_cast<std::size_t>(std::strtoul(std::string(first).c_str(), nullptr, 10));
      if ((automatic_.has_value() && *automatic_ != first.empty())) fail("cannot switch between manual and automatic field numbering");
      automatic_ = first.empty();
      if (index >= arguments_.positional.size()) fail(fmt::format("Replacement index {} out of range for positional args tuple", index));
      value = arguments_.positional[index];
    } else {
      const auto found = std::find_if(arguments_.named.begin(), arguments_.named.end(), [&](const auto& a) { return a.first == first; });
      if (found == arguments_.named.end()) fail(fmt::format("KeyError: '{}'", first));
      value = found->second;
    }
    path.remove_prefix(end);
    while (!path.empty()) {
      if (path[0] == '.') {
        const std::size_t stop = std::min(path.find_first_of(".[", 1), path.size());
        value = runtime_.get_attribute(value, path.substr(1, stop - 1));
        path.remove_prefix(stop);
      } else {
        const std::size_t close = path.find(']');
        if (path[0] != '[' || close == std::string_view::npos) fail("Missing ']' in format string");
        const std::string key(path.substr(1, close - 1));
        const bool number =
            !key.empty() && std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; }) && key.size() < 18;
        value = runtime_.get_item(value, number ? Value(int64_t{std::atoll(key.c_str())}) : Value(make_text(key)));
        path.remove_prefix(close + 1);
      }
    }
    return value;
  }

  void write_value(const Value& value, const std::string& spec_text) {
    if (spec_text.empty()) return append(runtime_.text_of(value), Spec(), '<');
    Spec spec = parse_spec(spec_text);
    spec.user_fill = user_spec_ || format_.has_user();
    const bool wants_float = std::string_view("eEfFgG%").find(spec.type) != std::string_view::npos && spec.type != 0;
    if (value.is_string()) {
      if (spec.type != 0 && spec.type != 's') fail(fmt::format("Unknown format code '{}' for object of type 'str'", spec.type));
      if (spec.align == '=') fail("'=' alignment not allowed in string format specifier");
      return append(clip(runtime_, value, spec.precision).text_ptr(), spec, '<');
    }
    if (value.kind() == Kind::kBool && spec.type == 0) return append(runtime_.text_of(value), spec, '>');
    if (value.kind() == Kind::kFloat || (value.is_integral() && wants_float)) {
      if (spec.type != 0 && !wants_float && spec.type != 'n')
        fail(fmt::format("Unknown format code '{}' for object of type 'float'", spec.type));
      return append(make_text(float_digits(value.as_double(), spec)), spec, '>');
    }
    if (value.is_integral()) {
      if (spec.precision >= 0) fail("Precision not allowed in integer format specifier");
      if (spec.type == 's') fail("Unknown format code 's' for object of type 'int'");
      if (spec.type != 'c') return append(make_text(integer_digits(value.as_int(), spec)), spec, '>');
      std::string character;
      utf8::append(character, static_cast<char32_t>(std::clamp<int64_t>(value.as_int(), 0, 0x10ffff)));
      return append(make_text(std::move(character), true), spec, '<');
    }
    fail(fmt::format("unsupported format string passed to {}.__format__", type_name(value)));
  }

  void append(const TextPtr& text, const Spec& spec, char default_align) {
    if (!format_.markup || text->markup) return append_padded(runtime_, out_, *text, spec, default_align);
    TextBuilder escaped(runtime_.budget());
    escaped.append_escaped(*text);
    append_padded(runtime_, out_, *escaped.finish(), spec, default_align);
  }

  Runtime& runtime_;
  const Text& format_;
  const CallArguments& arguments_;
  TextBuilder out_;
  std::size_t next_ = 0;
  std::optional<bool> automatic_;
  bool user_spec_ = false;  // some format specification used client text
};

}  // namespace

TextPtr percent_format(Runtime& runtime, const Text& format, const Value& arguments) {
  return PercentFormatter(runtime, format, arguments).run();
}

TextPtr brace_format(Runtime& runtime, const Text& format, const CallArguments& arguments) {
  return BraceFormatter(runtime, format, arguments).run();
}

}  // namespace millrace::jinja
