#include "millrace/tokenizer/post_processor.h"

#include <fmt/format.h>

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
      return Status::invalid_argument(fmt::format("{}: \"ids\" has something else than an id of 0 to {}", token.what(), Vocabulary::kMaxId - 1));
    }
    ids.push_back(static_cast<int32_t>(id.get_int64()));
  }
  return ids;
}

Result<PostProcessor> parse_template(const JsonFields& fields) {
  MR_ASSIGN_OR_RETURN(const json::value* single, fields.require("single"));
  if (!single->is_array()) return Status::invalid_argument(fields.what() + ": \"single\" is not an array");
  std::vector<PostProcessor::Part> parts;
  for (const json::value& piece : single->get_array()) {
    MR_ASSIGN_OR_RETURN(const JsonFields piece_fields, JsonFields::of(piece, fields.what() + ": a part of \"single\""));
    if (piece_fields.find("Sequence") != nullptr) {
      parts.push_back({});
    } else {
      MR_ASSIGN_OR_RETURN(const json::value* special, piece_fields.require("SpecialToken"));
      MR_ASSIGN_OR_RETURN(const JsonFields special_fields, JsonFields::of(*special, piece_fields.what()));
      MR_ASSIGN_OR_RETURN(const std::string name, special_fields.string("id"));
      MR_ASSIGN_OR_RETURN(const json::value* tokens, fields.require("special_tokens"));
      MR_ASSIGN_OR_RETURN(const JsonFields token_fields, JsonFields::of(*tokens, fields.what() + ": \"special_tokens\""));
      MR_ASSIGN_OR_RETURN(const json::value* token, token_fields.require(name));
      MR_ASSIGN_OR_RETURN(const JsonFields one, JsonFields::of(*token, fmt::format("{}: special token \"{}\"", fields.what(), name)));
      MR_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, read_ids(one));
      for (const int32_t id : ids) parts.push_back({id});
    }
    if (parts.size() > kTemplatePartsMax) {
      return Status::invalid_argument(fmt::format("{}: more than {} tokens in \"single\"", fields.what(), kTemplatePartsMax));
    }
  }
  std::size_t num_texts = 0;
  for (const PostProcessor::Part& part : parts) num_texts += part.id ? 0 : 1;
  if (num_texts > 1) return Status::invalid_argument(fields.what() + ": \"single\" holds the text more than once");
  return PostProcessor(std::move(parts));
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
    return PostProcessor({Part{cls}, Part{}, Part{sep}});
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
      if (all.parts_.size() > kTemplatePartsMax) {
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
  return PostProcessor(std::move(parts));
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
