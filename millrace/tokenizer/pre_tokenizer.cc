#include "millrace/tokenizer/pre_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/byte_level.h"
#include "millrace/tokenizer/json_fields.h"
#include "millrace/tokenizer/split_behavior.h"
#include "millrace/tokenizer/split_pattern.h"
#include "millrace/tokenizer/unicode.h"

namespace millrace {
namespace {

constexpr int64_t kByteLevelsMax = 2;

class SplitPreTokenizer final : public PreTokenizer {
 public:
  SplitPreTokenizer(std::unique_ptr<SplitPattern> pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  Status apply(std::string_view piece, bool at_start, OnPiece on_piece) const override {
    Splitter splitter(piece, at_start, behavior_, on_piece);
    std::size_t done = 0;
    const Status status = pattern_->for_each_match(piece, [&](std::size_t begin, std::size_t end) -> Status {
      if (done < begin) MR_RETURN_IF_ERROR(splitter.add(done, begin, invert_));
      done = end;
      return splitter.add(begin, end, !invert_);
    });
    MR_RETURN_IF_ERROR(status);
    if (done < piece.size()) MR_RETURN_IF_ERROR(splitter.add(done, piece.size(), invert_));
    return splitter.finish();
  }

 private:
  std::unique_ptr<SplitPattern> pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

// Every character of a class is a match of its own.
using CharPredicate = bool (*)(char32_t c, char32_t argument);

Status split_characters(std::string_view piece, bool at_start, CharPredicate matches, char32_t argument, SplitBehavior behavior,
                        PreTokenizer::OnPiece on_piece) {
  Splitter splitter(piece, at_start, behavior, on_piece);
  std::size_t done = 0;
  for (std::size_t at = 0; at < piece.size();) {
    const std::size_t begin = at;
    if (!matches(utf8::decode(piece, at), argument)) continue;
    if (done < begin) MR_RETURN_IF_ERROR(splitter.add(done, begin, false));
    MR_RETURN_IF_ERROR(splitter.add(begin, at, true));
    done = at;
  }
  if (done < piece.size()) MR_RETURN_IF_ERROR(splitter.add(done, piece.size(), false));
  return splitter.finish();
}

bool is_punctuation(char32_t c, char32_t) { return unicode::has_flag(c, unicode::kBertPunctuation); }
bool is_white_space(char32_t c, char32_t) { return unicode::is_white_space(c); }
bool is_numeric(char32_t c, char32_t) { return unicode::is_in(c, unicode::kNumber); }
bool is_same(char32_t c, char32_t argument) { return c == argument; }

class CharacterPreTokenizer final : public PreTokenizer {
 public:
  CharacterPreTokenizer(CharPredicate matches, char32_t argument, SplitBehavior behavior)
      : matches_(matches), argument_(argument), behavior_(behavior) {}

  Status apply(std::string_view piece, bool at_start, OnPiece on_piece) const override {
    return split_characters(piece, at_start, matches_, argument_, behavior_, on_piece);
  }

 private:
  CharPredicate matches_;
  char32_t argument_;
  SplitBehavior behavior_;
};

class BertPreTokenizer final : public PreTokenizer {
 public:
  Status apply(std::string_view piece, bool at_start, OnPiece on_piece) const override {
    return split_characters(piece, at_start, is_white_space, 0, SplitBehavior::kRemoved, [&](std::string_view word, bool start) {
      return split_characters(word, start, is_punctuation, 0, SplitBehavior::kIsolated, on_piece);
    });
  }
};

// \w+|[^\w\s]+ with everything else removed.
class WhitespacePreTokenizer final : public PreTokenizer {
 public:
  Status apply(std::string_view piece, bool at_start, OnPiece on_piece) const override {
    const auto kind_of = [](char32_t c) {
      if (unicode::is_plain_word(c)) return 1;
      return unicode::is_white_space(c) ? 0 : 2;
    };
    for (std::size_t at = 0; at < piece.size();) {
      const std::size_t begin = at;
      const int kind = kind_of(utf8::decode(piece, at));
      std::size_t next = at;
      while (at < piece.size() && kind_of(utf8::decode(piece, next)) == kind) at = next;
      if (kind != 0) MR_RETURN_IF_ERROR(on_piece(piece.substr(begin, at - begin), at_start && begin == 0));
    }
    return Status::ok();
  }
};

class ByteLevelPreTokenizer final : public PreTokenizer {
 public:
  ByteLevelPreTokenizer(bool add_prefix_space, std::unique_ptr<SplitPattern> pattern)
      : add_prefix_space_(add_prefix_space), pattern_(std::move(pattern)) {}

  bool is_byte_level() const override { return true; }

  Status apply(std::string_view piece, bool at_start, OnPiece on_piece) const override {
    std::string prefixed;
    if (add_prefix_space_ && !piece.starts_with(' ')) {
      prefixed.reserve(piece.size() + 1);
      prefixed.append(" ").append(piece);
      piece = prefixed;
    }
    std::string mapped;
    const auto give = [&](std::string_view word, bool start) {
      mapped.clear();
      append_byte_level(mapped, word);
      return on_piece(mapped, start);
    };
    if (pattern_ == nullptr) return give(piece, at_start);
    std::size_t done = 0;
    const Status status = pattern_->for_each_match(piece, [&](std::size_t begin, std::size_t end) -> Status {
      if (done < begin) MR_RETURN_IF_ERROR(give(piece.substr(done, begin - done), at_start && done == 0));
      done = end;
      return give(piece.substr(begin, end - begin), at_start && begin == 0);
    });
    MR_RETURN_IF_ERROR(status);
    return done < piece.size() ? give(piece.substr(done), at_start && done == 0) : Status::ok();
  }

 private:
  bool add_prefix_space_;
  std::unique_ptr<SplitPattern> pattern_;  // null: the piece stays whole
};

enum class PrependScheme { kAlways, kFirst, kNever };

class MetaspacePreTokenizer final : public PreTokenizer {
 public:
  MetaspacePreTokenizer(char32_t replacement, PrependScheme scheme, bool split) : character_(replacement), scheme_(scheme), split_(split) {
    utf8::append(replacement_, replacement);
  }

  bool needs_start() const override { return scheme_ == PrependScheme::kFirst; }

  Status apply(std::string_view piece, bool at_start, OnPiece on_piece) const override {
    std::string text;
    text.reserve(piece.size() + piece.size() / 4 + replacement_.size());
    const bool prefixed = piece.starts_with(' ') || piece.starts_with(replacement_);
    if (!prefixed && (scheme_ == PrependScheme::kAlways || (scheme_ == PrependScheme::kFirst && at_start))) text += replacement_;
    for (const char c : piece) {
      if (c == ' ') {
        text += replacement_;
      } else {
        text += c;
      }
    }
    if (!split_) return on_piece(text, at_start);
    return split_characters(text, at_start, is_same, character_, SplitBehavior::kMergedWithNext, on_piece);
  }

 private:
  char32_t character_;
  std::string replacement_;
  PrependScheme scheme_;
  bool split_;
};

class FixedLengthPreTokenizer final : public PreTokenizer {
 public:
  explicit FixedLengthPreTokenizer(std::size_t num_characters) : num_characters_(num_characters) {}

  Status apply(std::string_view piece, bool at_start, OnPiece on_piece) const override {
    for (std::size_t at = 0; at < piece.size();) {
      const std::size_t begin = at;
      for (std::size_t i = 0; i < num_characters_ && at < piece.size(); ++i) utf8::decode(piece, at);
      MR_RETURN_IF_ERROR(on_piece(piece.substr(begin, at - begin), at_start && begin == 0));
    }
    return Status::ok();
  }

 private:
  std::size_t num_characters_;
};

// Cuts where the script changes. Characters of no script join the piece before them; those before the first piece are dropped.
class UnicodeScriptsPreTokenizer final : public PreTokenizer {
 public:
  Status apply(std::string_view piece, bool at_start, OnPiece on_piece) const override {
    uint8_t script = 0;
    std::size_t piece_begin = 0;
    for (std::size_t at = 0; at < piece.size();) {
      const std::size_t begin = at;
      const uint8_t here = unicode::script(utf8::decode(piece, at));
      if (here == 0 || here == script) continue;
      if (script != 0) MR_RETURN_IF_ERROR(on_piece(piece.substr(piece_begin, begin - piece_begin), at_start && piece_begin == 0));
      script = here;
      piece_begin = begin;
    }
    return script != 0 ? on_piece(piece.substr(piece_begin), at_start && piece_begin == 0) : Status::ok();
  }
};

class SequencePreTokenizer final : public PreTokenizer {
 public:
  explicit SequencePreTokenizer(std::vector<std::unique_ptr<PreTokenizer>> stages) : stages_(std::move(stages)) {}

  bool needs_start() const override {
    for (const auto& stage : stages_) {
      if (stage->needs_start()) return true;
    }
    return false;
  }
  bool is_byte_level() const override {
    for (const auto& stage : stages_) {
      if (stage->is_byte_level()) return true;
    }
    return false;
  }
  Status apply(std::string_view piece, bool at_start, OnPiece on_piece) const override { return apply_from(0, piece, at_start, on_piece); }

 private:
  // Recurses over the stages, whose number the loader bounds.
  Status apply_from(std::size_t stage, std::string_view piece, bool at_start, OnPiece on_piece) const {
    if (stage == stages_.size()) return on_piece(piece, at_start);
    return stages_[stage]->apply(piece, at_start,
                                 [&](std::string_view part, bool start) { return apply_from(stage + 1, part, start, on_piece); });
  }

  std::vector<std::unique_ptr<PreTokenizer>> stages_;
};

using Made = Result<std::unique_ptr<PreTokenizer>>;

template <class Stage, class... Arguments>
Made make(Arguments&&... arguments) {
  return std::unique_ptr<PreTokenizer>(std::make_unique<Stage>(std::forward<Arguments>(arguments)...));
}

Made make_split(const JsonFields& fields) {
  MR_ASSIGN_OR_RETURN(const json::value* pattern, fields.require("pattern"));
  MR_ASSIGN_OR_RETURN(const SplitBehavior behavior, read_split_behavior(fields, "Removed"));
  MR_ASSIGN_OR_RETURN(const bool invert, fields.boolean_or("invert", false));
  MR_ASSIGN_OR_RETURN(std::unique_ptr<SplitPattern> compiled, read_split_pattern(*pattern, fields.what() + ": \"pattern\""));
  return make<SplitPreTokenizer>(std::move(compiled), behavior, invert);
}

Made make_byte_level(const JsonFields& fields) {
  MR_ASSIGN_OR_RETURN(const bool add_prefix_space, fields.boolean_or("add_prefix_space", true));
  MR_ASSIGN_OR_RETURN(const bool use_regex, fields.boolean_or("use_regex", true));
  std::unique_ptr<SplitPattern> pattern;
  if (use_regex) {
    MR_ASSIGN_OR_RETURN(pattern, make_regex_pattern(kGpt2Pattern));
  }
  return make<ByteLevelPreTokenizer>(add_prefix_space, std::move(pattern));
}

Made make_metaspace(const JsonFields& fields) {
  MR_ASSIGN_OR_RETURN(const char32_t replacement, fields.character("replacement"));
  MR_ASSIGN_OR_RETURN(const bool split, fields.boolean_or("split", true));
  // Older files say add_prefix_space where newer ones have prepend_scheme.
  MR_ASSIGN_OR_RETURN(const bool add_prefix_space, fields.boolean_or("add_prefix_space", true));
  MR_ASSIGN_OR_RETURN(const std::string scheme, fields.string_or("prepend_scheme", add_prefix_space ? "always" : "never"));
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    return Status::invalid_argument(
        fmt::format("{}: \"prepend_scheme\" is \"{}\", expected always, first or never", fields.what(), scheme));
  }
  return make<MetaspacePreTokenizer>(replacement,
                                     scheme == "always"  ? PrependScheme::kAlways
                                     : scheme == "first" ? PrependScheme::kFirst
                                                         : PrependScheme::kNever,
                                     split);
}

Made make_sequence(const JsonFields& fields, int depth) {
  MR_ASSIGN_OR_RETURN(const json::value* list, fields.require("pretokenizers"));
  if (!list->is_array()) return Status::invalid_argument(fields.what() + ": \"pretokenizers\" is not an array");
  if (list->get_array().size() > kPartsMax) {
    return Status::invalid_argument(fmt::format("{}: {} parts, at most {} are taken", fields.what(), list->get_array().size(), kPartsMax));
  }
  std::vector<std::unique_ptr<PreTokenizer>> stages;
  for (const json::value& part : list->get_array()) {
    MR_ASSIGN_OR_RETURN(std::unique_ptr<PreTokenizer> stage, make_pre_tokenizer(part, depth + 1));
    if (stage != nullptr) stages.push_back(std::move(stage));
  }
  // Each of these may double or triple the text.
  const auto num_byte_levels = std::count_if(stages.begin(), stages.end(), [](const auto& stage) { return stage->is_byte_level(); });
  if (num_byte_levels > kByteLevelsMax) {
    return Status::invalid_argument(
        fmt::format("{}: {} ByteLevel parts, at most {} are taken", fields.what(), num_byte_levels, kByteLevelsMax));
  }
  return make<SequencePreTokenizer>(std::move(stages));
}

}  // namespace

Result<std::unique_ptr<PreTokenizer>> make_pre_tokenizer(const json::value& description, int depth) {
  if (description.is_null()) return std::unique_ptr<PreTokenizer>{};
  if (depth > kPartDepthMax) return Status::invalid_argument(fmt::format("pre_tokenizer: nested deeper than {}", kPartDepthMax));
  MR_ASSIGN_OR_RETURN(const JsonFields untyped, JsonFields::of(description, "pre_tokenizer"));
  MR_ASSIGN_OR_RETURN(const std::string type, untyped.string("type"));
  MR_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::of(description, "pre_tokenizer " + type));
  if (type == "Sequence") return make_sequence(fields, depth);
  if (type == "Split") return make_split(fields);
  if (type == "ByteLevel") return make_byte_level(fields);
  if (type == "Metaspace") return make_metaspace(fields);
  if (type == "BertPreTokenizer") return make<BertPreTokenizer>();
  if (type == "Whitespace") return make<WhitespacePreTokenizer>();
  if (type == "UnicodeScripts") return make<UnicodeScriptsPreTokenizer>();
  if (type == "WhitespaceSplit") return make<CharacterPreTokenizer>(is_white_space, U'\0', SplitBehavior::kRemoved);
  if (type == "Punctuation") {
    MR_ASSIGN_OR_RETURN(const SplitBehavior behavior, read_split_behavior(fields, "Isolated"));
    return make<CharacterPreTokenizer>(is_punctuation, U'\0', behavior);
  }
  if (type == "Digits") {
    MR_ASSIGN_OR_RETURN(const bool individual, fields.boolean_or("individual_digits", false));
    return make<CharacterPreTokenizer>(is_numeric, U'\0', individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
  }
  if (type == "CharDelimiterSplit") {
    MR_ASSIGN_OR_RETURN(const char32_t delimiter, fields.character("delimiter"));
    return make<CharacterPreTokenizer>(is_same, delimiter, SplitBehavior::kRemoved);
  }
  if (type == "FixedLength") {
    MR_ASSIGN_OR_RETURN(const int64_t length, fields.integer_or("length", 5, 1, 1 << 20));
    return make<FixedLengthPreTokenizer>(static_cast<std::size_t>(length));
  }
  return Status::unsupported(fmt::format("pre_tokenizer: type \"{}\" is unknown", type.substr(0, 50)));
}

}  // namespace millrace
