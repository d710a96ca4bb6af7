#include "millrace/model/lowering.h"

namespace millrace {

std::vector<Lowering::Reader> Lowering::readers_of(const AttentionLayer& attention) {
  if (!attention.latent) return {{&attention.q}, {&attention.k}, {&attention.v}};
  const LatentAttention& latent = *attention.latent;
  return {{latent.q_down ? &*latent.q_down : &attention.q}, {&latent.kv_down}, {&latent.k_rope}};
}

void Lowering::attention_branch(const AttentionLayer& attention, const Inputs& in) {
  const int64_t q_size = attention.num_heads * attention.head_dim, kv_size = attention.num_kv_heads * attention.head_dim;
  const int64_t k_column = round_up(q_size, kPanelRows), v_column = k_column + round_up(kv_size, kPanelRows);
  const BufferId qkv = buffer("qkv", v_column + round_up(kv_size, kPanelRows), kF32Only);
  if (attention.latent) {
    latent_qkv(attention, in, qkv, k_column, v_column);
  } else {
    add_linears(in, {{&attention.q, 0}, {&attention.k, k_column}, {&attention.v, v_column}},
                {.kind = OpKind::kLinear, .out = qkv, .clip = attention.clip});
  }
  const bool has_norm = attention.q_norm || attention.k_norm, heads_together = attention.head_norm == HeadNorm::kAllHeads;
  if (has_norm && heads_together) add({.kind = OpKind::kHeadsNorm, .in = qkv, .out = qkv, .attention = &attention, .k_column = k_column});
  Op position{.kind = OpKind::kPosition, .out = qkv, .attention = &attention, .k_column = k_column, .v_column = v_column};
  kv_group(attention, position);
  if (has_norm && !heads_together) {
    Op op = position;
    op.qk_norm = true;
    add(std::move(op));
  }
  if (attention.rope) {
    Op op = position;
    op.rope = true;
    op.rope_table = rope_table(*attention.rope);
    add(std::move(op));
  }
  Op write = position;
  write.kv_write = true;
  add(std::move(write));
  const BufferId attended = buffer("attended", q_size, kF32Only);
  add({.kind = OpKind::kAttention,
       .in = qkv,
       .out = attended,
       .attention = &attention,
       .kv_group = position.kv_group,
       .kv_layer = position.kv_layer});
  if (attention.latent && !attention.latent->value_columns.empty()) {
    const std::vector<int32_t>& columns = attention.latent->value_columns;
    const BufferId values = buffer("attention output", static_cast<int64_t>(columns.size()), forms_of({&attention.o}));
    add({.kind = OpKind::kConvert, .in = attended, .out = values, .columns = &columns});
    add_linears({{&attention.o, values}}, {{&attention.o, 0}}, {.kind = OpKind::kLinear, .out = sum_});
    return;
  }
  add_linears(converted_input(attended, "attention output", {{&attention.o}}), {{&attention.o, 0}}, {.kind = OpKind::kLinear, .out = sum_});
}

void Lowering::cross_branch(const AttentionLayer& cross, const Inputs& in) {
  const int64_t q_size = cross.num_heads * cross.head_dim;
  const BufferId q = buffer("cross q", round_up(q_size, kPanelRows), kF32Only), attended = buffer("attended", q_size, kF32Only);
  add_linears(in, {{&cross.q, 0}}, {.kind = OpKind::kLinear, .out = q});
  Op attention{.kind = OpKind::kAttention, .in = q, .out = attended, .attention = &cross};
  kv_group(cross, attention);
  add(std::move(attention));
  add_linears(converted_input(attended, "attention output", {{&cross.o}}), {{&cross.o, 0}}, {.kind = OpKind::kLinear, .out = sum_});
}

void Lowering::cross_keys(const Network& decoder) {
  layer_ = -1;
  if (network_.final_norm) add({.kind = OpKind::kNorm, .in = hidden_, .out = hidden_, .norm = &*network_.final_norm});
  program_.hidden = hidden_;
  std::vector<Reader> readers;
  for (const DecoderLayer& layer : decoder.layers) {
    readers.push_back({&layer.cross->k});
    readers.push_back({&layer.cross->v});
  }
  const Inputs in = converted_input(hidden_, "cross keys input", readers);
  for (const DecoderLayer& layer : decoder.layers) {
    const AttentionLayer& cross = *layer.cross;
    const int64_t v_column = round_up(cross.num_kv_heads * cross.head_dim, kPanelRows);
    const BufferId kv = buffer("cross keys and values", 2 * v_column, kF32Only);
    add_linears(in, {{&cross.k, 0}, {&cross.v, v_column}}, {.kind = OpKind::kLinear, .out = kv});
    Op write{.kind = OpKind::kPosition, .out = kv, .attention = &cross, .k_column = 0, .v_column = v_column};
    write.kv_write = true;
    kv_group(cross, write);
    add(std::move(write));
  }
}

Lowering::Inputs Lowering::normed_latent(const Norm& norm, BufferId in, const std::string& name, const std::vector<Reader>& readers) {
  const BufferId normed = buffer(name + " normed", program_.buffers[static_cast<std::size_t>(in)].width, kF32Only);
  add({.kind = OpKind::kNorm, .in = in, .out = normed, .norm = &norm});
  return converted_input(normed, name + " input", readers);
}

void Lowering::latent_qkv(const AttentionLayer& attention, const Inputs& in, BufferId qkv, int64_t k_column, int64_t v_column) {
  const LatentAttention& latent = *attention.latent;
  Inputs q_in = in;
  if (latent.q_down) {
    const BufferId q_latent = buffer("q latent", latent.q_down->weight.rows(), kF32Only);
    add_linears(in, {{&*latent.q_down, 0}}, {.kind = OpKind::kLinear, .out = q_latent});
    q_in = normed_latent(*latent.q_norm, q_latent, "q latent", {{&attention.q}});
  }
  add_linears(q_in, {{&attention.q, 0}}, {.kind = OpKind::kLinear, .out = qkv});
  const BufferId kv_latent = buffer("kv latent", latent.kv_down.weight.rows(), kF32Only),
                 k_rope = buffer("k rope", latent.rope_dim, kF32Only);
  add_linears(in, {{&latent.kv_down, 0}}, {.kind = OpKind::kLinear, .out = kv_latent});
  add_linears(in, {{&latent.k_rope, 0}}, {.kind = OpKind::kLinear, .out = k_rope});
  const Inputs kv_in = normed_latent(latent.kv_norm, kv_latent, "kv latent", {{&latent.k_up}, {&latent.v_up}});
  const int64_t values = round_up(latent.k_up.weight.rows(), kPanelRows);
  const BufferId keys_values = buffer("keys and values", values + round_up(latent.v_up.weight.rows(), kPanelRows), kF32Only);
  add_linears(kv_in, {{&latent.k_up, 0}, {&latent.v_up, values}}, {.kind = OpKind::kLinear, .out = keys_values});
  add({.kind = OpKind::kExpand,
       .in = keys_values,
       .out = qkv,
       .shared = k_rope,
       .attention = &attention,
       .k_column = k_column,
       .v_column = v_column});
}

void Lowering::kv_group(const AttentionLayer& attention, Op& op) {
  auto& groups = program_.kv_groups;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (groups[g].num_kv_heads == attention.num_kv_heads && groups[g].head_dim == attention.head_dim &&
        groups[g].window == attention.window && groups[g].cross == attention.cross) {
      op.kv_group = static_cast<int32_t>(g);
      op.kv_layer = attention.causal || attention.cross ? static_cast<int32_t>(groups[g].num_layers++) : 0;
      return;
    }
  }
  groups.push_back({.num_layers = 1,
                    .num_kv_heads = attention.num_kv_heads,
                    .head_dim = attention.head_dim,
                    .window = attention.window,
                    .cross = attention.cross});
  op.kv_group = static_cast<int32_t>(groups.size() - 1);
  op.kv_layer = 0;
}

int32_t Lowering::rope_table(const Rope& rope) {
  for (std::size_t i = 0; i < program_.ropes.size(); ++i) {
    const Rope& known = *program_.ropes[i];
    if (known.rotary_dim == rope.rotary_dim && known.inv_freq == rope.inv_freq && known.attention_factor == rope.attention_factor &&
        known.long_inv_freq == rope.long_inv_freq && known.long_attention_factor == rope.long_attention_factor) {
      return static_cast<int32_t>(i);
    }
  }
  program_.ropes.push_back(&rope);
  return static_cast<int32_t>(program_.ropes.size() - 1);
}

}  // namespace millrace
