// Filters that write HTML: attributes, and links around what looks like an address.
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/tokenizer/jinja/filters.h"
#include "millrace/tokenizer/jinja/operators.h"
#include "millrace/tokenizer/jinja/runtime.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

Value xml_attributes(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const auto bound = arguments.bind("xmlattr", {"autospace"});
  require_defined(input);
  if (!input.is_dict()) fail(fmt::format("'{}' object has no attribute 'items'", type_name(input)));
  const bool autospace = !bound[0].has_value() || runtime.is_true(*bound[0]);
  TextBuilder out(runtime.budget());
  for (const auto& [key, value] : input.dict().entries) {
    if (value.is_none() || value.is_undefined()) continue;
    if (!key.is_string()) fail(fmt::format("expected string or bytes-like object, got '{}'", type_name(key)));
    if (key.text().bytes.find_first_of(" \t\n\v\f\r/>=") != std::string::npos)
      fail(fmt::format("Invalid character in attribute name: '{}'", key.text().bytes));
    if (out.size() > 0 || autospace) out.append(" ");
    out.append_escaped(key.text());
    out.append("=\"");
    out.append_escaped(*runtime.text_of(value));
    out.append("\"");
  }
  return out.finish();
}

// Characters as Python's regular expressions class them, letter case set aside.
bool is_word(char32_t c) { return c == '_' || is_alnum(c); }
bool is_tld_letter(char32_t c) {
  // Four characters outside of ASCII are cases of i, s and k.
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == 0x130 || c == 0x131 || c == 0x17f || c == 0x212a;
}
bool is_hex(char32_t c) { return is_decimal(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

// Reads an address from its start: each take() moves on where it succeeds.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  std::string_view rest() const { return text_; }
  bool take(std::string_view word) {  // without regard to case; `word` is in lower case
    if (to_lower(text_.substr(0, word.size())) != word) return false;
    text_.remove_prefix(word.size());
    return true;
  }
  template <class Predicate>
  std::size_t take_while(Predicate belongs, std::size_t max = std::string_view::npos) {
    std::size_t count = 0;
    for (; count < max && !text_.empty(); ++count) {
      const CodePoint c = decode_at(text_, 0);
      if (!belongs(c.value)) break;
      text_.remove_prefix(c.num_bytes);
    }
    return count;
  }
  // Nothing more, or a port, a path, a query or a fragment.
  bool ends_host() {
    if (take(":")) {
      const std::size_t num_digits = take_while(is_decimal);
      if (num_digits < 1 || num_digits > 5) return false;
    }
    return text_.empty() || text_[0] == '/' || text_[0] == '?' || text_[0] == '#';
  }

 private:
  std::string_view text_;
};

// The labels of a host name that is all of `host`; empty when a label is empty.
std::vector<std::string_view> labels_of(std::string_view host) {
  std::vector<std::string_view> labels;
  for (std::size_t begin = 0;;) {
    const std::size_t dot = std::min(host.find('.', begin), host.size());
    if (dot == begin) return {};
    labels.push_back(host.substr(begin, dot - begin));
    if (dot == host.size()) return labels;
    begin = dot + 1;
  }
}

// What stands behind "http://" or "www.": any labels, and a last one that could be a top-level domain.
bool is_named_host(std::string_view text) {
  Reader reader(text);
  reader.take_while([](char32_t c) { return is_word(c) || c == '%' || c == '-' || c == '.'; });
  const std::vector<std::string_view> labels = labels_of(text.substr(0, text.size() - reader.rest().size()));
  if (labels.empty() || !reader.ends_host()) return false;
  Reader last(labels.back());
  const std::size_t num_letters = last.take_while(is_tld_letter);
  if (last.rest().empty() && num_letters >= 2 && num_letters <= 63) return true;
  Reader international(labels.back());
  if (!international.take("xn--")) return false;
  const std::size_t size = international.take_while([](char32_t c) { return is_word(c) || c == '%'; });
  return international.rest().empty() && size >= 2 && size <= 59;
}

// A name without a scheme needs one of the oldest top-level domains.
bool is_bare_host(std::string_view text) {
  static constexpr std::string_view kDomains[] = {"com", "net", "int", "edu", "gov", "org", "info", "mil"};
  Reader reader(text);
  reader.take_while([](char32_t c) { return is_word(c) || c == '%' || c == '-' || c == '.'; });
  const std::vector<std::string_view> labels = labels_of(text.substr(0, text.size() - reader.rest().size()));
  if (labels.size() < 2 || !reader.ends_host()) return false;
  if (std::find(std::begin(kDomains), std::end(kDomains), to_lower(labels.back())) == std::end(kDomains)) return false;
  return std::all_of(labels.begin(), labels.end() - 1, [](std::string_view label) {
    const std::size_t size = count_code_points(label);
    return size >= 2 && size <= 63;
  });
}

bool is_ipv4_host(std::string_view text) {
  Reader reader(text);
  for (int i = 0; i < 4; ++i) {
    if ((i > 0 && !reader.take(".")) || reader.take_while(is_decimal, 3) == 0) return false;
  }
  return reader.ends_host();
}

// Two groups of up to four digits with their colons, then one to six, whose colons may be missing.
bool is_ipv6_host(std::string_view text) {
  Reader reader(text);
  if (!reader.take("[")) return false;
  for (int i = 0; i < 2; ++i) {
    reader.take_while(is_hex, 4);
    if (!reader.take(":")) return false;
  }
  for (int i = 0; i < 6; ++i) {
    reader.take_while(is_hex, 4);
    reader.take(":");
  }
  return reader.take("]") && reader.ends_host();
}

bool is_web_address(std::string_view text) {
  Reader reader(text);
  if (reader.take("http://") || reader.take("https://"))
    return is_named_host(reader.rest()) || is_ipv4_host(reader.rest()) || is_ipv6_host(reader.rest());
  return (reader.take("www.") && is_named_host(reader.rest())) || is_bare_host(text);
}

// Anything, an @, and a name with a dot in it whose last part has word characters only.
bool is_mail_address(std::string_view text) {
  const std::size_t at = text.rfind('@');
  if (at == std::string_view::npos || at == 0) return false;
  const std::string_view host = text.substr(at + 1);
  const std::size_t dot = host.rfind('.');
  if (dot == std::string_view::npos || dot == 0) return false;
  Reader name(host.substr(0, dot)), last(host.substr(dot + 1));
  if (name.take_while(is_word, 1) == 0 || last.take_while(is_word) == 0 || !last.rest().empty()) return false;
  name.take_while([](char32_t c) { return is_word(c) || c == '-' || c == '.'; });
  return name.rest().empty();
}

std::size_t count(std::string_view text, std::string_view what) {
  std::size_t num = 0;
  for (std::size_t at = text.find(what); at != std::string_view::npos; at = text.find(what, at + what.size())) ++num;
  return num;
}

// The part of an escaped word that may be an address: brackets around it and punctuation behind it belong to the sentence.
struct WordParts {
  std::size_t begin, end;
};
WordParts address_part(std::string_view word) {
  WordParts part{0, word.size()};
  for (bool more = true; more;) {
    more = false;
    for (const std::string_view opening : {"(", "<", "&lt;"}) {
      if (!word.substr(part.begin).starts_with(opening)) continue;
      part.begin += opening.size();
      more = true;
    }
  }
  for (bool more = true; more;) {
    more = false;
    for (const std::string_view closing : {")", ">", ".", ",", "&gt;"}) {
      if (!word.substr(part.begin, part.end - part.begin).ends_with(closing)) continue;
      part.end -= closing.size();
      more = true;
    }
  }
  // A bracket that opens inside of the address takes its closing one back.
  static constexpr std::pair<std::string_view, std::string_view> kBrackets[] = {{"(", ")"}, {"<", ">"}, {"&lt;", "&gt;"}};
  for (const auto& [opening, closing] : kBrackets) {
    const std::string_view middle = word.substr(part.begin, part.end - part.begin);
    const std::size_t num_open = count(middle, opening);
    if (num_open <= count(middle, closing)) continue;
    for (std::size_t left = std::min(num_open, count(word.substr(part.end), closing)); left > 0; --left)
      part.end = word.find(closing, part.end) + closing.size();
  }
  return part;
}

struct LinkStyle {
  std::optional<Value> trim_limit;
  std::string attributes;  // of the element, from the template
  std::vector<std::string> schemes;
};

bool is_scheme(std::string_view scheme) {
  Reader reader(scheme);
  const std::size_t size = reader.take_while([](char32_t c) { return is_word(c) || c == '.' || c == '+' || c == '-'; });
  return size >= 2 && (reader.rest() == ":" || reader.rest() == ":/" || reader.rest() == "://");
}

// Appends bytes [begin, end) of `text`, which are a link or stay what they are.
void append_linked(Runtime& runtime, TextBuilder& out, const TextPtr& text, std::size_t begin, std::size_t end, const LinkStyle& style) {
  const std::string_view address = std::string_view(text->bytes).substr(begin, end - begin);
  const auto link = [&](std::string_view prefix, std::string_view attributes, std::size_t shown_begin, bool trimmed) {
    out.append("<a href=\"");
    out.append(prefix);
    out.append(*text, begin, end);
    out.append("\"");
    out.append(attributes);
    out.append(">");
    const TextPtr shown = slice_text(runtime.budget(), text, shown_begin, end);
    if (trimmed && style.trim_limit &&
        static_cast<int64_t>(shown->num_code_points()) > require_integer(*style.trim_limit, "trim_url_limit")) {
      out.append(slice(runtime, shown, None{}, *style.trim_limit, None{}).text());
      out.append("...");
    } else {
      out.append(*shown);
    }
    out.append("</a>");
  };
  static constexpr std::string_view kMail = "mailto:";
  if (is_web_address(address)) {
    link(address.starts_with("https://") || address.starts_with("http://") ? "" : "https://", style.attributes, begin, true);
  } else if (address.starts_with(kMail) && is_mail_address(address.substr(kMail.size()))) {
    link("", "", begin + kMail.size(), false);
  } else if (!address.starts_with("www.") && !address.starts_with('@') && address.find(':') == std::string_view::npos &&
             is_mail_address(address)) {
    link(kMail, "", begin, false);
  } else if (std::any_of(style.schemes.begin(), style.schemes.end(),
                         [&](const std::string& scheme) { return address != scheme && address.starts_with(scheme); })) {
    link("", style.attributes, begin, false);
  } else {
    out.append(*text, begin, end);
  }
}

std::string attribute(std::string_view name, Runtime& runtime, const Text& value) {
  TextBuilder out(runtime.budget());
  out.append(fmt::format(" {}=\"", name));
  out.append_escaped(value);
  out.append("\"");
  return out.take_bytes();
}

LinkStyle read_link_style(Runtime& runtime, const std::vector<std::optional<Value>>& bound) {
  const auto given = [&](std::size_t i) { return bound[i].has_value() && !bound[i]->is_none(); };
  LinkStyle style;
  if (given(0)) style.trim_limit = *bound[0];
  std::vector<std::string> rel = {"noopener"};
  if (given(3) && runtime.is_true(*bound[3])) {
    if (!bound[3]->is_string()) fail(fmt::format("'{}' object has no attribute 'split'", type_name(*bound[3])));
    Reader words(bound[3]->text().bytes);
    for (words.take_while(is_space); !words.rest().empty(); words.take_while(is_space)) {
      const std::string_view from = words.rest();
      words.take_while([](char32_t c) { return !is_space(c); });
      rel.emplace_back(from.substr(0, from.size() - words.rest().size()));
    }
  }
  if (bound[1].has_value() && runtime.is_true(*bound[1])) rel.emplace_back("nofollow");
  std::sort(rel.begin(), rel.end());
  rel.erase(std::unique(rel.begin(), rel.end()), rel.end());
  style.attributes = attribute("rel", runtime, *make_text(fmt::format("{}", fmt::join(rel, " "))));
  if (given(2) && runtime.is_true(*bound[2])) style.attributes += attribute("target", runtime, *runtime.text_of(*bound[2]));
  if (!given(4)) return style;
  for (const Value& scheme : runtime.iterate(*bound[4])) {
    if (!scheme.is_string() || !is_scheme(scheme.text().bytes))
      fail(fmt::format("'{}' is not a valid URI scheme prefix.", runtime.text_of(scheme)->bytes));
    style.schemes.push_back(scheme.text().bytes);
  }
  return style;
}

Value urlize(Runtime& runtime, const Value& input, const CallArguments& arguments) {
  const LinkStyle style =
      read_link_style(runtime, arguments.bind("urlize", {"trim_url_limit", "nofollow", "target", "rel", "extra_schemes"}));
  TextBuilder escaped(runtime.budget());
  escaped.append_escaped(*runtime.text_of(input));
  const TextPtr text = escaped.finish();
  TextBuilder out(runtime.budget());
  for (std::size_t begin = 0; begin < text->bytes.size();) {
    Reader word(std::string_view(text->bytes).substr(begin));
    const bool is_gap = word.take_while(is_space) > 0;
    if (!is_gap) word.take_while([](char32_t c) { return !is_space(c); });
    const std::size_t end = text->bytes.size() - word.rest().size();
    runtime.budget().charge_bytes((end - begin) * (1 + style.schemes.size()));
    const WordParts part = is_gap ? WordParts{0, 0} : address_part(std::string_view(text->bytes).substr(begin, end - begin));
    out.append(*text, begin, begin + part.begin);
    if (part.end > part.begin) append_linked(runtime, out, text, begin + part.begin, begin + part.end, style);
    out.append(*text, begin + part.end, end);
    begin = end;
  }
  return out.finish();
}

constexpr NamedFilter kFilters[] = {{"xmlattr", xml_attributes}, {"urlize", urlize}};

}  // namespace

FilterFunction find_markup_filter(std::string_view name) {
  for (const auto& filter : kFilters) {
    if (filter.name == name) return filter.function;
  }
  return nullptr;
}

}  // namespace millrace::jinja
