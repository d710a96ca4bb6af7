#include "millrace/tokenizer/post_processor.h"

#include <fmt/format.h>

#include <algorithm>

#include "millrace/tokenizer/json_fields.h"
#include "millrace/tokenizer/pre_tokenizer.h"
#include "millrace/tokenizer/vocabulary.h"

namespace millrace {
namespace {

constexpr std::size_t kTemplatePartsMax = 1024;

// ["[SEP]", 102]
Result<int32_t> read_pair_id(const JsonFields& fields, std::string_view name) {
  MR_ASSIGN_OR_RETURN(const json::value* pair, fields.require(name));
  if (!pair->is_array() || pair->get_array().size() != 2 || !pair->get_array()[1].is_int64()) {
    return Status::invalid_argument(fmt::format("{}: \"{}\" is not a pair of a token and its id", fields.what(), name));
  }
  const int64_t id = pair->get_array()[1].get_int64();
  if (id < 0 || id >= Vocabulary::kMaxId) {
    return Status::invalid_argument(fmt::format("{}: \"{}\" has id {}, expected 0 to {}", fields.what(), name, id, Vocabulary::kMaxId - 1));
  }
  return static_cast<int32_t>(id);
}

Result<std::vector<int32_t>> read_ids(const JsonFields& token) {
  MR_ASSIGN_OR_RETURN(const json::value* list, token.require("ids"));
  if (!list->is_array()) return Status::invalid_argument(token.what() + ": \"ids\" is not an array");
  std::vector<int32_t> ids;
  for (const json::value& id : list->get_array()) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= Vocabulary::kMaxId) {
      return Status::invalid_argument(
          fmt::format("{}: \"ids\" has something else than an id of 0 to {}", token.what(), Vocabulary::kMaxId - 1));
    }
    ids.push_back(static_cast<int32_t>(id.get_int64()));
  }
  return ids;
}

Result<int32_t> read_type(const JsonFields& fields) {
  const json::value* type = fields.find("type_id");
  if (type == nullptr) return 0;
  constexpr int64_t kTypesMax = 1024;
  if (!type->is_int64() || type->get_int64() < 0 || type->get_int64() >= kTypesMax) {
    return Status::invalid_argument(fmt::format("{}: \"type_id\" is no number from 0 to {}", fields.what(), kTypesMax - 1));
  }
  return static_cast<int32_t>(type->get_int64());
}

// "single" or "pair".
Result<std::vector<PostProcessor::Part>> read_template(const JsonFields& fields, const std::string& word) {
  MR_ASSIGN_OR_RETURN(const json::value* list, fields.require(word));
  if (!list->is_array()) return Status::invalid_argument(fmt::format("{}: \"{}\" is not an array", fields.what(), word));
  std::vector<PostProcessor::Part> parts;
  for (const json::value& piece : list->get_array()) {
    MR_ASSIGN_OR_RETURN(const JsonFields piece_fields, JsonFields::of(piece, fmt::format("{}: a part of \"{}\"", fields.what(), word)));
    if (const json::value* sequence = piece_fields.find("Sequence"); sequence != nullptr) {
      MR_ASSIGN_OR_RETURN(const JsonFields sequence_fields, JsonFields::of(*sequence, piece_fields.what()));
      MR_ASSIGN_OR_RETURN(const std::string name, sequence_fields.string("id"));
      MR_ASSIGN_OR_RETURN(const int32_t type, read_type(sequence_fields));
      if (name != "A" && (name != "B" || word == "single")) {
        return Status::invalid_argument(fmt::format("{}: \"{}\" has the sequence \"{}\", expected {}", fields.what(), word,
                                                    name.substr(0, 50), word == "single" ? "A" : "A and B"));
      }
      parts.push_back({.id = {}, .text = name == "B" ? 1 : 0, .type = type});
    } else {
      MR_ASSIGN_OR_RETURN(const json::value* special, piece_fields.require("SpecialToken"));
      MR_ASSIGN_OR_RETURN(const JsonFields special_fields, JsonFields::of(*special, piece_fields.what()));
      MR_ASSIGN_OR_RETURN(const std::string name, special_fields.string("id"));
      MR_ASSIGN_OR_RETURN(const int32_t type, read_type(special_fields));
      MR_ASSIGN_OR_RETURN(const json::value* tokens, fields.require("special_tokens"));
      MR_ASSIGN_OR_RETURN(const JsonFields token_fields, JsonFields::of(*tokens, fields.what() + ": \"special_tokens\""));
      MR_ASSIGN_OR_RETURN(const json::value* token, token_fields.require(name));
      MR_ASSIGN_OR_RETURN(const JsonFields one, JsonFields::of(*token, fmt::format("{}: special token \"{}\"", fields.what(), name)));
      MR_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, read_ids(one));
      for (const int32_t id : ids) parts.push_back({.id = id, .text = 0, .type = type});
    }
    if (parts.size() > kTemplatePartsMax) {
      return Status::invalid_argument(fmt::format("{}: more than {} tokens in \"{}\"", fields.what(), kTemplatePartsMax, word));
    }
  }
  for (const int32_t text : {0, 1}) {
    const auto times =
        std::count_if(parts.begin(), parts.end(), [&](const PostProcessor::Part& part) { return !part.id && part.text == text; });
    if (times > 1)
      return Status::invalid_argument(
          fmt::format("{}: \"{}\" holds {} more than once", fields.what(), word, word == "single" ? "the text" : "a text"));
  }
  return parts;
}

