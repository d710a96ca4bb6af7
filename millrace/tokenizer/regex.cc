#include "millrace/tokenizer/regex.h"

#include <fmt/format.h>

#include <array>
#include <cctype>
#include <utility>
#include <vector>

#include "millrace/tokenizer/unicode.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace millrace {
namespace {

constexpr std::size_t kPatternBytesMax = 64 << 10;
constexpr uint32_t kMatchLimit = 50'000'000;  // steps of one match: far above what a pattern in use needs on a long text
constexpr uint32_t kHeapLimitKib = 256 << 10;
constexpr std::size_t kJitStackBytesMax = std::size_t{64} << 20;

using Ranges = std::vector<std::pair<char32_t, char32_t>>;  // inclusive, ascending

template <class Predicate>
Ranges ranges_where(Predicate&& belongs) {
  Ranges out;
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c == 0xD800) c = 0xE000;
    if (!belongs(c)) continue;
    if (!out.empty() && (out.back().second + 1 == c || (c == 0xE000 && out.back().second == 0xD7FF))) {
      out.back().second = c;
    } else {
      out.emplace_back(c, c);
    }
  }
  return out;
}

std::string spell(const Ranges& ranges) {
  std::string out;
  const auto range = [&](char32_t first, char32_t last) {
    out += first == last ? fmt::format("\\x{{{:x}}}", static_cast<uint32_t>(first))
                         : fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", static_cast<uint32_t>(first), static_cast<uint32_t>(last));
  };
  for (const auto& [first, last] : ranges) {
    if (first < 0xD800 && last > 0xDFFF) {  // surrogates are no characters and may not be named
      range(first, 0xD7FF);
      range(0xE000, last);
    } else {
      range(first, last);
    }
  }
  return out;
}

std::optional<unicode::CategoryMask> category_mask(std::string_view name) {
  using namespace unicode;
  static constexpr std::array<std::string_view, kNumCategories> kNames = {"Cn", "Cc", "Cf", "Co", "Cs", "Lu", "Ll", "Lt", "Lm", "Lo",
                                                                          "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
                                                                          "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp"};
  CategoryMask mask = 0;
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name || (name.size() == 1 && kNames[i][0] == name[0])) mask |= CategoryMask{1} << i;
  }
  static constexpr std::pair<std::string_view, CategoryMask> kLongNames[] = {{"Letter", kLetter}, {"Mark", kMark},
                                                                             {"Number", kNumber}, {"Punctuation", kPunctuation},
                                                                             {"Symbol", kSymbol}, {"Separator", kSeparator}};
  for (const auto& [long_name, long_mask] : kLongNames) {
    if (long_name == name) mask |= long_mask;
  }
  if (mask == 0) return std::nullopt;
  return mask;
}

// The inside of [:name:].
Result<std::string> expand_posix_class(std::string_view name) {
  const bool negated = name.starts_with('^');
  if (negated) name.remove_prefix(1);
  const auto members = [&](auto&& belongs) { return spell(ranges_where([&](char32_t x) { return belongs(x) != negated; })); };
  if (name == "punct") return members([](char32_t x) { return unicode::is_in(x, unicode::kPunctuation | unicode::kSymbol); });
  if (name == "space") return members([](char32_t x) { return unicode::is_white_space(x); });
  if (name == "digit") return members([](char32_t x) { return unicode::category(x) == unicode::kNd; });
  if (name == "cntrl") return members([](char32_t x) { return unicode::category(x) == unicode::kCc; });
  if (name == "blank") return members([](char32_t x) { return x == '\t' || unicode::category(x) == unicode::kZs; });
  if (name == "xdigit") return members([](char32_t x) { return x < 128 && std::isxdigit(static_cast<int>(x)) != 0; });
  return Status::unsupported(fmt::format("regex: the class [:{}:] is not supported", name.substr(0, 50)));
}

}  // namespace

