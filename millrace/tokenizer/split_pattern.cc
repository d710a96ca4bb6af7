#include "millrace/tokenizer/split_pattern.h"

#include <string>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/regex.h"
#include "millrace/tokenizer/unicode.h"

namespace millrace {

const std::string_view kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

using unicode::CategoryMask;

// How the patterns of one family differ.
struct WordRules {
  bool any_lead;         // a word may begin with any one character but a letter, number or line break; else with a space
  bool ignore_case;      // in contractions
  int max_digits;        // of a number; 0: any, and a space may lead
  bool line_break_tail;  // punctuation takes the line breaks behind it, and space ends at its last line break
};

struct NamedRules {
  std::string_view regex;
  WordRules rules;
};

constexpr WordRules kGpt2{false, false, 0, false};
constexpr NamedRules kNamedRules[] = {
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", kGpt2},
    {R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", kGpt2},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     {true, true, 3, true}},
    {R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     {true, true, 3, true}},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     {true, true, 1, true}},
    {R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     {true, true, 1, true}},
};

bool is_line_break(char32_t c) { return c == '\r' || c == '\n'; }
bool is_letter(char32_t c) { return unicode::is_in(c, unicode::kLetter); }
bool is_number(char32_t c) { return unicode::is_in(c, unicode::kNumber); }
bool is_other(char32_t c) { return !unicode::is_in(c, unicode::kLetter | unicode::kNumber) && !unicode::is_white_space(c); }

class WordPattern final : public SplitPattern {
 public:
  explicit WordPattern(const WordRules& rules) : rules_(rules) {}

  Status for_each_match(std::string_view text, OnMatch on_match) const override {
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = match_at(text, at);
      MR_RETURN_IF_ERROR(on_match(at, end));
      at = end;
    }
    return Status::ok();
  }

 private:
  template <class Predicate>
  static std::size_t run_end(std::string_view text, std::size_t at, Predicate&& belongs) {
    while (at < text.size()) {
      std::size_t next = at;
      if (!belongs(utf8::decode(text, next))) break;
      at = next;
    }
    return at;
  }

  // 's 't 'm 'd 're 've 'll behind the apostrophe at `at`; 0 where there is none.
  std::size_t contraction_size(std::string_view text, std::size_t at) const {
    const auto letter = [&](std::size_t i) -> char {
      if (at + i >= text.size()) return 0;
      const char c = text[at + i];
      return rules_.ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    };
    const char a = letter(1), b = letter(2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return 0;
  }

  // Every character begins a match: a letter, a number, space, or something else.
  std::size_t match_at(std::string_view text, std::size_t at) const {
    std::size_t second = at;
    const char32_t first = utf8::decode(text, second);
    if (first == '\'') {
      if (const std::size_t size = contraction_size(text, at); size > 0) return at + size;
    }
    if (is_letter(first)) return run_end(text, second, is_letter);
    std::size_t third = second;
    const char32_t behind = second < text.size() ? utf8::decode(text, third) : 0;
    const bool has_second = second < text.size();
    const bool may_lead = rules_.any_lead ? !is_line_break(first) && !is_number(first) : first == ' ';
    if (may_lead && has_second && is_letter(behind)) return run_end(text, third, is_letter);
    if (rules_.max_digits > 0) {
      if (is_number(first)) {
        int digits = 1;
        return run_end(text, second, [&](char32_t c) { return is_number(c) && digits++ < rules_.max_digits; });
      }
    } else {
      if (is_number(first)) return run_end(text, second, is_number);
      if (first == ' ' && has_second && is_number(behind)) return run_end(text, third, is_number);
    }
    if (is_other(first) || (first == ' ' && has_second && is_other(behind))) {
      const std::size_t end = run_end(text, second, is_other);
      return rules_.line_break_tail ? run_end(text, end, is_line_break) : end;
    }
    // White space: all of it at the end of the text, else all but the last character, which leads what follows.
    std::size_t last = at, last_break_end = 0;
    const std::size_t end = run_end(text, at, [&, position = at](char32_t c) mutable {
      if (!unicode::is_white_space(c)) return false;
      last = position;
      position += utf8::encoded_size(c);
      if (is_line_break(c)) last_break_end = position;
      return true;
    });
    if (rules_.line_break_tail && last_break_end > 0) return last_break_end;
    return end == text.size() || last == at ? end : last;
  }

  WordRules rules_;
};

class LiteralPattern final : public SplitPattern {
 public:
  explicit LiteralPattern(std::string_view literal) : literal_(literal) {}

  Status for_each_match(std::string_view text, OnMatch on_match) const override {
    if (literal_.empty()) return Status::ok();
    for (std::size_t at = text.find(literal_); at != std::string_view::npos; at = text.find(literal_, at + literal_.size())) {
      MR_RETURN_IF_ERROR(on_match(at, at + literal_.size()));
    }
    return Status::ok();
  }

 private:
  std::string literal_;
};

class RegexPattern final : public SplitPattern {
 public:
  explicit RegexPattern(Regex regex) : regex_(std::move(regex)) {}

  // An empty match right behind the last one is passed over, and the search goes on one character further.
  Status for_each_match(std::string_view text, OnMatch on_match) const override {
    std::optional<std::size_t> last_end;
    for (std::size_t at = 0; at <= text.size();) {
      MR_ASSIGN_OR_RETURN(const std::optional<TextRange> found, regex_.find(text, at));
      if (!found) break;
      if (found->begin == found->end && last_end == found->end) {
        if (at == text.size()) break;
        utf8::decode(text, at);
        continue;
      }
      at = found->end;
      last_end = found->end;
      MR_RETURN_IF_ERROR(on_match(found->begin, found->end));
    }
    return Status::ok();
  }

 private:
  Regex regex_;
};

const WordRules* find_rules(std::string_view regex) {
  for (const NamedRules& named : kNamedRules) {
    if (named.regex == regex) return &named.rules;
  }
  return nullptr;
}

}  // namespace

bool is_built_in_pattern(std::string_view regex) { return find_rules(regex) != nullptr; }

Result<std::unique_ptr<SplitPattern>> make_regex_pattern(std::string_view regex) {
  if (const WordRules* rules = find_rules(regex)) return std::unique_ptr<SplitPattern>(std::make_unique<WordPattern>(*rules));
  MR_ASSIGN_OR_RETURN(Regex compiled, Regex::compile(regex));
  return std::unique_ptr<SplitPattern>(std::make_unique<RegexPattern>(std::move(compiled)));
}

std::unique_ptr<SplitPattern> make_literal_pattern(std::string_view literal) { return std::make_unique<LiteralPattern>(literal); }

}  // namespace millrace
