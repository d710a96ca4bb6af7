#include "millrace/tokenizer/decoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <utility>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/byte_level.h"
#include "millrace/tokenizer/json_fields.h"
#include "millrace/tokenizer/pre_tokenizer.h"
#include "millrace/tokenizer/split_behavior.h"

namespace millrace {
namespace {

// Parts that replace text may each make it longer: their number and size are bounded, and so is what a token becomes.
constexpr std::size_t kReplacementBytesMax = 64;
constexpr std::size_t kDecodedTokenBytesMax = std::size_t{1} << 20;

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  std::size_t done = 0;
  for (std::size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, done)) {
    out.append(text.substr(done, at - done)).append(to);
    done = at + from.size();
    if (from.empty()) {  // between all characters, as Rust's str::replace
      if (done == text.size()) return out;
      std::size_t next = done;
      utf8::decode(text, next);
      out.append(text.substr(done, next - done));
      done = next;
    }
  }
  return out.append(text.substr(done));
}

// English spacing around punctuation, as the WordPiece decoder has it.
std::string clean_up(std::string text) {
  static constexpr std::pair<std::string_view, std::string_view> kRules[] = {
      {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
      {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kRules) {
    if (text.find(from) != std::string::npos) text = replace_all(text, from, to);
  }
  return text;
}

// A stage that looks at whole tokens.
class WholeTokenStage : public DecoderStage {
 public:
  void push(std::string_view part, bool ends) final {
    if (ends && held_.empty()) {
      token(part);
    } else {
      held_ += part;
      if (ends) token(std::exchange(held_, {}));
    }
  }
  void finish() override { next_->finish(); }

 protected:
  virtual void token(std::string_view text) = 0;

 private:
  std::string held_;
};

class ByteLevelStage final : public DecoderStage {
 public:
  void push(std::string_view part, bool ends) override {
    if (!ends || !held_.empty()) {
      held_ += part;
      if (!ends) return;
      const std::string token = std::exchange(held_, {});
      add(token);
    } else {
      add(part);
    }
    std::string text;
    bytes_.erase(0, utf8::append_lossy(text, bytes_, false));
    if (!text.empty()) next_->push(text, false);
  }
  void finish() override {
    std::string text;
    utf8::append_lossy(text, bytes_, true);
    bytes_.clear();
    next_->push(text, true);
    next_->finish();
  }

 private:
  // A token with a character that stands for no byte is taken as it is written.
  void add(std::string_view token) {
    const std::size_t size = bytes_.size();
    for (std::size_t at = 0; at < token.size();) {
      const std::optional<unsigned char> byte = byte_of_level_character(utf8::decode(token, at));
      if (!byte) {
        bytes_.resize(size);
        bytes_ += token;
        return;
      }
      bytes_ += static_cast<char>(*byte);
    }
  }
  std::string held_, bytes_;
};

// "<0xE2>" as Rust's from_str_radix reads the two digits: "+F" is fifteen.
std::optional<unsigned char> byte_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  const int high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<unsigned char>(high * 16 + low);
}

class ByteFallbackStage final : public WholeTokenStage {
 public:
  explicit ByteFallbackStage(ByteRuns byte_runs) : byte_runs_(byte_runs) {}

  void finish() override {
    end_run();
    next_->finish();
  }

 private:
  void token(std::string_view text) override {
    if (const std::optional<unsigned char> byte = byte_token(text)) {
      if (byte_runs_ == ByteRuns::kWhole) {
        bytes_ += static_cast<char>(*byte);
      } else {
        add(static_cast<char>(*byte));
      }
      return;
    }
    end_run();
    next_->push(text, true);
  }

  // The run's characters so far are the beginning of a token, for the stages behind.
  void add(char byte) {
    bytes_ += byte;
    if (!broken_) {
      const utf8::Scan found = utf8::scan(bytes_, 0);
      if (found.incomplete) return;
      if (found.valid) {
        next_->push(bytes_, false);
        given_ = true;
        bytes_.clear();
        return;
      }
    }
    replace();
  }

  void replace() {
    if (std::exchange(given_, false)) next_->push({}, true);
    for (std::size_t i = 0; i < bytes_.size(); ++i) next_->push(utf8::kReplacement, true);
    bytes_.clear();
    broken_ = true;
  }

  void end_run() {
    if (!utf8::is_valid(bytes_)) {
      replace();
    } else if (given_ || !bytes_.empty()) {
      next_->push(bytes_, true);
    }
    bytes_.clear();
    given_ = broken_ = false;
  }

  ByteRuns byte_runs_;
  std::string bytes_;    // of the run, what no stage has got yet
  bool given_ = false;   // characters of the run, as the beginning of a token
  bool broken_ = false;  // a byte of the run was no text
};

class FuseStage final : public DecoderStage {
 public:
  void push(std::string_view part, bool) override {
    if (!part.empty()) next_->push(part, false);
  }
  void finish() override {
    next_->push({}, true);
    next_->finish();
  }
};

class StripStage final : public DecoderStage {
 public:
  StripStage(char32_t content, std::size_t start, std::size_t stop) : start_(start), stop_(stop) { utf8::append(content_, content); }

  void push(std::string_view part, bool ends) override {
    while (num_cut_ < start_ && leading_ && part.starts_with(content_)) {
      part.remove_prefix(content_.size());
      ++num_cut_;
    }
    if (!part.empty()) leading_ = false;
    // Characters to strip are held back at the end of the token: more of it may follow.
    const std::size_t max = ends ? std::string_view::npos : stop_;
    std::string text = std::exchange(tail_, {});
    text += part;
    std::string_view rest = text;
    std::size_t num_tail = 0;
    while (num_tail < std::min(max, stop_) && rest.ends_with(content_)) {
      rest.remove_suffix(content_.size());
      ++num_tail;
    }
    if (!ends) tail_ = text.substr(rest.size());
    next_->push(rest, ends);
    if (ends) {
      num_cut_ = 0;
      leading_ = true;
    }
  }
  void finish() override { next_->finish(); }

 private:
  std::string content_, tail_;
  std::size_t start_, stop_, num_cut_ = 0;
  bool leading_ = true;  // nothing but stripped characters of this token so far
};

class ReplaceStage final : public WholeTokenStage {
 public:
  ReplaceStage(const SplitPattern& pattern, std::string_view content) : pattern_(pattern), content_(content) {}

 private:
  void token(std::string_view text) override {
    std::string out;
    std::size_t done = 0;
    const Status status = pattern_.for_each_match(text, [&](std::size_t begin, std::size_t end) {
      out.append(text.substr(done, begin - done)).append(content_);
      done = end;
      return out.size() > std::max(kDecodedTokenBytesMax, text.size()) ? Status::resource_exhausted("decoder: too large") : Status::ok();
    });
    // A pattern that gives up, or text that grows without bound, leaves this token as it is.
    out.append(text.substr(done));
    next_->push(status.is_ok() ? std::string_view(out) : text, true);
  }
  const SplitPattern& pattern_;
  std::string_view content_;
};

class MetaspaceStage final : public DecoderStage {
 public:
  MetaspaceStage(std::string_view replacement, bool drop_first) : replacement_(replacement), first_(drop_first) {}

  // The character may be cut by a part's end only if the vocabulary is no text; parts are whole characters otherwise.
  void push(std::string_view part, bool ends) override {
    next_->push(part.empty() ? std::string() : replace_all(part, replacement_, first_ ? "" : " "), ends);
    if (ends) first_ = false;
  }
  void finish() override { next_->finish(); }

 private:
  std::string_view replacement_;
  bool first_;
};

class WordPieceStage final : public WholeTokenStage {
 public:
  WordPieceStage(std::string_view prefix, bool cleanup) : prefix_(prefix), cleanup_(cleanup) {}

 private:
  void token(std::string_view text) override {
    std::string out;
    if (!first_ && !text.starts_with(prefix_)) {
      out = " ";
      out += text;
    } else {
      out = first_ ? text : text.substr(prefix_.size());
    }
    first_ = false;
    next_->push(cleanup_ ? clean_up(std::move(out)) : out, true);
  }
  std::string_view prefix_;
  bool cleanup_, first_ = true;
};

// The suffix becomes a space, but in the last token: so each token waits for the next.
class BpeSuffixStage final : public WholeTokenStage {
 public:
  explicit BpeSuffixStage(std::string_view suffix) : suffix_(suffix) {}
  void finish() override {
    if (held_) next_->push(replace_all(*held_, suffix_, ""), true);
    next_->finish();
  }

 private:
  void token(std::string_view text) override {
    if (held_) next_->push(replace_all(*held_, suffix_, " "), true);
    held_ = std::string(text);
  }
  std::string_view suffix_;
  std::optional<std::string> held_;
};

class CtcStage final : public WholeTokenStage {
 public:
  CtcStage(std::string_view pad, std::string_view delimiter, bool cleanup) : pad_(pad), delimiter_(delimiter), cleanup_(cleanup) {}

 private:
  void token(std::string_view text) override {
    if (previous_ && *previous_ == text) return;
    previous_ = std::string(text);
    std::string out = replace_all(text, pad_, "");
    if (cleanup_) out = replace_all(clean_up(std::move(out)), delimiter_, " ");
    if (!out.empty()) next_->push(out, true);
  }
  std::string_view pad_, delimiter_;
  bool cleanup_;
  std::optional<std::string> previous_;
};

class SpaceJoinStage final : public WholeTokenStage {
  void token(std::string_view text) override {
    if (!std::exchange(first_, false)) next_->push(" ", false);
    next_->push(text, true);
  }
  bool first_ = true;
};

// The end of every chain.
class CollectStage final : public DecoderStage {
 public:
  explicit CollectStage(std::string& text) : text_(text) {}
  void push(std::string_view part, bool ends) override {
    bytes_ += part;
    bytes_.erase(0, utf8::append_lossy(text_, bytes_, ends));
  }
  void finish() override {
    utf8::append_lossy(text_, bytes_, true);
    bytes_.clear();
  }

 private:
  std::string& text_;
  std::string bytes_;
};

// A decoder whose stages are made by a function.
template <class Make>
class MakingDecoder final : public Decoder {
 public:
  explicit MakingDecoder(Make make) : make_(std::move(make)) {}
  void add_stages(std::vector<std::unique_ptr<DecoderStage>>& stages, ByteRuns byte_runs) const override {
    if constexpr (std::is_invocable_v<const Make&, ByteRuns>) {
      stages.push_back(make_(byte_runs));
    } else {
      stages.push_back(make_());
    }
  }

 private:
  Make make_;
};

using Made = Result<std::unique_ptr<Decoder>>;

template <class Make>
Made decoder_of(Make make) {
  return std::unique_ptr<Decoder>(std::make_unique<MakingDecoder<Make>>(std::move(make)));
}

class SequenceDecoder final : public Decoder {
 public:
  explicit SequenceDecoder(std::vector<std::unique_ptr<Decoder>> parts) : parts_(std::move(parts)) {}
  void add_stages(std::vector<std::unique_ptr<DecoderStage>>& stages, ByteRuns byte_runs) const override {
    for (const auto& part : parts_) part->add_stages(stages, byte_runs);
  }

 private:
  std::vector<std::unique_ptr<Decoder>> parts_;
};

Made make_sequence(const JsonFields& fields, int depth) {
  MR_ASSIGN_OR_RETURN(const json::value* list, fields.require("decoders"));
  if (!list->is_array()) return Status::invalid_argument(fields.what() + ": \"decoders\" is not an array");
  if (list->get_array().size() > kPartsMax) {
    return Status::invalid_argument(fmt::format("{}: {} parts, at most {} are taken", fields.what(), list->get_array().size(), kPartsMax));
  }
  std::vector<std::unique_ptr<Decoder>> parts;
  for (const json::value& part : list->get_array()) {
    if (part.is_null()) return Status::invalid_argument(fields.what() + ": a part is null");
    MR_ASSIGN_OR_RETURN(std::unique_ptr<Decoder> decoder, make_decoder(part, depth + 1));
    parts.push_back(std::move(decoder));
  }
  return std::unique_ptr<Decoder>(std::make_unique<SequenceDecoder>(std::move(parts)));
}

}  // namespace

