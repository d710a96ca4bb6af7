// tokenizer.json, the format of Hugging Face `tokenizers`, read into a pipeline. The file is untrusted: nesting, ids and
// sizes are bounded, and errors name the field.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "millrace/tokenizer/bpe.h"
#include "millrace/tokenizer/json_fields.h"
#include "millrace/tokenizer/pipeline.h"
#include "millrace/tokenizer/unicode.h"
#include "millrace/tokenizer/unigram.h"
#include "millrace/tokenizer/wordpiece.h"

namespace millrace {
namespace {

constexpr std::size_t kFileBytesMax = std::size_t{256} << 20;
constexpr std::size_t kAddedTokenBytesMax = 4096;

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }

// {"token": id}
Result<Vocabulary> read_vocabulary(const JsonFields& model) {
  MR_ASSIGN_OR_RETURN(const json::value* vocab, model.require("vocab"));
  if (!vocab->is_object()) return Status::invalid_argument(model.what() + ": \"vocab\" is not an object");
  Vocabulary vocabulary;
  vocabulary.reserve(vocab->get_object().size(), vocab->get_object().size() * 8);
  for (const auto& [token, id] : vocab->get_object()) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= Vocabulary::kMaxId) {
      return Status::invalid_argument(fmt::format("{}: \"vocab\": the id of \"{}\" is not an integer of 0 to {}", model.what(),
                                                  std::string_view(token.data(), token.size()).substr(0, 100), Vocabulary::kMaxId - 1));
    }
    const auto token_id = static_cast<int32_t>(id.get_int64());
    if (vocabulary.contains(token_id))
      return Status::invalid_argument(fmt::format("{}: \"vocab\": two tokens have id {}", model.what(), token_id));
    vocabulary.add({token.data(), token.size()}, token_id);
  }
  return vocabulary;
}

Result<int32_t> find_token(const JsonFields& model, const Vocabulary& vocabulary, std::string_view field, std::string_view token) {
  const std::optional<int32_t> id = vocabulary.find(token);
  if (!id)
    return Status::invalid_argument(
        fmt::format("{}: \"{}\" is \"{}\", which is not in \"vocab\"", model.what(), field, token.substr(0, 100)));
  return *id;
}

// "left right" or ["left", "right"]
Result<std::pair<std::string_view, std::string_view>> read_merge(const JsonFields& model, const json::value& merge, std::size_t index) {
  const auto wrong = [&] {
    return Status::invalid_argument(
        fmt::format("{}: \"merges\"[{}] is neither \"left right\" nor [\"left\", \"right\"]", model.what(), index));
  };
  if (merge.is_string()) {
    const std::string_view text = view(merge.get_string());
    const std::size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) return wrong();
    return std::pair(text.substr(0, space), text.substr(space + 1));
  }
  if (!merge.is_array() || merge.get_array().size() != 2 || !merge.get_array()[0].is_string() || !merge.get_array()[1].is_string())
    return wrong();
  return std::pair(view(merge.get_array()[0].get_string()), view(merge.get_array()[1].get_string()));
}

