#include "millrace/model/bind_config.h"

#include <fmt/format.h>

namespace millrace {

namespace {

struct StandardField {
  std::string_view name, expression;
};

// The metadata keys that the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md) gives to every architecture, under the names
// of Hugging Face configurations. Keys are written without the architecture before them. A family's "gguf"."config" adds or replaces.
constexpr StandardField kStandardFields[] = {
    {"num_hidden_layers", "block_count"},
    {"hidden_size", "embedding_length"},
    {"intermediate_size", "feed_forward_length"},
    {"moe_intermediate_size", "expert_feed_forward_length"},
    {"shared_expert_intermediate_size", "expert_shared_feed_forward_length"},
    {"num_experts", "expert_count"},
    {"num_experts_per_tok", "expert_used_count"},
    {"num_attention_heads", "attention.head_count"},
    {"num_key_value_heads", "attention.head_count_kv"},
    {"head_dim", "attention.key_length"},
    {"vocab_size", "vocab_size"},
    {"max_position_embeddings", "context_length"},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon"},
    {"layer_norm_epsilon", "attention.layer_norm_epsilon"},
    {"sliding_window", "attention.sliding_window > 0 ? attention.sliding_window : none"},
    {"attn_logit_softcapping", "attn_logit_softcapping"},
    {"final_logit_softcapping", "final_logit_softcapping"},
    {"rope_theta", "rope.freq_base"},
    {"partial_rotary_factor", "rope.dimension_count / (attention.key_length ?? embedding_length / attention.head_count)"},
    {"rope_scaling.rope_type", "rope.scaling.type"},
    {"rope_scaling.factor", "rope.scaling.factor"},
    {"rope_scaling.original_max_position_embeddings", "rope.scaling.original_context_length"},
    {"rope_scaling.attention_factor", "rope.scaling.attn_factor"},
    // The multiplier is what YaRN calls mscale_all_dim; a file that has it takes mscale as 1.
    {"rope_scaling.mscale", "rope.scaling.yarn_log_multiplier != 0 ? 1 : none"},
    {"rope_scaling.mscale_all_dim", "rope.scaling.yarn_log_multiplier != 0 ? rope.scaling.yarn_log_multiplier : none"},
    {"rope_scaling.beta_fast", "rope.scaling.yarn_beta_fast"},
    {"rope_scaling.beta_slow", "rope.scaling.yarn_beta_slow"},
    {"tie_word_embeddings", "not has_tensor('output.weight')"},
};

// What a field is where the configuration does not have it and the family does not define it.
constexpr StandardField kDefaultFields[] = {
    {"num_key_value_heads", "num_attention_heads"},
    {"head_dim", "hidden_size / num_attention_heads"},
};

// A field by its dotted name: the whole name as one key, or a path through objects. Null where there is none.
const json::value* find_path(const json::object& object, std::string_view path) {
  if (const json::value* found = object.if_contains(path)) return found;
  const std::size_t dot = path.find('.');
  if (dot == std::string_view::npos) return nullptr;
  const json::value* inner = object.if_contains(path.substr(0, dot));
  return inner != nullptr && inner->is_object() ? find_path(inner->get_object(), path.substr(dot + 1)) : nullptr;
}

json::value to_json(const ExpressionValue& value) {
  if (const bool* v = std::get_if<bool>(&value)) return *v;
  if (const int64_t* v = std::get_if<int64_t>(&value)) return *v;
  if (const double* v = std::get_if<double>(&value)) return *v;
  if (const std::string* v = std::get_if<std::string>(&value)) return json::value(*v);
  if (const auto* v = std::get_if<const json::value*>(&value)) return **v;
  return nullptr;
}

const json::object* section(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  return value != nullptr ? value->if_object() : nullptr;
}

// A word of a family file as the text of an expression.
std::string expression_text(const json::value& word) { return word.is_string() ? std::string(word.get_string()) : json::serialize(word); }

}  // namespace

Result<BindConfig> BindConfig::make(const Family& family, const Checkpoint& checkpoint) {
  BindConfig config(family, checkpoint);
  config.is_gguf_ = checkpoint.kind() == Checkpoint::Kind::kGguf;
  if (config.is_gguf_) {
    MR_RETURN_IF_ERROR(config.read_gguf());
  } else {
    config.fields_ = checkpoint.config();
  }
  return config;
}

Status BindConfig::read_gguf() {
  const json::object& metadata = checkpoint_->config();
  std::string architecture;
  if (const json::value* value = metadata.if_contains("general.architecture"); value != nullptr && value->is_string()) {
    architecture = std::string(value->get_string());
  }
  ExpressionScope scope;
  scope.fuel = &fuel_;
  scope.has_tensor = [this](std::string_view name) { return checkpoint_->find(name) != nullptr; };
  scope.field = [&](std::string_view name) -> Result<ExpressionValue> {
    const json::value* value = metadata.if_contains(fmt::format("{}.{}", architecture, name));
    if (value == nullptr) value = metadata.if_contains(name);
    return value != nullptr ? value_of(*value) : ExpressionValue(AbsentValue{std::string(name)});
  };
  const auto set = [&](std::string_view name, std::string_view text, bool standard) -> Status {
    const std::string place = fmt::format("gguf.config.{}", name);
    const Result<Expression> expression = Expression::parse(text);
    if (!expression.is_ok()) return expression.status().with_context(where(place));
    const Result<ExpressionValue> value = expression->evaluate(scope);
    if (!value.is_ok()) {
      // A standard field that this file has no keys for is merely absent; whoever needs it says so.
      return standard ? Status::ok() : value.status().with_context(where(place));
    }
    if (std::holds_alternative<AbsentValue>(*value)) return Status::ok();
    const std::size_t dot = name.find('.');
    if (dot == std::string_view::npos) {
      fields_[name] = to_json(*value);
    } else {
      json::value& outer = fields_[name.substr(0, dot)];
      if (!outer.is_object()) outer = json::object();
      outer.get_object()[name.substr(dot + 1)] = to_json(*value);
    }
    return Status::ok();
  };
  for (const StandardField& field : kStandardFields) MR_RETURN_IF_ERROR(set(field.name, field.expression, true));
  const json::object* gguf = section(family_->description(), "gguf");
  const json::object* own = gguf != nullptr ? section(*gguf, "config") : nullptr;
  if (own != nullptr) {
    for (const auto& [name, word] : *own) MR_RETURN_IF_ERROR(set(name, expression_text(word), false));
  }
  return Status::ok();
}

std::string BindConfig::where(std::string_view place) const { return fmt::format("{}: {}", family_->file_name(), place); }

Result<ExpressionValue> BindConfig::field(std::string_view name, std::optional<int64_t> layer) const {
  if (name == "gguf") return ExpressionValue(is_gguf_);
  const std::string_view first = name.substr(0, name.find('.'));
  const json::object* defined = section(family_->description(), "config");
  const json::value* definition = defined != nullptr ? defined->if_contains(first) : nullptr;
  if (definition != nullptr && !active_.contains(first)) {
    if (first != name) {
      return Status::invalid_argument(fmt::format("{}: \"{}\" is defined by an expression and has no fields", where("config"), first));
    }
    active_.insert(std::string(first));
    Result<ExpressionValue> value = evaluate(*definition, fmt::format("config.{}", first), layer);
    active_.erase(std::string(first));
    return value;
  }
  const json::value* value = find_path(fields_, name);
  if (value != nullptr && !value->is_null()) return value_of(*value);
  if (definition == nullptr) {
    for (const StandardField& field : kDefaultFields) {
      if (field.name == name) return evaluate(field.expression, name, layer);
    }
  }
  return value != nullptr ? ExpressionValue(NoneValue{}) : ExpressionValue(AbsentValue{std::string(name)});
}

Result<ExpressionValue> BindConfig::evaluate(const json::value& word, std::string_view place, std::optional<int64_t> layer) const {
  if (!word.is_string()) return value_of(word);
  return evaluate(std::string_view(word.get_string()), place, layer);
}

Result<ExpressionValue> BindConfig::evaluate(std::string_view text, std::string_view place, std::optional<int64_t> layer) const {
  const Result<Expression> expression = Expression::parse(text);
  if (!expression.is_ok()) return expression.status().with_context(where(place));
  ExpressionScope scope;
  scope.fuel = &fuel_;
  scope.layer = layer;
  scope.has_tensor = [this](std::string_view name) { return checkpoint_->find(name) != nullptr; };
  scope.field = [&](std::string_view name) { return field(name, layer); };
  Result<ExpressionValue> value = expression->evaluate(scope);
  if (!value.is_ok()) return value.status().with_context(where(place));
  return value;
}

}  // namespace millrace