Result<PostProcessor> parse_template(const JsonFields& fields) {
  MR_ASSIGN_OR_RETURN(std::vector<PostProcessor::Part> single, read_template(fields, "single"));
  if (fields.find("pair") == nullptr) return PostProcessor(std::move(single));
  MR_ASSIGN_OR_RETURN(std::vector<PostProcessor::Part> pair, read_template(fields, "pair"));
  return PostProcessor(std::move(single), std::move(pair));
}

}  // namespace

Result<PostProcessor> PostProcessor::parse(const json::value& description, int depth) {
  if (description.is_null()) return PostProcessor();
  if (depth > kPartDepthMax) return Status::invalid_argument(fmt::format("post_processor: nested deeper than {}", kPartDepthMax));
  MR_ASSIGN_OR_RETURN(const JsonFields untyped, JsonFields::of(description, "post_processor"));
  MR_ASSIGN_OR_RETURN(const std::string type, untyped.string("type"));
  MR_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::of(description, "post_processor " + type));
  if (type == "ByteLevel") return PostProcessor();  // it moves offsets only
  if (type == "TemplateProcessing") return parse_template(fields);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    MR_ASSIGN_OR_RETURN(const int32_t sep, read_pair_id(fields, "sep"));
    MR_ASSIGN_OR_RETURN(const int32_t cls, read_pair_id(fields, "cls"));
    if (type == "BertProcessing") {
      return PostProcessor({Part{cls}, Part{}, Part{sep}},
                           {Part{cls}, Part{}, Part{sep}, Part{.id = {}, .text = 1, .type = 1}, Part{.id = sep, .text = 0, .type = 1}});
    }
    return PostProcessor({Part{cls}, Part{}, Part{sep}},
                         {Part{cls}, Part{}, Part{sep}, Part{sep}, Part{.id = {}, .text = 1, .type = 0}, Part{sep}});
  }
  if (type == "Sequence") {
    MR_ASSIGN_OR_RETURN(const json::value* list, fields.require("processors"));
    if (!list->is_array() || list->get_array().size() > kPartsMax) {
      return Status::invalid_argument(fmt::format("{}: \"processors\" is not an array of at most {}", fields.what(), kPartsMax));
    }
    PostProcessor all;
    for (const json::value& part : list->get_array()) {
      MR_ASSIGN_OR_RETURN(const PostProcessor next, parse(part, depth + 1));
      all = next.after(all);
      if (all.parts_.size() > kTemplatePartsMax || all.pair_.size() > kTemplatePartsMax) {
        return Status::invalid_argument(fmt::format("{}: more than {} tokens", fields.what(), kTemplatePartsMax));
      }
    }
    return all;
  }
  return Status::unsupported(fmt::format("post_processor: type \"{}\" is unknown", type.substr(0, 50)));
}

PostProcessor PostProcessor::after(const PostProcessor& first) const {
  std::vector<Part> parts;
  for (const Part& part : parts_) {
    if (part.id) {
      parts.push_back(part);
    } else {
      parts.insert(parts.end(), first.parts_.begin(), first.parts_.end());
    }
  }
  // Of two processors at most one does something to a pair in published files (the other is ByteLevel).
  return PostProcessor(std::move(parts), is_pair_alone() ? first.pair_ : pair_);
}

void PostProcessor::join(const std::vector<int32_t>& first, const std::vector<int32_t>* second, std::vector<int32_t>& ids,
                         std::vector<int32_t>& types) const {
  for (const Part& part : second != nullptr ? pair_ : parts_) {
    if (part.id) {
      ids.push_back(*part.id);
    } else {
      const std::vector<int32_t>& text = part.text == 0 ? first : *second;
      ids.insert(ids.end(), text.begin(), text.end());
    }
    types.resize(ids.size(), part.type);
  }
}

int64_t PostProcessor::num_added(bool pair) const {
  const std::vector<Part>& parts = pair ? pair_ : parts_;
  return std::count_if(parts.begin(), parts.end(), [](const Part& part) { return part.id.has_value(); });
}

void PostProcessor::apply(std::vector<int32_t>& ids) const {
  if (is_text_alone()) return;
  std::vector<int32_t> out;
  out.reserve(ids.size() + parts_.size());
  for (const Part& part : parts_) {
    if (part.id) {
      out.push_back(*part.id);
    } else {
      out.insert(out.end(), ids.begin(), ids.end());
    }
  }
  ids = std::move(out);
}

std::vector<int32_t> PostProcessor::ids() const {
  std::vector<int32_t> out;
  for (const Part& part : parts_) {
    if (part.id) out.push_back(*part.id);
  }
  return out;
}

}  // namespace millrace