Result<std::unique_ptr<TokenModel>> read_bpe(const JsonFields& fields) {
  MR_ASSIGN_OR_RETURN(Vocabulary vocabulary, read_vocabulary(fields));
  BpeOptions options;
  MR_ASSIGN_OR_RETURN(const std::string unknown, fields.string_or("unk_token", ""));
  if (!unknown.empty()) {
    MR_ASSIGN_OR_RETURN(options.unknown_id, find_token(fields, vocabulary, "unk_token", unknown));
  }
  MR_ASSIGN_OR_RETURN(options.continuing_subword_prefix, fields.string_or("continuing_subword_prefix", ""));
  MR_ASSIGN_OR_RETURN(options.end_of_word_suffix, fields.string_or("end_of_word_suffix", ""));
  MR_ASSIGN_OR_RETURN(options.fuse_unknown, fields.boolean_or("fuse_unk", false));
  MR_ASSIGN_OR_RETURN(options.byte_fallback, fields.boolean_or("byte_fallback", false));
  MR_ASSIGN_OR_RETURN(options.ignore_merges, fields.boolean_or("ignore_merges", false));
  MR_ASSIGN_OR_RETURN(const json::value* list, fields.require("merges"));
  if (!list->is_array()) return Status::invalid_argument(fields.what() + ": \"merges\" is not an array");
  MergeTable merges;
  merges.reserve(list->get_array().size());
  std::string joined;
  uint32_t rank = 0;
  for (const json::value& merge : list->get_array()) {
    MR_ASSIGN_OR_RETURN(const auto pair, read_merge(fields, merge, rank));
    const std::optional<int32_t> left = vocabulary.find(pair.first), right = vocabulary.find(pair.second);
    joined = pair.first;
    if (pair.second.size() >= options.continuing_subword_prefix.size())
      joined += pair.second.substr(options.continuing_subword_prefix.size());
    const std::optional<int32_t> merged = vocabulary.find(joined);
    if (!left || !right || !merged) {
      const std::string_view missing = !left ? pair.first : !right ? pair.second : std::string_view(joined);
      return Status::invalid_argument(
          fmt::format("{}: \"merges\"[{}] needs \"{}\", which is not in \"vocab\"", fields.what(), rank, missing.substr(0, 100)));
    }
    merges.set(*left, *right, {rank++, *merged});
  }
  return std::unique_ptr<TokenModel>(std::make_unique<BpeModel>(std::move(vocabulary), std::move(merges), std::move(options)));
}

Result<std::unique_ptr<TokenModel>> read_unigram(const JsonFields& fields) {
  MR_ASSIGN_OR_RETURN(const json::value* vocab, fields.require("vocab"));
  if (!vocab->is_array()) return Status::invalid_argument(fields.what() + ": \"vocab\" is not an array");
  const json::array& list = vocab->get_array();
  if (list.size() > static_cast<std::size_t>(Vocabulary::kMaxId))
    return Status::invalid_argument(fields.what() + ": \"vocab\" is too large");
  Vocabulary vocabulary;
  vocabulary.reserve(list.size(), list.size() * 8);
  std::vector<double> scores;
  for (const json::value& entry : list) {
    const bool is_pair =
        entry.is_array() && entry.get_array().size() == 2 && entry.get_array()[0].is_string() && entry.get_array()[1].is_number();
    const double score = is_pair ? entry.get_array()[1].to_number<double>() : 0;
    if (!is_pair || !std::isfinite(score)) {
      return Status::invalid_argument(
          fmt::format("{}: \"vocab\"[{}] is not a pair of a token and its score", fields.what(), scores.size()));
    }
    vocabulary.add(view(entry.get_array()[0].get_string()), static_cast<int32_t>(scores.size()));
    scores.push_back(score);
  }
  UnigramOptions options;
  if (fields.find("unk_id") != nullptr) {
    MR_ASSIGN_OR_RETURN(const int64_t id, fields.integer("unk_id", 0, static_cast<int64_t>(scores.size()) - 1));
    options.unknown_id = static_cast<int32_t>(id);
  }
  MR_ASSIGN_OR_RETURN(options.byte_fallback, fields.boolean_or("byte_fallback", false));
  return std::unique_ptr<TokenModel>(std::make_unique<UnigramModel>(std::move(vocabulary), std::move(scores), options));
}

Result<std::unique_ptr<TokenModel>> read_wordpiece(const JsonFields& fields) {
  MR_ASSIGN_OR_RETURN(Vocabulary vocabulary, read_vocabulary(fields));
  MR_ASSIGN_OR_RETURN(const std::string unknown, fields.string_or("unk_token", "[UNK]"));
  MR_ASSIGN_OR_RETURN(const int32_t unknown_id, find_token(fields, vocabulary, "unk_token", unknown));
  MR_ASSIGN_OR_RETURN(const std::string prefix, fields.string_or("continuing_subword_prefix", "##"));
  MR_ASSIGN_OR_RETURN(const int64_t max_characters, fields.integer_or("max_input_chars_per_word", 100, 0, 1 << 20));
  return std::unique_ptr<TokenModel>(std::make_unique<WordPieceModel>(std::move(vocabulary), unknown_id, prefix, max_characters));
}

