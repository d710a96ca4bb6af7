// The vocabulary inside a GGUF file, translated into the parts that the model's own tokenizer.json would have.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/bpe.h"
#include "millrace/tokenizer/byte_trie.h"
#include "millrace/tokenizer/gguf_pre_tokenizers.h"
#include "millrace/tokenizer/pipeline.h"
#include "millrace/tokenizer/precompiled_charsmap.h"
#include "millrace/tokenizer/unigram.h"
#include "millrace/tokenizer/wordpiece.h"

namespace millrace {
namespace {

enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

constexpr std::size_t kTokenBytesMax = 4096;
constexpr std::string_view kWordStart = "\xE2\x96\x81";  // "▁"

using Vocab = GgufVocabulary;

int32_t type_of(const Vocab& vocab, std::size_t id) { return vocab.token_types.empty() ? kNormal : vocab.token_types[id]; }

Status check(const Vocab& vocab) {
  const std::size_t num_tokens = vocab.tokens.size();
  if (num_tokens == 0 || num_tokens > static_cast<std::size_t>(Vocabulary::kMaxId)) {
    return Status::invalid_argument(fmt::format("tokenizer.ggml.tokens has {} entries, expected 1 to {}", num_tokens, Vocabulary::kMaxId));
  }
  if (!vocab.token_types.empty() && vocab.token_types.size() != num_tokens) {
    return Status::invalid_argument(
        fmt::format("tokenizer.ggml.token_type has {} entries for {} tokens", vocab.token_types.size(), num_tokens));
  }
  if (!vocab.scores.empty() && vocab.scores.size() != num_tokens) {
    return Status::invalid_argument(fmt::format("tokenizer.ggml.scores has {} entries for {} tokens", vocab.scores.size(), num_tokens));
  }
  for (std::size_t id = 0; id < num_tokens; ++id) {
    if (vocab.tokens[id].size() > kTokenBytesMax) {
      return Status::invalid_argument(
          fmt::format("tokenizer.ggml.tokens[{}] has {} bytes, at most {} are taken", id, vocab.tokens[id].size(), kTokenBytesMax));
    }
    if (utf8::find_invalid(vocab.tokens[id])) return Status::invalid_argument(fmt::format("tokenizer.ggml.tokens[{}] is not UTF-8", id));
    if (!vocab.scores.empty() && !std::isfinite(vocab.scores[id]))
      return Status::invalid_argument(fmt::format("tokenizer.ggml.scores[{}] is not a number", id));
  }
  const std::pair<std::string_view, std::optional<int32_t>> ids[] = {{"bos", vocab.bos_token_id},
                                                                     {"eos", vocab.eos_token_id},
                                                                     {"eot", vocab.eot_token_id},
                                                                     {"unknown", vocab.unknown_token_id},
                                                                     {"seperator", vocab.separator_token_id},
                                                                     {"padding", vocab.padding_token_id},
                                                                     {"cls", vocab.cls_token_id},
                                                                     {"mask", vocab.mask_token_id}};
  for (const auto& [name, id] : ids) {
    if (id && (*id < 0 || static_cast<std::size_t>(*id) >= num_tokens)) {
      return Status::invalid_argument(fmt::format("tokenizer.ggml.{}_token_id is {}, expected 0 to {}", name, *id, num_tokens - 1));
    }
  }
  return Status::ok();
}

// Of equal tokens the first one is found.
Vocabulary make_vocabulary(const std::vector<std::string>& tokens) {
  Vocabulary vocabulary;
  vocabulary.reserve(tokens.size(), std::accumulate(tokens.begin(), tokens.end(), std::size_t{0},
                                                    [](std::size_t sum, const std::string& token) { return sum + token.size(); }));
  for (std::size_t id = tokens.size(); id-- > 0;) vocabulary.add(tokens[id], static_cast<int32_t>(id));
  return vocabulary;
}

void add_special_tokens(const Vocab& vocab, TokenizerPipeline& pipeline) {
  const Vocabulary& vocabulary = pipeline.model->vocabulary();
  for (std::size_t id = 0; id < vocab.tokens.size(); ++id) {
    const int32_t type = type_of(vocab, id);
    if (type != kUnknown && type != kControl && type != kUserDefined) continue;
    if (vocab.tokens[id].empty() || vocabulary.find(vocab.tokens[id]) != static_cast<int32_t>(id)) continue;
    AddedToken token;
    token.id = static_cast<int32_t>(id);
    token.content = vocab.tokens[id];
    token.special = type != kUserDefined;
    token.normalized = false;
    pipeline.added_tokens.push_back(std::move(token));
  }
  if (vocab.eot_token_id) pipeline.other_control_ids.push_back(*vocab.eot_token_id);
}

Status set_normalizer(std::string_view description, TokenizerPipeline& pipeline) {
  if (description.empty()) return Status::ok();
  MR_ASSIGN_OR_RETURN(const json::value value, parse_json(description));
  MR_ASSIGN_OR_RETURN(pipeline.normalizer, make_normalizer(value));
  return Status::ok();
}

Status set_pre_tokenizer(std::string_view description, TokenizerPipeline& pipeline) {
  MR_ASSIGN_OR_RETURN(const json::value value, parse_json(description));
  MR_ASSIGN_OR_RETURN(pipeline.pre_tokenizer, make_pre_tokenizer(value));
  return Status::ok();
}

Status set_decoder(std::string_view description, TokenizerPipeline& pipeline) {
  MR_ASSIGN_OR_RETURN(const json::value value, parse_json(description));
  MR_ASSIGN_OR_RETURN(pipeline.decoder, make_decoder(value));
  return Status::ok();
}

Status set_template(std::optional<int32_t> before, std::optional<int32_t> behind, TokenizerPipeline& pipeline) {
  std::vector<PostProcessor::Part> parts;
  if (before) parts.push_back({before});
  parts.push_back({});
  if (behind) parts.push_back({behind});
  pipeline.post_processor = PostProcessor(std::move(parts));
  return Status::ok();
}

Status set_bos_and_eos(const Vocab& vocab, bool add_bos_by_default, TokenizerPipeline& pipeline) {
  const bool add_bos = vocab.add_bos_token.value_or(add_bos_by_default), add_eos = vocab.add_eos_token.value_or(false);
  return set_template(add_bos ? vocab.bos_token_id : std::nullopt, add_eos ? vocab.eos_token_id : std::nullopt, pipeline);
}

Status translate_byte_level(const Vocab& vocab, TokenizerPipeline& pipeline) {
  const GgufPreTokenizer* pre = find_gguf_pre_tokenizer(vocab.pre);
  if (pre == nullptr) {
    return Status::unsupported(
        fmt::format("tokenizer.ggml.pre is \"{}\", a pre-tokenizer that is not known here; guessing one would change the text's tokens",
                    vocab.pre.substr(0, 100)));
  }
  Vocabulary vocabulary = make_vocabulary(vocab.tokens);
  MergeTable merges;
  merges.reserve(vocab.merges.size());
  std::string joined;
  for (std::size_t i = 0; i < vocab.merges.size(); ++i) {
    const std::string_view merge = vocab.merges[i];
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos) return Status::invalid_argument(fmt::format("tokenizer.ggml.merges[{}] is not \"left right\"", i));
    const std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
    joined = left;
    joined += right;
    const std::optional<int32_t> left_id = vocabulary.find(left), right_id = vocabulary.find(right), merged_id = vocabulary.find(joined);
    if (!left_id || !right_id || !merged_id) {
      return Status::invalid_argument(fmt::format("tokenizer.ggml.merges[{}] needs \"{}\", which is not in tokenizer.ggml.tokens", i,
                                                  !left_id    ? left
                                                  : !right_id ? right
                                                              : std::string_view(joined)));
    }
    merges.set(*left_id, *right_id, {static_cast<uint32_t>(i), *merged_id});
  }
  BpeOptions options;
  options.ignore_merges = pre->ignore_merges;
  pipeline.model = std::make_unique<BpeModel>(std::move(vocabulary), std::move(merges), std::move(options));
  MR_RETURN_IF_ERROR(set_normalizer(pre->normalizer, pipeline));
  MR_RETURN_IF_ERROR(set_pre_tokenizer(pre->pre_tokenizer, pipeline));
  MR_RETURN_IF_ERROR(set_decoder(R"({"type":"ByteLevel"})", pipeline));
  return set_bos_and_eos(vocab, pre->add_bos, pipeline);
}

// SentencePiece's BPE joins the two neighbours whose joined token has the best score: so every way to cut a token in two is a
// merge, in the order of the scores.
Result<MergeTable> merges_of_scores(const Vocab& vocab, const Vocabulary& vocabulary) {
  struct Cut {
    float score;
    int32_t merged_id, left_id, right_id;
  };
  std::vector<std::pair<std::string_view, int32_t>> entries;
  for (std::size_t id = vocab.tokens.size(); id-- > 0;) entries.emplace_back(vocab.tokens[id], static_cast<int32_t>(id));
  const ByteTrie prefixes(std::move(entries));
  std::vector<Cut> cuts;
  for (std::size_t id = 0; id < vocab.tokens.size(); ++id) {
    if (type_of(vocab, id) != kNormal) continue;
    const std::string_view token = vocab.tokens[id];
    const int32_t merged_id = vocabulary.find(token).value_or(static_cast<int32_t>(id));
    prefixes.for_each_prefix(token, [&](std::size_t size, int32_t left_id) {
      if (size == token.size()) return;
      if (const std::optional<int32_t> right_id = vocabulary.find(token.substr(size)))
        cuts.push_back({vocab.scores[id], merged_id, left_id, *right_id});
    });
  }
  std::stable_sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) {
    if (a.score != b.score) return a.score > b.score;
    return std::array{a.merged_id, a.left_id, a.right_id} < std::array{b.merged_id, b.left_id, b.right_id};
  });
  MergeTable merges;
  merges.reserve(cuts.size());
  uint32_t rank = 0;
  for (const Cut& cut : cuts) merges.set(cut.left_id, cut.right_id, {rank++, cut.merged_id});
  return merges;
}

