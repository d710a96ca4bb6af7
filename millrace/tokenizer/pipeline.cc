#include "millrace/tokenizer/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "millrace/base/utf8.h"

namespace millrace {

// Which bytes of the original text a user wrote.
struct TokenizerPipeline::Plain {
  std::span<const TextRange> ranges;
  bool all = false;

  bool none() const { return ranges.empty() && !all; }
  bool overlaps(std::size_t begin, std::size_t end) const {
    if (all) return true;
    const auto* found = std::upper_bound(ranges.data(), ranges.data() + ranges.size(), begin,
                                         [](std::size_t at, const TextRange& range) { return at < range.end; });
    return found != ranges.data() + ranges.size() && found->begin < end;
  }
};

Status TokenizerPipeline::finish() {
  const Vocabulary& words = model->vocabulary();
  int64_t end_id = words.end_id();
  for (const AddedToken& token : added_tokens) {
    added.add(token.content, token.id);
    end_id = std::max<int64_t>(end_id, token.id + 1);
  }
  for (const int32_t id : post_processor.ids()) end_id = std::max<int64_t>(end_id, id + 1);
  vocab_size = end_id;
  special.assign(static_cast<std::size_t>(end_id), false);
  for (const AddedToken& token : added_tokens) {
    if (token.special) special[static_cast<std::size_t>(token.id)] = true;
  }
  control = special;
  const auto mark_control = [&](std::optional<int32_t> id) {
    if (id && *id >= 0 && *id < end_id) control[static_cast<std::size_t>(*id)] = true;
  };
  mark_control(bos_token_id);
  mark_control(eos_token_id);
  for (const int32_t id : other_control_ids) mark_control(id);

  std::vector<AddedTokenMatcher::Pattern> raw, normalized;
  const auto add_pattern = [&](const AddedToken& token) -> Status {
    const bool is_control = control[static_cast<std::size_t>(token.id)];
    if (!token.normalized) {
      raw.push_back({token.content, token, is_control});
      return Status::ok();
    }
    NormalizedText text = NormalizedText::of(token.content, false);
    if (normalizer != nullptr) MR_RETURN_IF_ERROR(normalizer->apply(text));
    if (text.text != token.content) added_normalized.add(text.text, token.id);
    normalized.push_back({std::move(text.text), token, is_control});
    return Status::ok();
  };
  // Special tokens come first where two normalize to the same text.
  for (const bool want_special : {true, false}) {
    for (const AddedToken& token : added_tokens) {
      if (token.special == want_special) MR_RETURN_IF_ERROR(add_pattern(token));
    }
  }
  raw_matcher = AddedTokenMatcher(std::move(raw));
  normalized_matcher = AddedTokenMatcher(std::move(normalized));
  model->set_control_ids(control);
  return Status::ok();
}

Result<std::vector<int32_t>> TokenizerPipeline::encode(std::string_view text, const EncodeOptions& options) const {
  if (text.size() >= std::numeric_limits<int32_t>::max())
    return Status::resource_exhausted("a text of 2 GB or more cannot be tokenized at once");
  if (const auto invalid = utf8::find_invalid(text))
    return Status::invalid_argument(fmt::format("the text is not UTF-8 at byte {}", *invalid));
  for (std::size_t i = 0; i < options.plain_ranges.size(); ++i) {
    const TextRange range = options.plain_ranges[i];
    if (range.begin > range.end || range.end > text.size() || (i > 0 && range.begin < options.plain_ranges[i - 1].end)) {
      return Status::invalid_argument(
          fmt::format("plain range {} is [{}, {}): not sorted, disjoint and within {} bytes", i, range.begin, range.end, text.size()));
    }
  }
  const Plain plain{options.plain_ranges, !options.parse_special};
  const auto is_plain = [&](std::size_t begin, std::size_t end) { return plain.overlaps(begin, end); };
  const AddedTokenMatcher::IsPlain is_plain_ref(is_plain);
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  MR_RETURN_IF_ERROR(raw_matcher.split(
      text, plain.none() ? nullptr : &is_plain_ref,
      [&](std::size_t begin, std::size_t end) { return encode_text(text, begin, end, plain, ids); },
      [&](int32_t id) {
        ids.push_back(id);
        return Status::ok();
      }));
  if (options.add_special_tokens) post_processor.apply(ids);
  return ids;
}

// A part of the text between added tokens that are found as written.
Status TokenizerPipeline::encode_text(std::string_view text, std::size_t begin, std::size_t end, const Plain& plain,
                                      std::vector<int32_t>& ids) const {
  const std::string_view part = text.substr(begin, end - begin);
  const bool allow_control = !plain.overlaps(begin, end);
  if (normalizer == nullptr && normalized_matcher.empty()) return encode_piece(part, begin == 0, allow_control, ids);

  NormalizedText normalized;
  std::string_view view = part;
  if (normalizer != nullptr) {
    const bool tracked =
        (!allow_control && !normalized_matcher.empty()) || (begin == 0 && pre_tokenizer != nullptr && pre_tokenizer->needs_start());
    normalized = NormalizedText::of(part, tracked);
    MR_RETURN_IF_ERROR(normalizer->apply(normalized));
    view = normalized.text;
  }
  // A byte's place in the original text.
  const auto origin = [&](std::size_t at) {
    if (normalizer == nullptr) return begin + at;
    return at < normalized.origins.size() ? begin + normalized.origins[at] : end;
  };
  const auto is_plain = [&](std::size_t first, std::size_t last) {
    const std::size_t from = origin(first);
    return plain.overlaps(from, std::max(origin(last), from + 1));
  };
  const AddedTokenMatcher::IsPlain is_plain_ref(is_plain);
  return normalized_matcher.split(
      view, allow_control ? nullptr : &is_plain_ref,
      [&](std::size_t first, std::size_t last) {
        const bool at_start = begin == 0 && (normalizer == nullptr || !normalized.tracked ? first == 0 : origin(first) == 0);
        return encode_piece(view.substr(first, last - first), at_start, allow_control, ids);
      },
      [&](int32_t id) {
        ids.push_back(id);
        return Status::ok();
      });
}

Status TokenizerPipeline::encode_piece(std::string_view piece, bool at_start, bool allow_control, std::vector<int32_t>& ids) const {
  if (piece.empty()) return Status::ok();
  if (pre_tokenizer == nullptr) return model->encode(piece, allow_control, ids);
  return pre_tokenizer->apply(
      piece, at_start, [&](std::string_view word, bool) { return word.empty() ? Status::ok() : model->encode(word, allow_control, ids); });
}

std::string_view TokenizerPipeline::token(int32_t id) const { return added.contains(id) ? added.token(id) : model->vocabulary().token(id); }
std::string_view TokenizerPipeline::decoded_token(int32_t id) const {
  return added_normalized.contains(id) ? added_normalized.token(id) : token(id);
}
bool TokenizerPipeline::contains(int32_t id) const { return added.contains(id) || model->vocabulary().contains(id); }

}  // namespace millrace