Result<std::unique_ptr<TokenModel>> read_word_level(const JsonFields& fields) {
  MR_ASSIGN_OR_RETURN(Vocabulary vocabulary, read_vocabulary(fields));
  MR_ASSIGN_OR_RETURN(const std::string unknown, fields.string_or("unk_token", "<unk>"));
  MR_ASSIGN_OR_RETURN(const int32_t unknown_id, find_token(fields, vocabulary, "unk_token", unknown));
  return std::unique_ptr<TokenModel>(std::make_unique<WordLevelModel>(std::move(vocabulary), unknown_id));
}

// Files before 2021 do not say the type of the model; its fields do.
Result<std::unique_ptr<TokenModel>> read_model(const json::value& description) {
  MR_ASSIGN_OR_RETURN(const JsonFields untyped, JsonFields::of(description, "model"));
  const json::value* vocab = untyped.find("vocab");
  const std::string_view guess = untyped.find("merges") != nullptr                      ? "BPE"
                                 : vocab != nullptr && vocab->is_array()                ? "Unigram"
                                 : untyped.find("continuing_subword_prefix") != nullptr ? "WordPiece"
                                                                                        : "WordLevel";
  MR_ASSIGN_OR_RETURN(const std::string type, untyped.string_or("type", guess));
  MR_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::of(description, "model " + type));
  if (type == "BPE") return read_bpe(fields);
  if (type == "Unigram") return read_unigram(fields);
  if (type == "WordPiece") return read_wordpiece(fields);
  if (type == "WordLevel") return read_word_level(fields);
  return Status::unsupported(fmt::format("model: type \"{}\" is unknown", type.substr(0, 50)));
}

// An added token that the model knows too has the model's id, whatever the file says; the others are numbered in their order
// behind the vocabulary, as in the reference. Only where the vocabulary has holes, so that these numbers are taken, the file's
// number counts.
Status read_added_tokens(const json::value& description, TokenizerPipeline& pipeline) {
  if (!description.is_array()) return Status::invalid_argument("added_tokens is not an array");
  const Vocabulary& vocabulary = pipeline.model->vocabulary();
  Vocabulary seen;
  for (const json::value& entry : description.get_array()) {
    MR_ASSIGN_OR_RETURN(const JsonFields fields,
                        JsonFields::of(entry, fmt::format("added_tokens[{}]", &entry - description.get_array().data())));
    AddedToken token;
    MR_ASSIGN_OR_RETURN(token.content, fields.string("content"));
    MR_ASSIGN_OR_RETURN(const int64_t id, fields.integer("id", 0, Vocabulary::kMaxId - 1));
    MR_ASSIGN_OR_RETURN(token.special, fields.boolean_or("special", false));
    MR_ASSIGN_OR_RETURN(token.single_word, fields.boolean_or("single_word", false));
    MR_ASSIGN_OR_RETURN(token.lstrip, fields.boolean_or("lstrip", false));
    MR_ASSIGN_OR_RETURN(token.rstrip, fields.boolean_or("rstrip", false));
    MR_ASSIGN_OR_RETURN(token.normalized, fields.boolean_or("normalized", !token.special));
    if (token.content.empty() || seen.find(token.content)) continue;
    if (token.content.size() > kAddedTokenBytesMax) {
      return Status::invalid_argument(
          fmt::format("{}: \"content\" has {} bytes, at most {} are taken", fields.what(), token.content.size(), kAddedTokenBytesMax));
    }
    const std::optional<int32_t> known = vocabulary.find(token.content);
    const int64_t next = std::max<int64_t>(seen.end_id(), vocabulary.num_tokens());
    token.id = known.value_or(static_cast<int32_t>(vocabulary.contains(static_cast<int32_t>(next)) ? id : next));
    if (token.id >= Vocabulary::kMaxId)
      return Status::invalid_argument(fmt::format("{}: more than {} tokens", fields.what(), Vocabulary::kMaxId));
    if (seen.contains(token.id) || (vocabulary.contains(token.id) && vocabulary.token(token.id) != token.content)) {
      return Status::invalid_argument(fmt::format("{}: id {} belongs to another token already", fields.what(), token.id));
    }
    seen.add(token.content, token.id);
    pipeline.added_tokens.push_back(std::move(token));
  }
  return Status::ok();
}