Status translate_sentence_piece(Vocab& vocab, TokenizerPipeline& pipeline) {
  if (vocab.scores.empty()) return Status::invalid_argument("tokenizer.ggml.scores is missing, which the \"llama\" tokenizer needs");
  const auto default_id = [&](std::optional<int32_t>& id, int32_t value) {
    if (!id && static_cast<std::size_t>(value) < vocab.tokens.size()) id = value;
  };
  default_id(vocab.bos_token_id, 1);
  default_id(vocab.eos_token_id, 2);
  default_id(vocab.unknown_token_id, 0);
  Vocabulary vocabulary = make_vocabulary(vocab.tokens);
  MR_ASSIGN_OR_RETURN(MergeTable merges, merges_of_scores(vocab, vocabulary));
  BpeOptions options;
  options.unknown_id = vocab.unknown_token_id;
  options.fuse_unknown = true;
  options.byte_fallback = true;
  pipeline.model = std::make_unique<BpeModel>(std::move(vocabulary), std::move(merges), std::move(options));
  const bool add_prefix = vocab.add_space_prefix.value_or(true);
  MR_RETURN_IF_ERROR(set_normalizer(add_prefix ? R"({"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},
                                                   {"type":"Replace","pattern":{"String":" "},"content":"▁"}]})"
                                               : R"({"type":"Replace","pattern":{"String":" "},"content":"▁"})",
                                    pipeline));
  MR_RETURN_IF_ERROR(set_decoder(add_prefix ? R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
                                                {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]})"
                                            : R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
                                                {"type":"ByteFallback"},{"type":"Fuse"}]})",
                                 pipeline));
  return set_bos_and_eos(vocab, true, pipeline);
}

