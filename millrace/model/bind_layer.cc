#include "millrace/model/bind_layer.h"

#include <fmt/format.h>

#include "millrace/model/bind_mlp.h"
#include "millrace/model/bind_state.h"
#include "millrace/model/relative_bias.h"
#include "millrace/model/rope_scaling.h"
#include "millrace/model/transforms.h"

namespace millrace {

namespace {

constexpr int64_t kHeadsMax = 4096, kHeadDimMax = 512, kRankMax = int64_t{1} << 20, kPositionsMax = int64_t{1} << 31;

// How a layer's positions enter its attention, and how rows of q and k must be reordered for it.
struct BoundPosition {
  std::optional<Rope> rope;
  std::vector<float> alibi_slopes;
  std::optional<RelativeBias> relative_bias;
  Rope::Pairing stored_pairing = Rope::Pairing::kHalf;
  int64_t max_positions = 0;
};

// The table is named from the root: most networks have one for all layers.
Result<RelativeBias> bind_relative_bias(const BindContext& context, const BindPlace& place, int64_t num_heads, bool both_ways) {
  constexpr int64_t kBucketsMax = 1024, kDistanceMax = 4096;
  const BindWords& words = place.words;
  const json::value* names = words.find("bias");
  if (names == nullptr)
    return Status::invalid_argument(
        fmt::format("{}: this word is missing, which a relative position has", context.config.where(words.place("bias"))));
  MR_ASSIGN_OR_RETURN(const int64_t buckets, words.integer("buckets", "relative_attention_num_buckets ?? 32", 4, kBucketsMax));
  MR_ASSIGN_OR_RETURN(const int64_t max_distance,
                      words.integer("max_distance", "relative_attention_max_distance ?? 128", buckets / 2 + 1, kDistanceMax));
  const SourceTensor* tensor = context.tensors.find(*names, nullptr, place.layer(), ".weight");
  if (tensor == nullptr) return missing_tensor(context, {words, nullptr, place.role, false}, "bias", *names, ".weight");
  MR_RETURN_IF_ERROR(context.tensors.use(*tensor, {buckets, num_heads}, "[buckets, num_heads]", place.role_of("bias"), "by distance"));
  MR_ASSIGN_OR_RETURN(const std::vector<float> stored, context.tensors.read(*tensor));
  return spread_relative_bias(stored, num_heads, both_ways, buckets, max_distance);
}

Result<BoundPosition> bind_position(const BindContext& context, const BindPlace& attention, const AttentionGeometry& geometry,
                                    bool causal) {
  BoundPosition position;
  position.max_positions = context.max_positions;
  if (attention.words.find("position") == nullptr) return position;
  const BindPlace place{attention.words.object("position"), attention.scopes, attention.role_of("position"), false};
  const BindWords& words = place.words;
  static constexpr std::string_view kKinds[] = {"rope", "alibi", "relative", "none"};
  MR_ASSIGN_OR_RETURN(const int kind, words.choice("kind", "none", kKinds));
  if (kind == 1) {
    MR_ASSIGN_OR_RETURN(const double max_bias, words.number("max_bias", "8", 1e-6, 64));
    position.alibi_slopes = alibi_slopes(geometry.num_heads, max_bias);
  }
  if (kind == 2) {
    MR_ASSIGN_OR_RETURN(position.relative_bias, bind_relative_bias(context, place, geometry.num_heads, !causal));
  }
  if (kind != 0) return position;

  static constexpr std::string_view kPairings[] = {"half", "interleaved"};
  MR_ASSIGN_OR_RETURN(const int pairing, words.choice("pairing", "half", kPairings));
  MR_ASSIGN_OR_RETURN(const int stored, words.choice("stored_pairing", kPairings[pairing], kPairings));
  RopeSettings settings;
  MR_ASSIGN_OR_RETURN(settings.parameters, words.optional_fields("parameters", "rope_parameters ?? rope_scaling ?? none"));
  const BindWords parameters(context.config, settings.parameters, words.place("parameters"), place.layer());
  const json::value* theta = parameters.find("rope_theta");
  if (theta != nullptr && theta->is_number()) {
    settings.theta = theta->to_number<double>();
  } else {
    MR_ASSIGN_OR_RETURN(settings.theta, words.number("theta", "rope_theta ?? 10000", 1e-6, 1e30));
  }
  if (words.find("rotary_dim") != nullptr) {
    MR_ASSIGN_OR_RETURN(settings.rotary_dim, words.integer("rotary_dim", "", 2, geometry.head_dim));
  } else {
    const json::value* partial = parameters.find("partial_rotary_factor");
    double share = 1;
    if (partial != nullptr && partial->is_number()) {
      share = partial->to_number<double>();
    } else {
      MR_ASSIGN_OR_RETURN(share, words.number("partial_rotary_factor", "partial_rotary_factor ?? 1", 0, 1));
    }
    if (!(share >= 0 && share <= 1)) {
      return Status::invalid_argument(
          fmt::format("{}: \"partial_rotary_factor\" is {}, expected a number from 0 to 1", context.checkpoint.path(), share));
    }
    settings.rotary_dim = static_cast<int64_t>(static_cast<double>(geometry.head_dim) * share);
  }
  settings.max_positions = context.max_positions;
  MR_ASSIGN_OR_RETURN(settings.original_max_positions,
                      words.optional_integer("original_max_positions", "original_max_position_embeddings ?? none", 1, kPositionsMax));
  MR_ASSIGN_OR_RETURN(settings.truncate, words.optional_flag("truncate"));
  const int64_t half = settings.rotary_dim / 2;
  MR_ASSIGN_OR_RETURN(settings.frequency_factors, bind_vector(context, place, "frequency_factors", half, "rotary_dim / 2"));
  MR_ASSIGN_OR_RETURN(settings.short_factors, bind_vector(context, place, "short_factors", half, "rotary_dim / 2"));
  MR_ASSIGN_OR_RETURN(settings.long_factors, bind_vector(context, place, "long_factors", half, "rotary_dim / 2"));
  Result<ScaledRope> scaled = make_rope(settings);
  if (!scaled.is_ok()) {
    return scaled.status().with_context(
        fmt::format("{}: {} (layer {})", context.checkpoint.path(), context.config.where(words.place("")), *place.layer()));
  }
  position.rope = std::move(scaled->rope);
  position.rope->pairing = pairing == 0 ? Rope::Pairing::kHalf : Rope::Pairing::kInterleaved;
  position.stored_pairing = stored == 0 ? Rope::Pairing::kHalf : Rope::Pairing::kInterleaved;
  position.max_positions = scaled->max_positions;
  return position;
}

Status bind_qkv(const BindContext& context, const BindPlace& place, const AttentionGeometry& geometry, const BoundPosition& position,
                AttentionLayer& attention) {
  const int64_t q_rows = geometry.num_heads * geometry.head_dim, kv_rows = geometry.num_kv_heads * geometry.head_dim;
  const bool reorder = position.rope && position.stored_pairing != position.rope->pairing;
  const auto paired = [&](std::vector<int32_t> rows) {
    if (!reorder) return rows;
    return reorder_pairing(rows, geometry.head_dim, position.rope->rotary_dim, position.stored_pairing, position.rope->pairing);
  };
  const std::string_view reordered = reorder ? "rows reordered for the pairing of rope" : "";
  if (place.words.find("qkv") == nullptr) {
    MR_ASSIGN_OR_RETURN(const StoredLinear q,
                        bind_linear(context, place, "q", q_rows, "num_heads * head_dim", context.hidden_size, "hidden_size", reordered));
    MR_ASSIGN_OR_RETURN(const StoredLinear k, bind_linear(context, place, "k", kv_rows, "num_kv_heads * head_dim", context.hidden_size,
                                                          "hidden_size", reordered));
    MR_ASSIGN_OR_RETURN(const StoredLinear v,
                        bind_linear(context, place, "v", kv_rows, "num_kv_heads * head_dim", context.hidden_size, "hidden_size"));
    attention.q = q.take(paired(consecutive_rows(0, q_rows)));
    attention.k = k.take(paired(consecutive_rows(0, kv_rows)));
    attention.v = v.take(consecutive_rows(0, kv_rows));
    return Status::ok();
  }
  static constexpr std::string_view kLayouts[] = {"concatenated", "per_kv_group"};
  MR_ASSIGN_OR_RETURN(const int layout, place.words.choice("layout", "concatenated", kLayouts));
  const std::string transforms = fmt::format("split into q, k, v ({}){}{}", kLayouts[layout], reorder ? ", " : "", reordered);
  MR_ASSIGN_OR_RETURN(const StoredLinear qkv,
                      bind_linear(context, place, "qkv", q_rows + 2 * kv_rows, "(num_heads + 2 * num_kv_heads) * head_dim",
                                  context.hidden_size, "hidden_size", transforms));
  QkvRows rows = layout == 0 ? concatenated_rows(geometry) : per_kv_group_rows(geometry);
  attention.q = qkv.take(paired(std::move(rows.q)));
  attention.k = qkv.take(paired(std::move(rows.k)));
  attention.v = qkv.take(std::move(rows.v));
  return Status::ok();
}

// q by itself or by way of q_down; keys and values by way of kv_down.
Status bind_latent(const BindContext& context, const BindPlace& place, const AttentionGeometry& geometry, const BoundPosition& position,
                   AttentionLayer& attention) {
  const BindPlace own{place.words.object("latent"), place.scopes, place.role_of("latent"), place.transposed};
  const BindWords& words = own.words;
  LatentAttention latent;
  MR_ASSIGN_OR_RETURN(latent.rope_dim, words.integer("rope_dim", "", 2, geometry.head_dim - 1));
  MR_ASSIGN_OR_RETURN(latent.value_dim, words.integer("value_dim", "", 1, geometry.head_dim));
  MR_ASSIGN_OR_RETURN(const int64_t kv_rank, words.integer("kv_rank", "", 1, kRankMax));
  MR_ASSIGN_OR_RETURN(const std::optional<int64_t> q_rank, words.optional_integer("q_rank", "none", 1, kRankMax));
  if (!position.rope || position.rope->rotary_dim != latent.rope_dim) {
    return Status::invalid_argument(
        fmt::format("{}: {}: latent attention rotates the {} dimensions of rope_dim, expected \"position\" to do so",
                    context.checkpoint.path(), context.config.where(words.place("rope_dim")), latent.rope_dim));
  }
  const int64_t own_dim = geometry.head_dim - latent.rope_dim, up_dim = own_dim + latent.value_dim,
                q_rows = geometry.num_heads * geometry.head_dim;
  const auto paired = [&](const std::vector<int32_t>& rows, int64_t head_dim) {
    return reorder_pairing(rows, head_dim, latent.rope_dim, position.stored_pairing, position.rope->pairing);
  };
  if (q_rank) {
    MR_ASSIGN_OR_RETURN(const StoredLinear q_down,
                        bind_linear(context, own, "q_down", *q_rank, "q_rank", context.hidden_size, "hidden_size"));
    latent.q_down = q_down.take(consecutive_rows(0, *q_rank));
    MR_ASSIGN_OR_RETURN(latent.q_norm, bind_norm(context, own, "q_norm", *q_rank, "q_rank"));
    if (!latent.q_norm) return Status::invalid_argument(fmt::format("{}: expected a norm", context.config.where(words.place("q_norm"))));
  }
  MR_ASSIGN_OR_RETURN(const StoredLinear q,
                      bind_linear(context, place, "q", q_rows, "num_heads * head_dim", q_rank.value_or(context.hidden_size),
                                  q_rank ? "q_rank" : "hidden_size", "rope's rows of each head first"));
  attention.q = q.take(paired(last_rows_first(geometry.num_heads, geometry.head_dim, latent.rope_dim), geometry.head_dim));
  MR_ASSIGN_OR_RETURN(const StoredLinear kv_down,
                      bind_linear(context, own, "kv_down", kv_rank + latent.rope_dim, "kv_rank + rope_dim", context.hidden_size,
                                  "hidden_size", "split into the latent, the keys' part with rope"));
  latent.kv_down = kv_down.take(consecutive_rows(0, kv_rank));
  latent.k_rope = kv_down.take(paired(consecutive_rows(kv_rank, latent.rope_dim), latent.rope_dim));
  MR_ASSIGN_OR_RETURN(std::optional<Norm> kv_norm, bind_norm(context, own, "kv_norm", kv_rank, "kv_rank"));
  if (!kv_norm) return Status::invalid_argument(fmt::format("{}: expected a norm", context.config.where(words.place("kv_norm"))));
  latent.kv_norm = std::move(*kv_norm);
  // Beside the parts the whole matrix is an alternative.
  if (words.find("kv_up") != nullptr && (words.find("k_up") == nullptr || has_linear(context, own, "kv_up"))) {
    MR_ASSIGN_OR_RETURN(const StoredLinear kv_up,
                        bind_linear(context, own, "kv_up", geometry.num_heads * up_dim, "num_heads * (head_dim - rope_dim + value_dim)",
                                    kv_rank, "kv_rank", "split into k, v of each head"));
    latent.k_up = kv_up.take(rows_of_blocks(geometry.num_heads, up_dim, 0, own_dim));
    latent.v_up = kv_up.take(rows_of_blocks(geometry.num_heads, up_dim, own_dim, up_dim));
  } else {
    MR_ASSIGN_OR_RETURN(const StoredLinear k_up, bind_stack(context, own, "k_up", geometry.num_heads, "num_heads", own_dim,
                                                            "head_dim - rope_dim", kv_rank, "kv_rank", true));
    MR_ASSIGN_OR_RETURN(const StoredLinear v_up, bind_stack(context, own, "v_up", geometry.num_heads, "num_heads", latent.value_dim,
                                                            "value_dim", kv_rank, "kv_rank", false));
    latent.k_up = k_up.take(consecutive_rows(0, geometry.num_heads * own_dim));
    latent.v_up = v_up.take(consecutive_rows(0, geometry.num_heads * latent.value_dim));
  }
  if (latent.value_dim < geometry.head_dim)
    latent.value_columns = rows_of_blocks(geometry.num_heads, geometry.head_dim, 0, latent.value_dim);
  attention.latent = std::move(latent);
  return Status::ok();
}

Result<AttentionLayer> bind_attention(const BindContext& context, const BindPlace& place, int64_t& max_positions) {
  const BindWords& words = place.words;
  AttentionLayer attention;
  AttentionGeometry geometry;
  MR_ASSIGN_OR_RETURN(geometry.num_heads, words.integer("num_heads", "num_attention_heads", 1, kHeadsMax));
  // Of latent attention every head has a key of its own.
  geometry.num_kv_heads = geometry.num_heads;
  if (words.find("latent") == nullptr) {
    MR_ASSIGN_OR_RETURN(geometry.num_kv_heads, words.integer("num_kv_heads", "num_key_value_heads", 1, kHeadsMax));
  }
  MR_ASSIGN_OR_RETURN(geometry.head_dim, words.integer("head_dim", "head_dim", 1, kHeadDimMax));
  if (geometry.num_heads % geometry.num_kv_heads != 0) {
    return Status::invalid_argument(fmt::format("{}: num_heads is {}, expected a multiple of num_kv_heads = {} ({})",
                                                context.checkpoint.path(), geometry.num_heads, geometry.num_kv_heads,
                                                context.config.where(words.place("num_heads"))));
  }
  attention.num_heads = geometry.num_heads;
  attention.num_kv_heads = geometry.num_kv_heads;
  attention.head_dim = geometry.head_dim;
  MR_ASSIGN_OR_RETURN(const double scale, words.number("scale", "1 / sqrt(head_dim)", 1e-9, 1e9));
  attention.scale = static_cast<float>(scale);
  MR_ASSIGN_OR_RETURN(const std::optional<double> softcap, words.optional_number("softcap", "none", 1e-6, 1e9));
  if (softcap) attention.softcap = static_cast<float>(*softcap);
  MR_ASSIGN_OR_RETURN(const std::optional<double> clip, words.optional_number("clip", "none", 1e-6, 1e9));
  if (clip) attention.clip = static_cast<float>(*clip);
  MR_ASSIGN_OR_RETURN(attention.causal, words.flag("causal", "true"));
  MR_ASSIGN_OR_RETURN(attention.window, words.optional_integer("window", "none", 1, kPositionsMax));

  MR_ASSIGN_OR_RETURN(BoundPosition position, bind_position(context, place, geometry, attention.causal));
  MR_ASSIGN_OR_RETURN(attention.norm, bind_norm(context, place, "norm", context.hidden_size, "hidden_size"));
  const bool has_latent = words.find("latent") != nullptr;
  MR_RETURN_IF_ERROR(has_latent ? bind_latent(context, place, geometry, position, attention)
                                : bind_qkv(context, place, geometry, position, attention));
  const int64_t q_rows = geometry.num_heads * geometry.head_dim;
  static constexpr std::string_view kHeadNorms[] = {"head", "each_head", "all_heads"};
  MR_ASSIGN_OR_RETURN(const int head_norm, words.choice("head_norm", "head", kHeadNorms));
  attention.head_norm = static_cast<HeadNorm>(head_norm);
  NormSize q_size{geometry.head_dim, "head_dim", 0, "num_heads"}, k_size{geometry.head_dim, "head_dim", 0, "num_kv_heads"};
  if (attention.head_norm == HeadNorm::kEachHead) q_size.num_heads = geometry.num_heads, k_size.num_heads = geometry.num_kv_heads;
  if (attention.head_norm == HeadNorm::kAllHeads) {
    q_size = {q_rows, "num_heads * head_dim", 0, {}};
    k_size = {geometry.num_kv_heads * geometry.head_dim, "num_kv_heads * head_dim", 0, {}};
  }
  MR_ASSIGN_OR_RETURN(attention.q_norm, bind_norm(context, place, "q_norm", q_size));
  MR_ASSIGN_OR_RETURN(attention.k_norm, bind_norm(context, place, "k_norm", k_size));
  const int64_t o_columns = has_latent ? geometry.num_heads * attention.latent->value_dim : q_rows;
  MR_ASSIGN_OR_RETURN(const StoredLinear o, bind_linear(context, place, "o", context.hidden_size, "hidden_size", o_columns,
                                                        has_latent ? "num_heads * value_dim" : "num_heads * head_dim"));
  if (has_latent && o.grouped && !o.grouped->columns.empty()) {
    return Status::unsupported(
        fmt::format("{}: \"{}\": act-order is not supported after latent attention", context.checkpoint.path(), o.weight->name));
  }
  attention.o = o.take(consecutive_rows(0, context.hidden_size));
  MR_ASSIGN_OR_RETURN(attention.post_norm, bind_norm(context, place, "post_norm", context.hidden_size, "hidden_size"));
  MR_ASSIGN_OR_RETURN(attention.sum_norm, bind_norm(context, place, "sum_norm", context.hidden_size, "hidden_size"));
  if (words.find("sinks") != nullptr) {
    MR_ASSIGN_OR_RETURN(attention.sinks, bind_own_vector(context, place, "sinks", geometry.num_heads, "num_heads"));
  }
  attention.rope = std::move(position.rope);
  attention.alibi_slopes = std::move(position.alibi_slopes);
  attention.relative_bias = std::move(position.relative_bias);
  max_positions = position.max_positions;
  return attention;
}

}  // namespace

Result<BoundLayer> bind_layer(const BindContext& context, const json::object& description, std::string place, std::string_view role_prefix,
                              int64_t layer) {
  const BindWords words(context.config, &description, std::move(place), layer);
  const json::value& scopes = description.at("scope");
  BoundLayer bound;
  MR_ASSIGN_OR_RETURN(const bool transposed, words.flag("transposed", "false"));
  MR_ASSIGN_OR_RETURN(bound.layer.parallel_residual, words.flag("parallel_residual", "false"));
  MR_ASSIGN_OR_RETURN(const double multiplier, words.number("residual_multiplier", "1", -1e6, 1e6));
  bound.layer.residual_multiplier = static_cast<float>(multiplier);
  const std::string role = fmt::format("{}layers.{}", role_prefix, layer);
  bound.max_positions = context.max_positions;
  MR_ASSIGN_OR_RETURN(const bool has_state, bind_state(context, words, {words, &scopes, role, transposed}, bound.layer));
  if (!has_state) {
    const BindPlace attention{words.object("attention"), &scopes, role + ".attention", transposed};
    MR_ASSIGN_OR_RETURN(bound.layer.attention, bind_attention(context, attention, bound.max_positions));
  }
  if (words.find("cross") != nullptr) {
    int64_t unlimited = 0;
    MR_ASSIGN_OR_RETURN(bound.layer.cross,
                        bind_attention(context, {words.object("cross"), &scopes, role + ".cross", transposed}, unlimited));
    bound.layer.cross->cross = true;
    bound.layer.cross->causal = false;
    if (bound.layer.parallel_residual)
      return Status::unsupported(fmt::format("{}: \"cross\" beside \"parallel_residual\"", context.config.where(words.place("cross"))));
  }
  bound.layer.has_mlp = words.find("mlp") != nullptr || words.find("moe") != nullptr;
  if (!bound.layer.has_mlp) return bound;
  MR_ASSIGN_OR_RETURN(bound.layer.mlp, bind_mlp(context, words, {words, &scopes, role + ".mlp", transposed}));
  if (bound.layer.parallel_residual && (bound.layer.attention.sum_norm || bound.layer.mlp.sum_norm)) {
    return Status::invalid_argument(fmt::format("{}: \"sum_norm\" beside \"parallel_residual\": both branches would be of different sums",
                                                context.config.where(words.place(""))));
  }
  bound.layer.shared_norm = bound.layer.parallel_residual && bound.layer.attention.norm && !bound.layer.mlp.norm;
  return bound;
}

}  // namespace millrace
