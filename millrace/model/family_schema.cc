#include "millrace/model/family_schema.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <span>
#include <string>
#include <vector>

#include "millrace/model/expression.h"

namespace millrace {

namespace {

enum class Kind {
  kExpression,  // a text that parses as one, a number or a boolean
  kText,
  kTexts,        // a text or a list of texts
  kNames,        // of tensors: a text or a list of alternatives
  kNormOrNames,  // an object with the words of a norm, or only its names
  kLinearOrNames,
  kObject,
  kObjects,        // a list of objects, not empty
  kExpressionMap,  // any names -> expressions
  kTextMap,        // any names -> texts
};

struct Word {
  std::string_view name;
  Kind kind;
  std::span<const Word> words = {};  // of the object, or of each object in the list
  bool required = false;
};

constexpr Word kNormWords[] = {
    {"name", Kind::kNames},         {"kind", Kind::kExpression}, {"eps", Kind::kExpression},
    {"add_one", Kind::kExpression}, {"bias", Kind::kExpression}, {"when", Kind::kExpression},
};

constexpr Word kNormDefaultWords[] = {
    {"kind", Kind::kExpression}, {"eps", Kind::kExpression}, {"add_one", Kind::kExpression}, {"bias", Kind::kExpression}};

constexpr Word kLinearWords[] = {{"name", Kind::kNames, {}, true}, {"bias", Kind::kExpression}, {"transposed", Kind::kExpression}};

constexpr Word kPositionWords[] = {
    {"kind", Kind::kExpression, {}, true},
    {"pairing", Kind::kExpression},
    {"stored_pairing", Kind::kExpression},
    {"theta", Kind::kExpression},
    {"rotary_dim", Kind::kExpression},
    {"max_bias", Kind::kExpression},
    {"parameters", Kind::kExpression},
    {"original_max_positions", Kind::kExpression},
    {"truncate", Kind::kExpression},
    {"frequency_factors", Kind::kNames},
    {"short_factors", Kind::kNames},
    {"long_factors", Kind::kNames},
    {"bias", Kind::kNames},
    {"buckets", Kind::kExpression},
    {"max_distance", Kind::kExpression},
};

constexpr Word kLatentWords[] = {
    {"q_rank", Kind::kExpression},
    {"q_down", Kind::kLinearOrNames},
    {"q_norm", Kind::kNormOrNames},
    {"kv_rank", Kind::kExpression, {}, true},
    {"kv_down", Kind::kLinearOrNames, {}, true},
    {"kv_norm", Kind::kNormOrNames, {}, true},
    {"kv_up", Kind::kLinearOrNames},
    {"k_up", Kind::kLinearOrNames},
    {"v_up", Kind::kLinearOrNames},
    {"rope_dim", Kind::kExpression, {}, true},
    {"value_dim", Kind::kExpression, {}, true},
};

constexpr Word kAttentionWords[] = {
    {"norm", Kind::kNormOrNames},
    {"post_norm", Kind::kNormOrNames},
    {"sum_norm", Kind::kNormOrNames},
    {"causal", Kind::kExpression},
    {"q", Kind::kLinearOrNames},
    {"k", Kind::kLinearOrNames},
    {"v", Kind::kLinearOrNames},
    {"qkv", Kind::kLinearOrNames},
    {"layout", Kind::kExpression},
    {"o", Kind::kLinearOrNames, {}, true},
    {"bias", Kind::kExpression},
    {"q_norm", Kind::kNormOrNames},
    {"k_norm", Kind::kNormOrNames},
    {"head_norm", Kind::kExpression},
    {"clip", Kind::kExpression},
    {"num_heads", Kind::kExpression},
    {"num_kv_heads", Kind::kExpression},
    {"head_dim", Kind::kExpression},
    {"scale", Kind::kExpression},
    {"softcap", Kind::kExpression},
    {"window", Kind::kExpression},
    {"sinks", Kind::kNames},
    {"latent", Kind::kObject, kLatentWords},
    {"position", Kind::kObject, kPositionWords},
};

constexpr Word kConvolutionWords[] = {
    {"when", Kind::kExpression},
    {"norm", Kind::kNormOrNames},
    {"post_norm", Kind::kNormOrNames},
    {"sum_norm", Kind::kNormOrNames},
    {"bias", Kind::kExpression},
    {"in", Kind::kLinearOrNames, {}, true},
    {"kernel", Kind::kLinearOrNames, {}, true},
    {"kernel_size", Kind::kExpression, {}, true},
    {"out", Kind::kLinearOrNames, {}, true},
};

constexpr Word kStateSpaceWords[] = {
    {"when", Kind::kExpression},
    {"norm", Kind::kNormOrNames},
    {"post_norm", Kind::kNormOrNames},
    {"sum_norm", Kind::kNormOrNames},
    {"bias", Kind::kExpression},
    {"num_channels", Kind::kExpression, {}, true},
    {"num_heads", Kind::kExpression},
    {"num_groups", Kind::kExpression},
    {"num_states", Kind::kExpression, {}, true},
    {"in", Kind::kLinearOrNames, {}, true},
    {"kernel", Kind::kLinearOrNames, {}, true},
    {"kernel_size", Kind::kExpression, {}, true},
    {"selection", Kind::kLinearOrNames},
    {"selection_norm", Kind::kNormOrNames},
    {"dt_rank", Kind::kExpression},
    {"dt", Kind::kLinearOrNames},
    {"dt_bias", Kind::kNames},
    {"dt_min", Kind::kExpression},
    {"dt_max", Kind::kExpression},
    {"a", Kind::kNames, {}, true},
    {"a_is_log", Kind::kExpression},
    {"d", Kind::kNames, {}, true},
    {"gated_norm", Kind::kNormOrNames},
    {"out", Kind::kLinearOrNames, {}, true},
};

constexpr Word kCrossWords[] = {
    {"norm", Kind::kNormOrNames},          {"post_norm", Kind::kNormOrNames},     {"sum_norm", Kind::kNormOrNames},
    {"q", Kind::kLinearOrNames, {}, true}, {"k", Kind::kLinearOrNames, {}, true}, {"v", Kind::kLinearOrNames, {}, true},
    {"o", Kind::kLinearOrNames, {}, true}, {"bias", Kind::kExpression},           {"num_heads", Kind::kExpression},
    {"num_kv_heads", Kind::kExpression},   {"head_dim", Kind::kExpression},       {"scale", Kind::kExpression},
    {"softcap", Kind::kExpression},
};

constexpr Word kMlpWords[] = {
    {"norm", Kind::kNormOrNames},     {"post_norm", Kind::kNormOrNames},        {"sum_norm", Kind::kNormOrNames},
    {"kind", Kind::kExpression},      {"activation", Kind::kExpression},        {"gate", Kind::kLinearOrNames},
    {"up", Kind::kLinearOrNames},     {"gate_up", Kind::kLinearOrNames},        {"down", Kind::kLinearOrNames, {}, true},
    {"bias", Kind::kExpression},      {"intermediate_size", Kind::kExpression}, {"gate_limit", Kind::kExpression},
    {"up_offset", Kind::kExpression},
};

constexpr Word kSharedExpertWords[] = {
    {"when", Kind::kExpression},
    {"gate", Kind::kLinearOrNames},
    {"up", Kind::kLinearOrNames},
    {"gate_up", Kind::kLinearOrNames},
    {"down", Kind::kLinearOrNames, {}, true},
    {"bias", Kind::kExpression},
    {"intermediate_size", Kind::kExpression, {}, true},
    {"output_gate", Kind::kLinearOrNames},
};

constexpr Word kMoeWords[] = {
    {"when", Kind::kExpression},
    {"norm", Kind::kNormOrNames},
    {"post_norm", Kind::kNormOrNames},
    {"num_experts", Kind::kExpression},
    {"experts_per_token", Kind::kExpression},
    {"router", Kind::kLinearOrNames, {}, true},
    {"scoring", Kind::kExpression},
    {"num_groups", Kind::kExpression},
    {"groups_per_token", Kind::kExpression},
    {"group_score", Kind::kExpression},
    {"correction", Kind::kNames},
    {"corrected", Kind::kExpression},
    {"normalize", Kind::kExpression},
    {"scale", Kind::kExpression},
    {"kind", Kind::kExpression},
    {"activation", Kind::kExpression},
    {"gate", Kind::kNames},
    {"up", Kind::kNames},
    {"gate_up", Kind::kNames},
    {"gate_up_layout", Kind::kExpression},
    {"down", Kind::kNames, {}, true},
    {"transposed", Kind::kExpression},
    {"intermediate_size", Kind::kExpression},
    {"gate_limit", Kind::kExpression},
    {"up_offset", Kind::kExpression},
    {"shared", Kind::kObject, kSharedExpertWords},
};

constexpr Word kLayerWords[] = {
    {"count", Kind::kExpression, {}, true},
    {"scope", Kind::kNames, {}, true},
    {"transposed", Kind::kExpression},
    {"parallel_residual", Kind::kExpression},
    {"residual_multiplier", Kind::kExpression},
    {"attention", Kind::kObject, kAttentionWords},
    {"convolution", Kind::kObject, kConvolutionWords},
    {"state_space", Kind::kObject, kStateSpaceWords},
    {"mlp", Kind::kObject, kMlpWords},
    {"moe", Kind::kObject, kMoeWords},
    {"cross", Kind::kObject, kCrossWords},
};

constexpr Word kEmbeddingWords[] = {
    {"tokens", Kind::kNames, {}, true}, {"multiplier", Kind::kExpression},      {"norm", Kind::kNormOrNames},
    {"positions", Kind::kNames},        {"position_offset", Kind::kExpression}, {"token_types", Kind::kNames},
    {"sinusoidal", Kind::kExpression},
};

// Of an encoder beside a decoder: the tokens' rows are the decoder's.
constexpr Word kEncoderEmbeddingWords[] = {
    {"norm", Kind::kNormOrNames}, {"positions", Kind::kNames}, {"position_offset", Kind::kExpression}, {"sinusoidal", Kind::kExpression}};

constexpr Word kEncoderWords[] = {{"embedding", Kind::kObject, kEncoderEmbeddingWords},
                                  {"layers", Kind::kObjects, kLayerWords, true},
                                  {"final_norm", Kind::kNormOrNames},
                                  {"start_token", Kind::kExpression, {}, true},
                                  {"second_token", Kind::kExpression}};

constexpr Word kHeadWords[] = {{"weight", Kind::kLinearOrNames, {}, true},
                               {"tied_when", Kind::kExpression},
                               {"multiplier", Kind::kExpression},
                               {"softcap", Kind::kExpression},
                               {"logits_bias", Kind::kNames}};

constexpr Word kDenseWords[] = {{"weight", Kind::kLinearOrNames, {}, true},
                                {"bias", Kind::kExpression},
                                {"activation", Kind::kExpression},
                                {"norm", Kind::kNormOrNames}};

constexpr Word kPooledWords[] = {{"pooling", Kind::kExpression}, {"normalize", Kind::kExpression}};

constexpr Word kClassesWords[] = {
    {"when", Kind::kExpression, {}, true}, {"pooling", Kind::kExpression}, {"layers", Kind::kObjects, kDenseWords, true}};

constexpr Word kRequireWords[] = {{"that", Kind::kExpression, {}, true}, {"message", Kind::kText, {}, true}};

constexpr Word kGgufWords[] = {{"config", Kind::kExpressionMap}, {"names", Kind::kTextMap, {}, true}};

constexpr Word kFamilyWords[] = {
    {"family", Kind::kText, {}, true},
    {"architectures", Kind::kTexts},
    {"gguf_architecture", Kind::kTexts},
    {"config", Kind::kExpressionMap},
    {"vocab_size", Kind::kExpression},
    {"hidden_size", Kind::kExpression},
    {"max_positions", Kind::kExpression},
    {"norm", Kind::kObject, kNormDefaultWords},
    {"embedding", Kind::kObject, kEmbeddingWords, true},
    {"layers", Kind::kObjects, kLayerWords, true},
    {"final_norm", Kind::kNormOrNames},
    {"encoder", Kind::kObject, kEncoderWords},
    {"head", Kind::kObject, kHeadWords},
    {"pooled", Kind::kObject, kPooledWords},
    {"classes", Kind::kObject, kClassesWords},
    {"require", Kind::kObjects, kRequireWords},
    {"ignore", Kind::kTexts},
    {"gguf", Kind::kObject, kGgufWords},
};

Status fail(std::string_view place, std::string_view message) { return Status::invalid_argument(fmt::format("{}: {}", place, message)); }

std::string below(std::string_view place, std::string_view name) {
  return place.empty() ? std::string(name) : fmt::format("{}.{}", place, name);
}

Status check_expression(const json::value& value, const std::string& place) {
  if (value.is_number() || value.is_bool()) return Status::ok();
  if (!value.is_string()) return fail(place, fmt::format("expected an expression, found {}", json::serialize(value)));
  const Result<Expression> expression = Expression::parse(value.get_string());
  return expression.is_ok() ? Status::ok() : expression.status().with_context(place);
}

bool is_text(const json::value& value) { return value.is_string() && !value.get_string().empty(); }

Status check_texts(const json::value& value, const std::string& place, std::string_view expected) {
  bool good = is_text(value);
  if (value.is_array()) {
    good = !value.get_array().empty();
    for (const json::value& element : value.get_array()) good = good && is_text(element);
  }
  return good ? Status::ok() : fail(place, fmt::format("expected {}, found {}", expected, json::serialize(value)));
}

Status check_object(const json::value& value, std::span<const Word> words, const std::string& place);

Status check_word(const json::value& value, const Word& word, const std::string& place) {
  switch (word.kind) {
    case Kind::kExpression: return check_expression(value, place);
    case Kind::kText: return is_text(value) ? Status::ok() : fail(place, fmt::format("expected a text, found {}", json::serialize(value)));
    case Kind::kTexts: return check_texts(value, place, "a text or a list of texts");
    case Kind::kNames: return check_texts(value, place, "a tensor's name or a list of alternatives");
    case Kind::kNormOrNames:
      return value.is_object() ? check_object(value, kNormWords, place)
                               : check_texts(value, place, "a norm's name, a list of alternatives or an object");
    case Kind::kLinearOrNames:
      return value.is_object() ? check_object(value, kLinearWords, place)
                               : check_texts(value, place, "a matrix's name, a list of alternatives or an object");
    case Kind::kObject: return check_object(value, word.words, place);
    case Kind::kObjects: {
      if (!value.is_array() || value.get_array().empty()) return fail(place, "expected a list of objects");
      for (std::size_t i = 0; i < value.get_array().size(); ++i) {
        MR_RETURN_IF_ERROR(check_object(value.get_array()[i], word.words, fmt::format("{}[{}]", place, i)));
      }
      return Status::ok();
    }
    case Kind::kExpressionMap:
    case Kind::kTextMap: {
      if (!value.is_object()) return fail(place, fmt::format("expected an object, found {}", json::serialize(value)));
      for (const auto& [name, element] : value.get_object()) {
        const std::string inner = below(place, name);
        if (word.kind == Kind::kExpressionMap) {
          MR_RETURN_IF_ERROR(check_expression(element, inner));
        } else if (!is_text(element)) {
          return fail(inner, fmt::format("expected a text, found {}", json::serialize(element)));
        }
      }
      return Status::ok();
    }
  }
  return Status::ok();
}

Status check_object(const json::value& value, std::span<const Word> words, const std::string& place) {
  const json::object* object = value.if_object();
  if (object == nullptr) return fail(place, fmt::format("expected an object, found {}", json::serialize(value)));
  const auto known = [&] {
    std::vector<std::string_view> names;
    for (const Word& word : words) names.push_back(word.name);
    return fmt::format("{}", fmt::join(names, ", "));
  };
  for (const auto& [name, element] : *object) {
    const Word* found = nullptr;
    for (const Word& word : words) {
      if (word.name == std::string_view(name)) found = &word;
    }
    if (found == nullptr) return fail(below(place, name), fmt::format("unknown word; known here are {}", known()));
    MR_RETURN_IF_ERROR(check_word(element, *found, below(place, name)));
  }
  for (const Word& word : words) {
    if (word.required && !object->contains(word.name)) return fail(below(place, word.name), "this word is missing");
  }
  return Status::ok();
}

// Either one fused matrix or its parts.
Status check_qkv(const json::object& attention, const std::string& place) {
  if (const json::value* latent = attention.if_contains("latent")) {
    if (!attention.contains("q")) return fail(place + ".q", "this word is missing");
    for (const std::string_view part : {"qkv", "k", "v", "q_norm", "k_norm", "clip", "num_kv_heads"}) {
      if (attention.contains(part)) return fail(below(place, part), "is no part of an attention with \"latent\"");
    }
    const json::object& words = latent->get_object();
    for (const std::string_view part : {"q_down", "q_norm"}) {
      if (words.contains(part) != words.contains("q_rank"))
        return fail(below(place + ".latent", part), "\"q_rank\", \"q_down\" and \"q_norm\" belong together");
    }
    if (words.contains("k_up") != words.contains("v_up")) return fail(place + ".latent.v_up", "\"k_up\" and \"v_up\" belong together");
    if (!words.contains("kv_up") && !words.contains("k_up")) return fail(place + ".latent.kv_up", "this word is missing");
    return Status::ok();
  }
  for (const std::string_view part : {"q", "k", "v"}) {
    if (attention.contains("qkv") && attention.contains(part)) return fail(below(place, part), "stands beside \"qkv\", which contains it");
    if (!attention.contains("qkv") && !attention.contains(part)) return fail(below(place, part), "this word is missing");
  }
  if (attention.contains("qkv") != attention.contains("layout")) return fail(place + ".layout", "\"layout\" and \"qkv\" belong together");
  return Status::ok();
}

// Of a selection there are three words, or none; without it the step width has a bias of its own.
Status check_state_space(const json::object& space, const std::string& place) {
  for (const std::string_view part : {"dt_rank", "dt"}) {
    if (space.contains(part) != space.contains("selection"))
      return fail(below(place, part), "\"selection\", \"dt_rank\" and \"dt\" belong together");
  }
  if (space.contains("dt_bias") == space.contains("selection"))
    return fail(below(place, "dt_bias"), "either \"dt_bias\" stands or \"selection\", whose \"dt\" has it");
  if (const json::value* norm = space.if_contains("selection_norm"); norm != nullptr) {
    if (!space.contains("selection")) return fail(below(place, "selection_norm"), "goes with \"selection\"");
    if (!norm->is_object() || norm->get_object().contains("name"))
      return fail(below(place, "selection_norm"), "has no weights: expected an object without \"name\"");
  }
  const json::value* norm = space.if_contains("gated_norm");
  if (norm != nullptr && norm->is_object() && !norm->get_object().contains("name"))
    return fail(place + ".gated_norm.name", "this word is missing");
  return Status::ok();
}

// One fused matrix, or its parts, or both where checkpoints differ.
Status check_mlp(const json::object& mlp, const std::string& place) {
  if (!mlp.contains("gate_up") && !mlp.contains("up")) return fail(place + ".up", "this word is missing");
  if (mlp.contains("gate_up") && mlp.contains("gate") != mlp.contains("up")) {
    return fail(below(place, mlp.contains("up") ? "up" : "gate"), "beside \"gate_up\" either both \"gate\" and \"up\" stand or none");
  }
  return Status::ok();
}

Status check_layer(const json::object& layer, const std::string& place) {
  const json::value *attention = layer.if_contains("attention"), *space = layer.if_contains("state_space");
  if (attention != nullptr) MR_RETURN_IF_ERROR(check_qkv(attention->get_object(), place + ".attention"));
  if (space != nullptr) MR_RETURN_IF_ERROR(check_state_space(space->get_object(), place + ".state_space"));
  // Layers with a state may stand in place of attention, and a state space is often all that a layer has.
  if (attention == nullptr && space == nullptr && !layer.contains("convolution")) return fail(place + ".attention", "this word is missing");
  const json::value *mlp = layer.if_contains("mlp"), *moe = layer.if_contains("moe");
  if (mlp == nullptr && moe == nullptr && attention == nullptr && space != nullptr) return Status::ok();
  if (mlp == nullptr && moe == nullptr) return fail(place + ".mlp", "this word is missing, and so is \"moe\"");
  if (mlp != nullptr) MR_RETURN_IF_ERROR(check_mlp(mlp->get_object(), place + ".mlp"));
  if (moe == nullptr) return Status::ok();
  const json::object& words = moe->get_object();
  MR_RETURN_IF_ERROR(check_mlp(words, place + ".moe"));
  const json::value* shared = words.if_contains("shared");
  return shared != nullptr ? check_mlp(shared->get_object(), place + ".moe.shared") : Status::ok();
}

// An encoder beside the decoder, whose layers all read it.
Status check_encoder(const json::object& description) {
  const json::value* encoder = description.if_contains("encoder");
  const json::array& layers = description.at("layers").get_array();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].get_object().contains("cross") == (encoder != nullptr)) continue;
    return fail(fmt::format("layers[{}].cross", i), encoder != nullptr ? "this word is missing: the layers read the encoder by it"
                                                                       : "reads an \"encoder\", which the family does not have");
  }
  if (encoder == nullptr) return Status::ok();
  if (!description.contains("head")) return fail("encoder", "stands beside a decoder, which has a \"head\"");
  const json::array& own = encoder->get_object().at("layers").get_array();
  for (std::size_t i = 0; i < own.size(); ++i) {
    const std::string place = fmt::format("encoder.layers[{}]", i);
    MR_RETURN_IF_ERROR(check_layer(own[i].get_object(), place));
    if (own[i].get_object().contains("cross")) return fail(place + ".cross", "an encoder reads no other");
  }
  return Status::ok();
}

}  // namespace

Status check_family_words(const json::object& description) {
  MR_RETURN_IF_ERROR(check_object(description, kFamilyWords, ""));
  const json::array& layers = description.at("layers").get_array();
  for (std::size_t i = 0; i < layers.size(); ++i) MR_RETURN_IF_ERROR(check_layer(layers[i].get_object(), fmt::format("layers[{}]", i)));
  MR_RETURN_IF_ERROR(check_encoder(description));
  const bool head = description.contains("head"), pooled = description.contains("pooled");
  if (head && pooled) return fail("pooled", "stands beside \"head\": a decoder has a head, an encoder gives pooled rows");
  if (!head && !pooled) return fail("head", "this word is missing, and so is \"pooled\", which an encoder has");
  if (head && description.contains("classes")) return fail("classes", "stands beside \"head\", which classes take the place of");
  const bool gguf = description.contains("gguf"), named = description.contains("gguf_architecture");
  if (gguf != named) return fail(gguf ? "gguf_architecture" : "gguf", "\"gguf\" and \"gguf_architecture\" belong together");
  return Status::ok();
}

}  // namespace millrace
