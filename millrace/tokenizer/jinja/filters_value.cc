// Filters about numbers and single values, and the search over all filters.
#include <fmt/format.h>

#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "millrace/tokenizer/jinja/filters.h"
#include "millrace/tokenizer/jinja/operators.h"
#include "millrace/tokenizer/jinja/runtime.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

std::string stripped(const Text& text) {
  std::string_view s = text.bytes;
  while (!s.empty() && is_space(decode_at(s, 0).value)) s.remove_prefix(decode_at(s, 0).num_bytes);
  while (!s.empty() && is_space(decode_before(s, s.size()).value)) s.remove_suffix(decode_before(s, s.size()).num_bytes);
  return std::string(s);
}

// Underscores may stand between digits, as in Python's own numbers.
bool drop_underscores(std::string& s) {
  for (std::size_t i = 0; i < s.size(); ++i) {
    if (s[i] == '_' && (i == 0 || i + 1 == s.size() || !std::isalnum(static_cast<unsigned char>(s[i - 1])) ||
                        !std::isalnum(static_cast<unsigned char>(s[i + 1]))))
      return false;
  }
  std::erase(s, '_');
  return true;
}

// int(text, base); absent when Python would raise.
std::optional<int64_t> parse_integer(const Text& text, int64_t base) {
  std::string s = stripped(text);
  if (base != 0 && (base < 2 || base > 36)) return std::nullopt;
  bool negative = false;
  if (!s.empty() && (s[0] == '+' || s[0] == '-')) {
    negative = s[0] == '-';
    s.erase(0, 1);
  }
  if (s.size() > 2 && s[0] == '0') {
    const char c = static_cast<char>(s[1] | 0x20);
    const int64_t prefix = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
    if (prefix != 0 && (base == prefix || base == 0)) {
      base = prefix;
      s.erase(0, s[2] == '_' ? 3 : 2);
    }
  }
  if (base == 0) base = 10;
  if (s.empty() || !drop_underscores(s)) return std::nullopt;
  uint64_t magnitude = 0;
  const auto parsed = std::from_chars(s.data(), s.data() + s.size(), magnitude, static_cast<int>(base));
  if (parsed.ec == std::errc::result_out_of_range) fail("the number does not fit in a 64-bit integer");
  if (parsed.ec != std::errc() || parsed.ptr != s.data() + s.size()) return std::nullopt;
  if (magnitude > static_cast<uint64_t>(INT64_MAX)) fail("the number does not fit in a 64-bit integer");
  return negative ? -static_cast<int64_t>(magnitude) : static_cast<int64_t>(magnitude);
}

std::optional<double> parse_float(const Text& text) {
  std::string s = stripped(text);
  if (!drop_underscores(s) || s.empty()) return std::nullopt;
  std::string lower = to_lower(s);
  if (lower[0] == '+' || lower[0] == '-') lower.erase(0, 1);
  const double sign = s[0] == '-' ? -1 : 1;
  if (lower == "inf" || lower == "infinity") return sign * HUGE_VAL;
  if (lower == "nan") return std::nan("");
  if (lower.empty() || (!std::isdigit(static_cast<unsigned char>(lower[0])) && lower[0] != '.')) return std::nullopt;
  if (lower.find_first_not_of("0123456789.e+-") != std::string::npos) return std::nullopt;
  double value = 0;
  const auto parsed = std::from_chars(lower.data(), lower.data() + lower.size(), value);
  if (parsed.ptr != lower.data() + lower.size()) return std::nullopt;
  if (parsed.ec == std::errc::result_out_of_range)
    value = std::strtod(lower.c_str(), nullptr);
  else if (parsed.ec != std::errc())
    return std::nullopt;
  return sign * value;
}

std::optional<int64_t> truncated(double value) {
  if (std::isnan(value) || std::isinf(value)) return std::nullopt;
  if (std::fabs(value) >= 9223372036854775808.0) fail("the number does not fit in a 64-bit integer");
  return static_cast<int64_t>(value);
}

Value to_int(Runtime&, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("int", {"default", "base"});
  const Value fallback = bound[0].has_value() ? *bound[0] : Value(int64_t{0});
  const int64_t base = bound[1].has_value() ? require_integer(*bound[1], "base") : 10;
  std::optional<int64_t> result;
  if (input.is_undefined()) require_defined(input);
  if (input.is_string()) {
    result = parse_integer(input.text(), base);
    // "42.23"|int is 42.
    if (!result.has_value()) {
      if (const auto number = parse_float(input.text())) result = truncated(*number);
    }
  } else if (input.is_integral()) {
    result = input.as_int();
  } else if (input.kind() == Kind::kFloat) {
    if (std::isinf(input.as_double())) fail("cannot convert float infinity to integer");
    result = truncated(input.as_double());
  }
  return result.has_value() ? Value(*result) : fallback;
}

Value to_float(Runtime&, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("float", {"default"});
  require_defined(input);
  if (input.is_number()) return input.as_double();
  if (input.is_string()) {
    if (const auto number = parse_float(input.text())) return *number;
  }
  return bound[0].has_value() ? *bound[0] : Value(0.0);
}