Result<std::string> expand_classes(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c != '\\') {
      // A ']' right behind '[' or '[^' is itself a member.
      if (in_class && c == ']') {
        in_class = false;
      } else if (!in_class && c == '[') {
        in_class = true;
        out += c;
        if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
        if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += "\\", out += pattern[++i];
        continue;
      } else if (in_class && c == '[' && i + 1 < pattern.size() && pattern[i + 1] == ':') {
        const std::size_t close = pattern.find(":]", i);
        if (close == std::string_view::npos) return Status::invalid_argument("regex: [: without :]");
        MR_ASSIGN_OR_RETURN(const std::string members, expand_posix_class(pattern.substr(i + 2, close - i - 2)));
        out += members;
        i = close + 1;
        continue;
      } else if (in_class && c == '[') {
        return Status::unsupported("regex: classes inside classes are not supported");
      } else if (in_class && c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&') {
        return Status::unsupported("regex: intersections of classes (&&) are not supported");
      }
      out += c;
      continue;
    }
    if (i + 1 == pattern.size()) return Status::invalid_argument("regex: ends in a backslash");
    const char kind = pattern[++i];
    Ranges ranges;
    bool negated = false;
    if (kind == 'p' || kind == 'P') {
      std::string_view name = pattern.substr(i + 1, 1);
      if (name == "{") {
        const std::size_t close = pattern.find('}', i);
        if (close == std::string_view::npos) return Status::invalid_argument("regex: \\p{ without }");
        name = pattern.substr(i + 2, close - i - 2);
        i = close;
      } else {
        i += name.size();
      }
      negated = kind == 'P';
      if (name.starts_with('^')) {
        negated = !negated;
        name.remove_prefix(1);
      }
      const std::optional<unicode::CategoryMask> mask = category_mask(name);
      if (!mask) {  // a script, from the engine's own tables
        out += fmt::format("\\{}{{sc:{}}}", negated ? 'P' : 'p', name);
        continue;
      }
      ranges = ranges_where([&](char32_t x) { return unicode::is_in(x, *mask) != negated; });
    } else if (kind == 's' || kind == 'S') {
      ranges = ranges_where([&](char32_t x) { return unicode::is_white_space(x) == (kind == 's'); });
    } else if (kind == 'w' || kind == 'W') {
      // The engine of the tokenizer files counts six superscripts and fractions as word characters, but not inside a class.
      ranges = ranges_where([&](char32_t x) {
        const bool word = unicode::has_flag(x, unicode::kWord) && !(in_class && unicode::category(x) == unicode::kNo);
        return word == (kind == 'w');
      });
    } else if (kind == 'd' || kind == 'D') {
      ranges = ranges_where([&](char32_t x) { return (unicode::category(x) == unicode::kNd) == (kind == 'd'); });
    } else if ((kind == 'b' || kind == 'B') && !in_class) {
      const std::string word = spell(ranges_where([](char32_t x) { return unicode::has_flag(x, unicode::kWord); }));
      const std::string_view behind_word = kind == 'b' ? "!" : "=", behind_other = kind == 'b' ? "=" : "!";
      out += fmt::format("(?:(?<=[{0}])(?{1}[{0}])|(?<![{0}])(?{2}[{0}]))", word, behind_word, behind_other);
      continue;
    } else if (kind == 'h' || kind == 'H') {  // hexadecimal digits in the dialect of tokenizer files
      ranges = ranges_where([&](char32_t x) { return (x < 128 && std::isxdigit(static_cast<int>(x)) != 0) == (kind == 'h'); });
    } else {
      out += '\\';
      out += kind;
      continue;
    }
    out += in_class ? spell(ranges) : fmt::format("[{}]", spell(ranges));
  }
  return out;
}

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

Result<Regex> Regex::compile(std::string_view pattern) {
  if (pattern.size() > kPatternBytesMax)
    return Status::invalid_argument(fmt::format("regex: {} bytes, at most {} are taken", pattern.size(), kPatternBytesMax));
  MR_ASSIGN_OR_RETURN(const std::string expanded, expand_classes(pattern));
  auto code = std::make_unique<Code>();
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expanded.data()), expanded.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_MULTILINE, &error, &error_offset, nullptr);
  if (code->code == nullptr) {
    std::array<char, 200> message{};
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message.data()), message.size());
    return Status::invalid_argument(fmt::format("regex \"{}\": {}", pattern.substr(0, 200), message.data()));
  }
  pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);  // where there is no JIT the interpreter runs
  return Regex(std::move(code));
}

Result<std::optional<TextRange>> Regex::find(std::string_view text, std::size_t begin) const {
  // Of one thread: match data for one range, the limits, and a stack for the compiled code that grows on demand.
  struct Scratch {
    pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
    pcre2_match_context* context = pcre2_match_context_create(nullptr);
    pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackBytesMax, nullptr);
    Scratch() {
      pcre2_set_match_limit(context, kMatchLimit);
      pcre2_set_heap_limit(context, kHeapLimitKib);
      pcre2_jit_stack_assign(context, nullptr, stack);
    }
    ~Scratch() {
      pcre2_jit_stack_free(stack);
      pcre2_match_context_free(context);
      pcre2_match_data_free(data);
    }
  };
  thread_local Scratch scratch;
  const int found = pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), begin, PCRE2_NO_UTF_CHECK,
                                scratch.data, scratch.context);
  if (found == PCRE2_ERROR_NOMATCH) return std::optional<TextRange>{};
  if (found < 0) {
    std::array<char, 200> message{};
    pcre2_get_error_message(found, reinterpret_cast<PCRE2_UCHAR*>(message.data()), message.size());
    return Status::resource_exhausted(fmt::format("the split pattern gave up at byte {}: {}", begin, message.data()));
  }
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(scratch.data);
  if (ends[0] > ends[1]) return Status::invalid_argument("the split pattern moves the start of its match (\\K)");
  return std::optional<TextRange>(TextRange{ends[0], ends[1]});
}

}  // namespace millrace