// GGUF writes a word's first piece as "▁the" and the others without mark; BERT's files have "the" and "##ing".
Status translate_bert(const Vocab& vocab, TokenizerPipeline& pipeline) {
  std::vector<std::string> tokens = vocab.tokens;
  bool has_capitals = false;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const bool bracketed = tokens[id].starts_with('[') && tokens[id].ends_with(']') && tokens[id].size() > 2;
    if (type_of(vocab, id) != kNormal || bracketed) continue;
    if (tokens[id].starts_with(kWordStart)) {
      tokens[id].erase(0, kWordStart.size());
    } else {
      tokens[id].insert(0, "##");
    }
    has_capitals = has_capitals || std::any_of(tokens[id].begin(), tokens[id].end(), [](char c) { return c >= 'A' && c <= 'Z'; });
  }
  const auto named = [&](std::optional<int32_t> id, std::string_view name) -> std::optional<int32_t> {
    if (id) return id;
    const auto found = std::find(tokens.begin(), tokens.end(), name);
    if (found == tokens.end()) return std::nullopt;
    return static_cast<int32_t>(found - tokens.begin());
  };
  const std::optional<int32_t> unknown = named(vocab.unknown_token_id, "[UNK]");
  if (!unknown) return Status::invalid_argument("tokenizer.ggml.unknown_token_id is missing, which the \"bert\" tokenizer needs");
  const std::optional<int32_t> cls = named(vocab.cls_token_id ? vocab.cls_token_id : vocab.bos_token_id, "[CLS]");
  pipeline.model = std::make_unique<WordPieceModel>(make_vocabulary(tokens), *unknown, "##", 100);
  // A vocabulary without any capital letter was made from lower-cased text.
  MR_RETURN_IF_ERROR(set_normalizer(
      has_capitals ? R"({"type":"BertNormalizer","lowercase":false})" : R"({"type":"BertNormalizer","lowercase":true})", pipeline));
  MR_RETURN_IF_ERROR(set_pre_tokenizer(R"({"type":"BertPreTokenizer"})", pipeline));
  MR_RETURN_IF_ERROR(set_decoder(R"({"type":"WordPiece","prefix":"##","cleanup":true})", pipeline));
  return set_template(cls, named(vocab.separator_token_id, "[SEP]"), pipeline);
}

Status translate_unigram(const Vocab& vocab, TokenizerPipeline& pipeline) {
  if (vocab.scores.empty()) return Status::invalid_argument("tokenizer.ggml.scores is missing, which the \"t5\" tokenizer needs");
  UnigramOptions options;
  options.unknown_id = vocab.unknown_token_id;
  pipeline.model =
      std::make_unique<UnigramModel>(make_vocabulary(vocab.tokens), std::vector<double>(vocab.scores.begin(), vocab.scores.end()), options);
  if (!vocab.precompiled_charsmap.empty()) {
    MR_ASSIGN_OR_RETURN(pipeline.normalizer, PrecompiledCharsmap::parse(vocab.precompiled_charsmap));
  }
  const bool prefix = vocab.add_space_prefix.value_or(true);
  MR_RETURN_IF_ERROR(set_pre_tokenizer(
      vocab.remove_extra_whitespaces.value_or(false)
          ? (prefix
                 ? R"({"type":"Sequence","pretokenizers":[{"type":"WhitespaceSplit"},{"type":"Metaspace","replacement":"▁","prepend_scheme":"always"}]})"
                 : R"({"type":"Sequence","pretokenizers":[{"type":"WhitespaceSplit"},{"type":"Metaspace","replacement":"▁","prepend_scheme":"never"}]})")
          : (prefix ? R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"always"})"
                    : R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"never"})"),
      pipeline));
  MR_RETURN_IF_ERROR(set_decoder(R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"always"})", pipeline));
  return set_bos_and_eos(vocab, false, pipeline);
}

}  // namespace