Value absolute(Runtime&, const Value& input, const CallArguments& arguments) {
  arguments.bind("abs", {});
  require_defined(input);
  if (input.kind() == Kind::kFloat) return std::fabs(input.as_double());
  if (!input.is_integral()) fail(fmt::format("bad operand type for abs(): '{}'", type_name(input)));
  return input.as_int() < 0 ? negate(input) : Value(input.as_int());
}

// Half goes to the even neighbour, decided on the exact value of the double.
double round_decimal(double value, int64_t precision) {
  if (!std::isfinite(value) || precision > 300) return value;
  if (precision < -308) return 0.0;
  if (precision < 0) {
    const double unit = std::pow(10.0, static_cast<double>(-precision));
    return std::nearbyint(value / unit) * unit;
  }
  char buffer[700];
  std::snprintf(buffer, sizeof buffer, "%.*f", static_cast<int>(precision), value);
  return std::strtod(buffer, nullptr);
}

Value round(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("round", {"precision", "method"});
  const int64_t precision = bound[0].has_value() ? require_integer(*bound[0], "precision") : 0;
  const std::string method = bound[1].has_value() ? runtime.text_of(*bound[1])->bytes : "common";
  if (method != "common" && method != "ceil" && method != "floor") fail("method must be common, ceil or floor");
  require_defined(input);
  if (!input.is_number()) fail(fmt::format("type {} doesn't define __round__ method", type_name(input)));
  if (method == "common") {
    if (input.kind() == Kind::kFloat) return round_decimal(input.as_double(), precision);
    if (precision >= 0) return Value(input.as_int());
    if (precision < -18) return Value(int64_t{0});
    int64_t unit = 1;
    for (int64_t i = 0; i < -precision; ++i) unit *= 10;
    const int64_t rest = (input.as_int() % unit + unit) % unit;
    const int64_t below = input.as_int() - rest;
    const bool up = rest * 2 > unit || (rest * 2 == unit && (below / unit) % 2 != 0);
    return Value(up ? below + unit : below);
  }
  const double unit = std::pow(10.0, static_cast<double>(precision));
  const double scaled = input.as_double() * unit;
  return (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / unit;
}

Value default_value(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("default", {"default_value", "boolean"});
  const bool also_false = bound[1].has_value() && runtime.is_true(*bound[1]);
  if (!input.is_undefined() && !(also_false && !runtime.is_true(input))) return input;
  return bound[0].has_value() ? *bound[0] : Value(make_text(""));
}

Value attribute(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("attr", {"name"});
  if (!bound[0].has_value() || !bound[0]->is_string()) fail("attr() needs the name of an attribute");
  // Keys of a dict are not attributes.
  const std::string& name = bound[0]->text().bytes;
  if (input.is_dict() && input.dict().find(name) != nullptr) {
    const Value empty = Dict().finish();
    const Value method = runtime.get_attribute(empty, name);
    if (method.is_undefined()) return make_undefined(fmt::format("'dict object' has no attribute '{}'", name));
  }
  return runtime.get_attribute(input, name);
}

Value file_size(Runtime&, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("filesizeformat", {"binary"});
  const bool binary = bound[0].has_value() && bound[0]->kind() == Kind::kBool && bound[0]->as_bool();
  std::optional<double> bytes;
  if (input.is_number())
    bytes = input.as_double();
  else if (input.is_string())
    bytes = parse_float(input.text());
  if (!bytes.has_value()) fail("filesizeformat needs a number");
  const double base = binary ? 1024 : 1000;
  if (*bytes == 1) return make_text("1 Byte");
  if (*bytes < base) return make_text(fmt::format("{} Bytes", static_cast<int64_t>(*bytes)));
  static constexpr std::string_view kPrefixes = "KMGTPEZY";
  double unit = base;
  for (std::size_t i = 0;; ++i) {
    unit *= base;
    if (*bytes < unit || i + 1 == kPrefixes.size()) {
      const std::string prefix = binary ? std::string(1, kPrefixes[i]) + "iB" : std::string(1, i == 0 ? 'k' : kPrefixes[i]) + "B";
      return make_text(fmt::format("{:.1f} {}", base * *bytes / unit, prefix));
    }
  }
}

constexpr NamedFilter kFilters[] = {{"int", to_int},     {"float", to_float},          {"abs", absolute},
                                    {"round", round},    {"default", default_value},   {"d", default_value},
                                    {"attr", attribute}, {"filesizeformat", file_size}};

}  // namespace

FilterFunction find_filter(std::string_view name) {
  for (const auto& filter : kFilters) {
    if (filter.name == name) return filter.function;
  }
  for (const auto find : {find_text_filter, find_sequence_filter, find_layout_filter, find_markup_filter}) {
    if (const FilterFunction function = find(name)) return function;
  }
  return nullptr;
}

}  // namespace millrace::jinja
