#include "millrace/model/bind_mlp.h"

#include <fmt/format.h>

#include "millrace/model/transforms.h"

namespace millrace {

namespace {

constexpr int64_t kIntermediateMax = int64_t{1} << 22;

struct ActivationName {
  std::string_view name;
  Activation activation;
};

// The names of transformers' ACT2FN. "gelu_new", "gelu_pytorch_tanh" and "gelu_fast" are one formula.
constexpr ActivationName kActivations[] = {
    {"silu", Activation::kSilu},
    {"swish", Activation::kSilu},
    {"gelu", Activation::kGeluErf},
    {"gelu_new", Activation::kGeluTanh},
    {"gelu_pytorch_tanh", Activation::kGeluTanh},
    {"gelu_fast", Activation::kGeluTanh},
    {"gelu_tanh", Activation::kGeluTanh},
    {"gelu_erf", Activation::kGeluErf},
    {"relu", Activation::kRelu},
    {"relu2", Activation::kReluSquared},
    {"quick_gelu", Activation::kQuickGelu},
    {"tanh", Activation::kTanh},
};

// What an mlp and a mixture of experts have in common.
Status bind_common(const BindContext& context, const BindPlace& place, MlpLayer& mlp) {
  const BindWords& words = place.words;
  static constexpr std::string_view kKinds[] = {"gated", "plain"};
  MR_ASSIGN_OR_RETURN(const int kind, words.choice("kind", "gated", kKinds));
  mlp.gated = kind == 0;
  // Where an expression says which kind it is, the names of a gate stand for the networks that have one.
  const bool has_gate = words.find("gate_up") != nullptr || words.find("gate") != nullptr;
  const json::value* kind_word = words.find("kind");
  const bool written_plain = kind_word != nullptr && kind_word->is_string() && kind_word->get_string() == kKinds[1];
  if (mlp.gated ? !has_gate : has_gate && written_plain) {
    return Status::invalid_argument(fmt::format("{}: a gated mlp has \"gate\" and \"up\" or \"gate_up\", a plain one only \"up\"",
                                                context.config.where(words.place("kind"))));
  }
  MR_ASSIGN_OR_RETURN(mlp.activation, bind_activation(words, "hidden_act"));
  MR_ASSIGN_OR_RETURN(const std::optional<double> limit, words.optional_number("gate_limit", "none", 1e-6, 1e9));
  MR_ASSIGN_OR_RETURN(const double offset, words.number("up_offset", "0", -1e6, 1e6));
  if (limit && !mlp.gated)
    return Status::invalid_argument(
        fmt::format("{}: only a gated mlp has a gate to limit", context.config.where(words.place("gate_limit"))));
  if (!limit && offset != 0)
    return Status::invalid_argument(
        fmt::format("{}: \"up_offset\" goes with \"gate_limit\"", context.config.where(words.place("up_offset"))));
  if (limit) mlp.gate_limit = GateLimit{static_cast<float>(*limit), static_cast<float>(offset)};
  MR_ASSIGN_OR_RETURN(mlp.norm, bind_norm(context, place, "norm", context.hidden_size, "hidden_size"));
  MR_ASSIGN_OR_RETURN(mlp.post_norm, bind_norm(context, place, "post_norm", context.hidden_size, "hidden_size"));
  MR_ASSIGN_OR_RETURN(mlp.sum_norm, bind_norm(context, place, "sum_norm", context.hidden_size, "hidden_size"));
  return Status::ok();
}

Result<Expert> bind_dense(const BindContext& context, const BindPlace& place, int64_t size, bool gated) {
  Expert mlp;
  // Beside its parts the fused matrix is an alternative.
  const bool fused =
      gated && place.words.find("gate_up") != nullptr && (place.words.find("up") == nullptr || has_linear(context, place, "gate_up"));
  if (fused) {
    MR_ASSIGN_OR_RETURN(const StoredLinear gate_up, bind_linear(context, place, "gate_up", 2 * size, "2 * intermediate_size",
                                                                context.hidden_size, "hidden_size", "split into gate, up"));
    mlp.gate = gate_up.take(consecutive_rows(0, size));
    mlp.up = gate_up.take(consecutive_rows(size, size));
  } else {
    if (gated) {
      MR_ASSIGN_OR_RETURN(const StoredLinear gate,
                          bind_linear(context, place, "gate", size, "intermediate_size", context.hidden_size, "hidden_size"));
      mlp.gate = gate.take(consecutive_rows(0, size));
    }
    MR_ASSIGN_OR_RETURN(const StoredLinear up,
                        bind_linear(context, place, "up", size, "intermediate_size", context.hidden_size, "hidden_size"));
    mlp.up = up.take(consecutive_rows(0, size));
  }
  MR_ASSIGN_OR_RETURN(const StoredLinear down,
                      bind_linear(context, place, "down", context.hidden_size, "hidden_size", size, "intermediate_size"));
  mlp.down = down.take(consecutive_rows(0, context.hidden_size));
  return mlp;
}

Result<std::vector<StoredLinear>> bind_required_experts(const BindContext& context, const BindPlace& place, std::string_view word,
                                                        int64_t count, int64_t rows, std::string_view rows_words, int64_t k,
                                                        std::string_view k_words) {
  MR_ASSIGN_OR_RETURN(std::vector<StoredLinear> experts, bind_experts(context, place, word, count, rows, rows_words, k, k_words));
  if (experts.empty()) return missing_tensor(context, place, word, *place.words.find(word), ".weight");
  return experts;
}

// Rows of gate and up in one matrix of both.
struct GateUpRows {
  std::vector<int32_t> gate, up;
};
GateUpRows gate_up_rows(int64_t size, bool interleaved) {
  if (!interleaved) return {consecutive_rows(0, size), consecutive_rows(size, size)};
  GateUpRows rows;
  for (int64_t i = 0; i < size; ++i) {
    rows.gate.push_back(static_cast<int32_t>(2 * i));
    rows.up.push_back(static_cast<int32_t>(2 * i + 1));
  }
  return rows;
}

Status bind_all_experts(const BindContext& context, const BindPlace& place, int64_t size, std::vector<Expert>& experts) {
  static constexpr std::string_view kLayouts[] = {"concatenated", "interleaved"};
  MR_ASSIGN_OR_RETURN(const int layout, place.words.choice("gate_up_layout", "concatenated", kLayouts));
  const GateUpRows rows = gate_up_rows(size, layout == 1);
  const auto count = static_cast<int64_t>(experts.size()), hidden = context.hidden_size;
  MR_ASSIGN_OR_RETURN(const auto gate_up,
                      bind_experts(context, place, "gate_up", count, 2 * size, "2 * intermediate_size", hidden, "hidden_size",
                                   layout == 1 ? "split into gate (even rows), up (odd rows)" : "split into gate, up"));
  if (gate_up.empty() && place.words.find("up") == nullptr)
    return missing_tensor(context, place, "gate_up", *place.words.find("gate_up"), ".weight");
  for (std::size_t e = 0; e < gate_up.size(); ++e) {
    experts[e].gate = gate_up[e].take(rows.gate);
    experts[e].up = gate_up[e].take(rows.up);
  }
  if (gate_up.empty()) {
    if (place.words.find("gate") != nullptr) {
      MR_ASSIGN_OR_RETURN(const auto gate,
                          bind_required_experts(context, place, "gate", count, size, "intermediate_size", hidden, "hidden_size"));
      for (std::size_t e = 0; e < experts.size(); ++e) experts[e].gate = gate[e].take(consecutive_rows(0, size));
    }
    MR_ASSIGN_OR_RETURN(const auto up,
                        bind_required_experts(context, place, "up", count, size, "intermediate_size", hidden, "hidden_size"));
    for (std::size_t e = 0; e < experts.size(); ++e) experts[e].up = up[e].take(consecutive_rows(0, size));
  }
  MR_ASSIGN_OR_RETURN(const auto down,
                      bind_required_experts(context, place, "down", count, hidden, "hidden_size", size, "intermediate_size"));
  for (std::size_t e = 0; e < experts.size(); ++e) experts[e].down = down[e].take(consecutive_rows(0, hidden));
  return Status::ok();
}

// A rounded logit would choose another expert, so that no quantizer has the router among its matrices; and the experts' rows are copied
// from its input.
Status refuse_act_order(const BindContext& context, const Linear& linear) {
  if (linear.weight.grouped == nullptr || linear.weight.grouped->columns.empty()) return Status::ok();
  return Status::unsupported(
      fmt::format("{}: \"{}\": columns in act-order (desc_act, a g_idx that is not i / group_size), expected columns in order: "
                  "act-order is not supported in a mixture's router and the gate of its shared expert",
                  context.checkpoint.path(), linear.weight.tensor->name));
}

Result<Mixture> bind_mixture(const BindContext& context, const BindPlace& place) {
  const BindWords& words = place.words;
  BindPlace of_experts = place;
  MR_ASSIGN_OR_RETURN(of_experts.transposed, words.flag("transposed", "false"));
  Mixture mixture;
  RoutingRule& rule = mixture.rule;
  MR_ASSIGN_OR_RETURN(rule.num_experts, words.integer("num_experts", "num_experts ?? num_local_experts", 1, RoutingRule::kMaxExperts));
  MR_ASSIGN_OR_RETURN(rule.experts_per_token, words.integer("experts_per_token", "num_experts_per_tok", 1, rule.num_experts));
  static constexpr std::string_view kScorings[] = {"softmax", "sigmoid"};
  MR_ASSIGN_OR_RETURN(const int scoring, words.choice("scoring", "softmax", kScorings));
  rule.scoring = scoring == 0 ? RoutingRule::Scoring::kSoftmax : RoutingRule::Scoring::kSigmoid;
  MR_ASSIGN_OR_RETURN(rule.num_groups, words.integer("num_groups", "1", 1, rule.num_experts));
  MR_ASSIGN_OR_RETURN(rule.groups_per_token, words.integer("groups_per_token", "1", 1, rule.num_groups));
  if (rule.num_experts % rule.num_groups != 0 || rule.groups_per_token * (rule.num_experts / rule.num_groups) < rule.experts_per_token) {
    return Status::invalid_argument(
        fmt::format("{}: {} experts in {} groups, {} experts of {} groups a token: expected equal groups that have as many ({})",
                    context.checkpoint.path(), rule.num_experts, rule.num_groups, rule.experts_per_token, rule.groups_per_token,
                    context.config.where(words.place("num_groups"))));
  }
  static constexpr std::string_view kGroupScores[] = {"largest", "two_largest"};
  MR_ASSIGN_OR_RETURN(const int group_score, words.choice("group_score", "largest", kGroupScores));
  rule.group_score = group_score == 0 ? RoutingRule::GroupScore::kLargest : RoutingRule::GroupScore::kTwoLargest;
  MR_ASSIGN_OR_RETURN(const bool corrected, words.flag("corrected", "true"));
  if (corrected && words.find("correction") != nullptr) {
    MR_ASSIGN_OR_RETURN(rule.correction, bind_own_vector(context, place, "correction", rule.num_experts, "num_experts"));
  }
  MR_ASSIGN_OR_RETURN(rule.normalize, words.flag("normalize", "true"));
  MR_ASSIGN_OR_RETURN(const double scale, words.number("scale", "1", 1e-6, 1e6));
  rule.scale = static_cast<float>(scale);
  MR_ASSIGN_OR_RETURN(const int64_t size,
                      words.integer("intermediate_size", "moe_intermediate_size ?? intermediate_size", 1, kIntermediateMax));

  MR_ASSIGN_OR_RETURN(const StoredLinear router,
                      bind_linear(context, place, "router", rule.num_experts, "num_experts", context.hidden_size, "hidden_size"));
  mixture.router = router.take(consecutive_rows(0, rule.num_experts));
  mixture.experts.resize(static_cast<std::size_t>(rule.num_experts));
  MR_RETURN_IF_ERROR(bind_all_experts(context, of_experts, size, mixture.experts));
  MR_RETURN_IF_ERROR(refuse_act_order(context, mixture.router));

  if (words.find("shared") == nullptr) return mixture;
  const BindPlace shared{words.object("shared"), place.scopes, place.role_of("shared"), place.transposed};
  MR_ASSIGN_OR_RETURN(const bool has_shared, shared.words.flag("when", "true"));
  if (!has_shared) return mixture;
  const bool has_gate = shared.words.find("gate") != nullptr || shared.words.find("gate_up") != nullptr;
  MR_ASSIGN_OR_RETURN(const int64_t shared_size, shared.words.integer("intermediate_size", "", 1, kIntermediateMax));
  MR_ASSIGN_OR_RETURN(mixture.shared, bind_dense(context, shared, shared_size, has_gate));
  if (shared.words.find("output_gate") == nullptr) return mixture;
  MR_ASSIGN_OR_RETURN(const StoredLinear gate, bind_linear(context, shared, "output_gate", 1, "1", context.hidden_size, "hidden_size"));
  mixture.shared_gate = gate.take({0});
  MR_RETURN_IF_ERROR(refuse_act_order(context, *mixture.shared_gate));
  return mixture;
}

}  // namespace

Result<Activation> bind_activation(const BindWords& words, std::string_view otherwise) {
  std::vector<std::string_view> names;
  for (const ActivationName& activation : kActivations) names.push_back(activation.name);
  MR_ASSIGN_OR_RETURN(const int activation, words.choice("activation", otherwise, names));
  return kActivations[activation].activation;
}

Result<MlpLayer> bind_mlp(const BindContext& context, const BindWords& layer, const BindPlace& place) {
  MlpLayer mlp;
  BindPlace own = place;
  if (layer.find("moe") != nullptr) {
    own.words = layer.object("moe");
    MR_ASSIGN_OR_RETURN(const bool applies, own.words.flag("when", "true"));
    if (applies) {
      MR_RETURN_IF_ERROR(bind_common(context, own, mlp));
      MR_ASSIGN_OR_RETURN(mlp.mixture, bind_mixture(context, own));
      return mlp;
    }
  }
  if (layer.find("mlp") == nullptr) {
    return Status::invalid_argument(fmt::format("{}: layer {} is no mixture of experts, and the family has no \"mlp\"",
                                                context.config.where(layer.place("moe")), *layer.layer()));
  }
  own.words = layer.object("mlp");
  MR_RETURN_IF_ERROR(bind_common(context, own, mlp));
  MR_ASSIGN_OR_RETURN(const int64_t size, own.words.integer("intermediate_size", "intermediate_size", 1, kIntermediateMax));
  MR_ASSIGN_OR_RETURN(Expert dense, bind_dense(context, own, size, mlp.gated));
  mlp.gate = std::move(dense.gate);
  mlp.up = std::move(dense.up);
  mlp.down = std::move(dense.down);
  return mlp;
}

}  // namespace millrace