Result<std::shared_ptr<const TokenizerPipeline>> translate_gguf_vocabulary(GgufVocabulary vocab) {
  MR_RETURN_IF_ERROR(check(vocab));
  auto pipeline = std::make_shared<TokenizerPipeline>();
  if (vocab.model == "gpt2") {
    MR_RETURN_IF_ERROR(translate_byte_level(vocab, *pipeline));
  } else if (vocab.model == "llama") {
    MR_RETURN_IF_ERROR(translate_sentence_piece(vocab, *pipeline));
  } else if (vocab.model == "bert") {
    MR_RETURN_IF_ERROR(translate_bert(vocab, *pipeline));
  } else if (vocab.model == "t5") {
    MR_RETURN_IF_ERROR(translate_unigram(vocab, *pipeline));
  } else {
    return Status::unsupported(fmt::format("tokenizer.ggml.model is \"{}\", expected gpt2, llama, bert or t5", vocab.model.substr(0, 100)));
  }
  add_special_tokens(vocab, *pipeline);
  pipeline->bos_token_id = vocab.bos_token_id;
  pipeline->eos_token_id = vocab.eos_token_id;
  pipeline->description_tail = fmt::format(", from GGUF ({})", vocab.model == "gpt2" && !vocab.pre.empty() ? vocab.pre : vocab.model);
  MR_RETURN_IF_ERROR(pipeline->finish());
  return std::shared_ptr<const TokenizerPipeline>(std::move(pipeline));
}

}  // namespace millrace