Result<std::unique_ptr<Decoder>> make_decoder(const json::value& description, int depth) {
  if (description.is_null()) return decoder_of([] { return std::make_unique<SpaceJoinStage>(); });
  if (depth > kPartDepthMax) return Status::invalid_argument(fmt::format("decoder: nested deeper than {}", kPartDepthMax));
  MR_ASSIGN_OR_RETURN(const JsonFields untyped, JsonFields::of(description, "decoder"));
  MR_ASSIGN_OR_RETURN(const std::string type, untyped.string("type"));
  MR_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::of(description, "decoder " + type));
  if (type == "Sequence") return make_sequence(fields, depth);
  if (type == "ByteLevel") return decoder_of([] { return std::make_unique<ByteLevelStage>(); });
  if (type == "ByteFallback") return decoder_of([](ByteRuns byte_runs) { return std::make_unique<ByteFallbackStage>(byte_runs); });
  if (type == "Fuse") return decoder_of([] { return std::make_unique<FuseStage>(); });
  if (type == "Strip") {
    MR_ASSIGN_OR_RETURN(const char32_t content, fields.character("content"));
    MR_ASSIGN_OR_RETURN(const int64_t start, fields.integer_or("start", 0, 0, 1 << 20));
    MR_ASSIGN_OR_RETURN(const int64_t stop, fields.integer_or("stop", 0, 0, 1 << 20));
    return decoder_of(
        [=] { return std::make_unique<StripStage>(content, static_cast<std::size_t>(start), static_cast<std::size_t>(stop)); });
  }
  if (type == "Replace") {
    MR_ASSIGN_OR_RETURN(const json::value* pattern, fields.require("pattern"));
    MR_ASSIGN_OR_RETURN(const std::string content, fields.string("content"));
    if (content.size() > kReplacementBytesMax) {
      return Status::invalid_argument(
          fmt::format("{}: \"content\" has {} bytes, at most {} are taken", fields.what(), content.size(), kReplacementBytesMax));
    }
    MR_ASSIGN_OR_RETURN(std::unique_ptr<SplitPattern> compiled, read_split_pattern(*pattern, fields.what() + ": \"pattern\""));
    return decoder_of([shared = std::shared_ptr<const SplitPattern>(std::move(compiled)), content] {
      return std::make_unique<ReplaceStage>(*shared, content);
    });
  }
  if (type == "Metaspace") {
    MR_ASSIGN_OR_RETURN(const char32_t character, fields.character("replacement"));
    MR_ASSIGN_OR_RETURN(const bool add_prefix_space, fields.boolean_or("add_prefix_space", true));
    MR_ASSIGN_OR_RETURN(const std::string scheme, fields.string_or("prepend_scheme", add_prefix_space ? "always" : "never"));
    std::string replacement;
    utf8::append(replacement, character);
    return decoder_of([replacement, drop = scheme != "never"] { return std::make_unique<MetaspaceStage>(replacement, drop); });
  }
  if (type == "WordPiece") {
    MR_ASSIGN_OR_RETURN(const std::string prefix, fields.string_or("prefix", "##"));
    MR_ASSIGN_OR_RETURN(const bool cleanup, fields.boolean_or("cleanup", true));
    return decoder_of([=] { return std::make_unique<WordPieceStage>(prefix, cleanup); });
  }
  if (type == "BPEDecoder") {
    MR_ASSIGN_OR_RETURN(const std::string suffix, fields.string_or("suffix", "</w>"));
    return decoder_of([=] { return std::make_unique<BpeSuffixStage>(suffix); });
  }
  if (type == "CTC") {
    MR_ASSIGN_OR_RETURN(const std::string pad, fields.string_or("pad_token", "<pad>"));
    MR_ASSIGN_OR_RETURN(const std::string delimiter, fields.string_or("word_delimiter_token", "|"));
    MR_ASSIGN_OR_RETURN(const bool cleanup, fields.boolean_or("cleanup", true));
    return decoder_of([=] { return std::make_unique<CtcStage>(pad, delimiter, cleanup); });
  }
  return Status::unsupported(fmt::format("decoder: type \"{}\" is unknown", type.substr(0, 50)));
}

DecoderChain::DecoderChain(const Decoder& decoder, ByteRuns byte_runs) {
  decoder.add_stages(stages_, byte_runs);
  stages_.push_back(std::make_unique<CollectStage>(text_));
  for (std::size_t i = 0; i + 1 < stages_.size(); ++i) stages_[i]->set_next(stages_[i + 1].get());
}

void DecoderChain::push_token(std::string_view token) { stages_.front()->push(token, true); }
void DecoderChain::finish() { stages_.front()->finish(); }
std::string DecoderChain::take() { return std::exchange(text_, {}); }

}  // namespace millrace
