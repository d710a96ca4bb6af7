#include "millrace/tokenizer/normalizer.h"

#include <fmt/format.h>

#include <numeric>
#include <utility>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/byte_level.h"
#include "millrace/tokenizer/json_fields.h"
#include "millrace/tokenizer/precompiled_charsmap.h"
#include "millrace/tokenizer/pre_tokenizer.h"
#include "millrace/tokenizer/split_behavior.h"
#include "millrace/tokenizer/unicode.h"

namespace millrace {

NormalizedText NormalizedText::of(std::string_view text, bool tracked) {
  // The longest decomposition of Unicode makes 11 bytes of one; spaces and prefixes add a few.
  NormalizedText out{std::string(text), {}, tracked, text.size() * 64 + (64 << 10)};
  if (tracked) {
    out.origins.resize(text.size());
    std::iota(out.origins.begin(), out.origins.end(), 0U);
  }
  return out;
}

NormalizedBuilder::NormalizedBuilder(const NormalizedText& source) : source_(source) {
  result_.tracked = source.tracked;
  result_.max_bytes = source.max_bytes;
  result_.text.reserve(source.text.size() + source.text.size() / 8);
}

void NormalizedBuilder::add(std::string_view bytes, std::size_t source_offset) {
  result_.text += bytes;
  if (!source_.tracked) return;
  const uint32_t origin = source_offset < source_.origins.size() ? source_.origins[source_offset]
                          : source_.origins.empty()              ? 0
                                                                 : source_.origins.back();
  result_.origins.insert(result_.origins.end(), bytes.size(), origin);
}

void NormalizedBuilder::add(char32_t c, std::size_t source_offset) {
  const std::size_t before = result_.text.size();
  utf8::append(result_.text, c);
  if (source_.tracked) result_.origins.insert(result_.origins.end(), result_.text.size() - before, source_.origins[source_offset]);
}

NormalizedText NormalizedBuilder::take() { return std::move(result_); }

namespace {

Status too_large(std::size_t max_bytes) {
  return Status::resource_exhausted(fmt::format("normalizer: the text grows beyond {} bytes", max_bytes));
}

}  // namespace

Status NormalizedBuilder::check_size() const {
  return result_.text.size() > result_.max_bytes ? too_large(result_.max_bytes) : Status::ok();
}

namespace {

// Rewrites one character after the other; `rewrite` adds what it becomes.
template <class Rewrite>
void rewrite_characters(NormalizedText& text, Rewrite&& rewrite) {
  NormalizedBuilder builder(text);
  for (std::size_t at = 0; at < text.text.size();) {
    const std::size_t begin = at;
    rewrite(builder, utf8::decode(text.text, at), begin);
  }
  text = builder.take();
}

template <class Predicate>
void keep_characters(NormalizedText& text, Predicate&& keep) {
  rewrite_characters(text, [&](NormalizedBuilder& builder, char32_t c, std::size_t source) {
    if (keep(c)) builder.add(c, source);
  });
}

void to_lower_case(NormalizedText& text) {
  rewrite_characters(text, [](NormalizedBuilder& builder, char32_t c, std::size_t source) {
    const std::u32string_view mapped = unicode::lower_case(c);
    if (mapped.empty()) builder.add(c, source);
    for (const char32_t part : mapped) builder.add(part, source);
  });
}

bool is_chinese(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
         (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

class FormNormalizer final : public Normalizer {
 public:
  explicit FormNormalizer(NormalizationForm form) : form_(form) {}
  Status apply(NormalizedText& text) const override {
    normalize(text, form_);
    return Status::ok();
  }

 private:
  NormalizationForm form_;
};

struct LowercaseNormalizer final : Normalizer {
  Status apply(NormalizedText& text) const override {
    to_lower_case(text);
    return Status::ok();
  }
};

struct StripAccentsNormalizer final : Normalizer {
  Status apply(NormalizedText& text) const override {
    keep_characters(text, [](char32_t c) { return !unicode::has_flag(c, unicode::kCombiningMark); });
    return Status::ok();
  }
};

struct NmtNormalizer final : Normalizer {
  Status apply(NormalizedText& text) const override {
    rewrite_characters(text, [](NormalizedBuilder& builder, char32_t c, std::size_t source) {
      if ((c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F) return;
      const bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 ||
                         c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
      builder.add(space ? U' ' : c, source);
    });
    return Status::ok();
  }
};

struct ByteLevelNormalizer final : Normalizer {
  Status apply(NormalizedText& text) const override {
    NormalizedBuilder builder(text);
    std::string mapped;
    for (std::size_t at = 0; at < text.text.size(); ++at) {
      mapped.clear();
      append_byte_level(mapped, std::string_view(text.text).substr(at, 1));
      builder.add(mapped, at);
    }
    text = builder.take();
    return Status::ok();
  }
};

class StripNormalizer final : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  Status apply(NormalizedText& text) const override {
    std::size_t begin = 0, end = text.text.size();
    while (left_ && begin < end) {
      std::size_t next = begin;
      if (!unicode::is_white_space(utf8::decode(text.text, next))) break;
      begin = next;
    }
    while (right_ && end > begin) {
      const char32_t c = utf8::decode_before(text.text, end);
      if (!unicode::is_white_space(c)) break;
      end -= utf8::encoded_size(c);
    }
    text.text = text.text.substr(begin, end - begin);
    if (text.tracked)
      text.origins = {text.origins.begin() + static_cast<std::ptrdiff_t>(begin), text.origins.begin() + static_cast<std::ptrdiff_t>(end)};
    return Status::ok();
  }

 private:
  bool left_, right_;
};

class ReplaceNormalizer final : public Normalizer {
 public:
  ReplaceNormalizer(std::unique_ptr<SplitPattern> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  Status apply(NormalizedText& text) const override {
    const std::string_view source = text.text;
    NormalizedBuilder builder(text);
    std::size_t done = 0;
    const auto keep_until = [&](std::size_t end) {
      if (!text.tracked) {
        builder.add(source.substr(done, end - done), done);
        return;
      }
      for (; done < end; ++done) builder.add(source.substr(done, 1), done);
    };
    MR_RETURN_IF_ERROR(pattern_->for_each_match(source, [&](std::size_t begin, std::size_t end) {
      keep_until(begin);
      builder.add(content_, begin);
      done = end;
      return builder.check_size();
    }));
    keep_until(source.size());
    text = builder.take();
    return Status::ok();
  }

 private:
  std::unique_ptr<SplitPattern> pattern_;
  std::string content_;
};

class PrependNormalizer final : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}
  Status apply(NormalizedText& text) const override {
    if (text.text.empty()) return Status::ok();
    text.text.insert(0, prefix_);
    if (text.tracked) text.origins.insert(text.origins.begin(), prefix_.size(), text.origins.front());
    return Status::ok();
  }

 private:
  std::string prefix_;
};

class BertNormalizer final : public Normalizer {
 public:
  BertNormalizer(bool clean_text, bool handle_chinese_chars, bool strip_accents, bool lowercase)
      : clean_text_(clean_text), handle_chinese_chars_(handle_chinese_chars), strip_accents_(strip_accents), lowercase_(lowercase) {}

  Status apply(NormalizedText& text) const override {
    if (clean_text_) {
      rewrite_characters(text, [](NormalizedBuilder& builder, char32_t c, std::size_t source) {
        if (unicode::has_flag(c, unicode::kBertControl)) return;
        builder.add(unicode::is_white_space(c) ? U' ' : c, source);
      });
    }
    if (handle_chinese_chars_) {
      rewrite_characters(text, [](NormalizedBuilder& builder, char32_t c, std::size_t source) {
        const bool chinese = is_chinese(c);
        if (chinese) builder.add(U' ', source);
        builder.add(c, source);
        if (chinese) builder.add(U' ', source);
      });
    }
    if (strip_accents_) {
      normalize(text, NormalizationForm::kD);
      keep_characters(text, [](char32_t c) { return !unicode::has_flag(c, unicode::kBertAccent); });
    }
    if (lowercase_) to_lower_case(text);
    return Status::ok();
  }

 private:
  bool clean_text_, handle_chinese_chars_, strip_accents_, lowercase_;
};

class SequenceNormalizer final : public Normalizer {
 public:
  explicit SequenceNormalizer(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  Status apply(NormalizedText& text) const override {
    for (const auto& part : parts_) {
      MR_RETURN_IF_ERROR(part->apply(text));
      if (text.text.size() > text.max_bytes) return too_large(text.max_bytes);
    }
    return Status::ok();
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

using Made = Result<std::unique_ptr<Normalizer>>;

template <class Part, class... Arguments>
Made make(Arguments&&... arguments) {
  return std::unique_ptr<Normalizer>(std::make_unique<Part>(std::forward<Arguments>(arguments)...));
}

Made make_sequence(const JsonFields& fields, int depth) {
  MR_ASSIGN_OR_RETURN(const json::value* list, fields.require("normalizers"));
  if (!list->is_array()) return Status::invalid_argument(fields.what() + ": \"normalizers\" is not an array");
  if (list->get_array().size() > kPartsMax) {
    return Status::invalid_argument(fmt::format("{}: {} parts, at most {} are taken", fields.what(), list->get_array().size(), kPartsMax));
  }
  std::vector<std::unique_ptr<Normalizer>> parts;
  for (const json::value& part : list->get_array()) {
    MR_ASSIGN_OR_RETURN(std::unique_ptr<Normalizer> normalizer, make_normalizer(part, depth + 1));
    if (normalizer != nullptr) parts.push_back(std::move(normalizer));
  }
  return make<SequenceNormalizer>(std::move(parts));
}

Made make_bert(const JsonFields& fields) {
  MR_ASSIGN_OR_RETURN(const bool clean_text, fields.boolean_or("clean_text", true));
  MR_ASSIGN_OR_RETURN(const bool handle_chinese_chars, fields.boolean_or("handle_chinese_chars", true));
  MR_ASSIGN_OR_RETURN(const bool lowercase, fields.boolean_or("lowercase", true));
  MR_ASSIGN_OR_RETURN(const bool strip_accents, fields.boolean_or("strip_accents", lowercase));
  return make<BertNormalizer>(clean_text, handle_chinese_chars, strip_accents, lowercase);
}

}  // namespace

Result<std::unique_ptr<Normalizer>> make_normalizer(const json::value& description, int depth) {
  if (description.is_null()) return std::unique_ptr<Normalizer>{};
  if (depth > kPartDepthMax) return Status::invalid_argument(fmt::format("normalizer: nested deeper than {}", kPartDepthMax));
  MR_ASSIGN_OR_RETURN(const JsonFields untyped, JsonFields::of(description, "normalizer"));
  MR_ASSIGN_OR_RETURN(const std::string type, untyped.string("type"));
  MR_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::of(description, "normalizer " + type));
  if (type == "Sequence") return make_sequence(fields, depth);
  if (type == "NFC") return make<FormNormalizer>(NormalizationForm::kC);
  if (type == "NFD") return make<FormNormalizer>(NormalizationForm::kD);
  if (type == "NFKC") return make<FormNormalizer>(NormalizationForm::kKC);
  if (type == "NFKD") return make<FormNormalizer>(NormalizationForm::kKD);
  if (type == "Lowercase") return make<LowercaseNormalizer>();
  if (type == "StripAccents") return make<StripAccentsNormalizer>();
  if (type == "Nmt") return make<NmtNormalizer>();
  if (type == "ByteLevel") return make<ByteLevelNormalizer>();
  if (type == "BertNormalizer") return make_bert(fields);
  if (type == "Strip") {
    MR_ASSIGN_OR_RETURN(const bool left, fields.boolean_or("strip_left", true));
    MR_ASSIGN_OR_RETURN(const bool right, fields.boolean_or("strip_right", true));
    return make<StripNormalizer>(left, right);
  }
  if (type == "Prepend") {
    MR_ASSIGN_OR_RETURN(const std::string prefix, fields.string("prepend"));
    return make<PrependNormalizer>(prefix);
  }
  if (type == "Replace") {
    MR_ASSIGN_OR_RETURN(const json::value* pattern, fields.require("pattern"));
    MR_ASSIGN_OR_RETURN(const std::string content, fields.string("content"));
    MR_ASSIGN_OR_RETURN(std::unique_ptr<SplitPattern> compiled, read_split_pattern(*pattern, fields.what() + ": \"pattern\""));
    return make<ReplaceNormalizer>(std::move(compiled), content);
  }
  if (type == "Precompiled") {
    MR_ASSIGN_OR_RETURN(const std::string charsmap, fields.string_or("precompiled_charsmap", ""));
    if (charsmap.empty()) return std::unique_ptr<Normalizer>{};
    MR_ASSIGN_OR_RETURN(std::unique_ptr<PrecompiledCharsmap> parsed, PrecompiledCharsmap::parse_base64(charsmap));
    return std::unique_ptr<Normalizer>(std::move(parsed));
  }
  return Status::unsupported(fmt::format("normalizer: type \"{}\" is unknown", type.substr(0, 50)));
}

}  // namespace millrace