// A token of tokenizer_config.json: "<s>" or {"content": "<s>"}.
Result<std::optional<int32_t>> read_config_token(const JsonFields& config, std::string_view name, const TokenizerPipeline& pipeline) {
  const json::value* value = config.find(name);
  if (value == nullptr) return std::optional<int32_t>{};
  std::string content;
  if (value->is_object()) {
    MR_ASSIGN_OR_RETURN(const JsonFields token, JsonFields::of(*value, fmt::format("tokenizer_config.json: \"{}\"", name)));
    MR_ASSIGN_OR_RETURN(content, token.string("content"));
  } else {
    MR_ASSIGN_OR_RETURN(content, config.string(name));
  }
  for (const AddedToken& token : pipeline.added_tokens) {
    if (token.content == content) return std::optional<int32_t>(token.id);
  }
  return pipeline.model->vocabulary().find(content);
}

}  // namespace

Result<std::shared_ptr<const TokenizerPipeline>> read_tokenizer_json(std::string_view tokenizer_json,
                                                                     std::string_view tokenizer_config_json) {
  Result<json::value> parsed = parse_json(tokenizer_json, {.max_depth = 64, .max_bytes = kFileBytesMax});
  if (!parsed.is_ok()) return parsed.status().with_context("tokenizer.json");
  MR_ASSIGN_OR_RETURN(const JsonFields root, JsonFields::of(*parsed, "tokenizer.json"));
  const auto part = [&](std::string_view name) -> const json::value& {
    static const json::value kNull;
    const json::value* value = root.find(name);
    return value == nullptr ? kNull : *value;
  };
  auto pipeline = std::make_shared<TokenizerPipeline>();
  MR_ASSIGN_OR_RETURN(const json::value* model, root.require("model"));
  MR_ASSIGN_OR_RETURN(pipeline->model, read_model(*model));
  MR_ASSIGN_OR_RETURN(pipeline->normalizer, make_normalizer(part("normalizer")));
  MR_ASSIGN_OR_RETURN(pipeline->pre_tokenizer, make_pre_tokenizer(part("pre_tokenizer")));
  MR_ASSIGN_OR_RETURN(pipeline->post_processor, PostProcessor::parse(part("post_processor")));
  MR_ASSIGN_OR_RETURN(pipeline->decoder, make_decoder(part("decoder")));
  if (root.find("added_tokens") != nullptr) MR_RETURN_IF_ERROR(read_added_tokens(part("added_tokens"), *pipeline));
  if (!tokenizer_config_json.empty()) {
    Result<json::value> config_value = parse_json(tokenizer_config_json, {.max_depth = 64, .max_bytes = kFileBytesMax});
    if (!config_value.is_ok()) return config_value.status().with_context("tokenizer_config.json");
    MR_ASSIGN_OR_RETURN(const JsonFields config, JsonFields::of(*config_value, "tokenizer_config.json"));
    MR_ASSIGN_OR_RETURN(pipeline->bos_token_id, read_config_token(config, "bos_token", *pipeline));
    MR_ASSIGN_OR_RETURN(pipeline->eos_token_id, read_config_token(config, "eos_token", *pipeline));
  }
  MR_RETURN_IF_ERROR(pipeline->finish());
  return std::shared_ptr<const TokenizerPipeline>(std::move(pipeline));
}

}  // namespace millrace
