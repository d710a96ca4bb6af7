#include "millrace/model/lowering.h"

namespace millrace {

Program Lowering::run() {
  stack();
  if (network_.pooled) {
    pooled_head(*network_.pooled);
  } else {
    head();
  }
  return std::move(program_);
}

Program Lowering::run_for(const Network& decoder) {
  stack();
  cross_keys(decoder);
  return std::move(program_);
}

void Lowering::stack() {
  hidden_ = buffer("hidden", network_.hidden_size, kF32Only);
  sum_ = buffer("branch", network_.hidden_size, kF32Only);
  normed_ = buffer("normed", network_.hidden_size, kF32Only);
  Op embed{.kind = OpKind::kEmbed, .out = hidden_, .multiplier = network_.embedding_multiplier};
  if (network_.embedding_norm) embed.norm = &*network_.embedding_norm;
  add(std::move(embed));
  for (std::size_t i = 0; i < network_.layers.size(); ++i) layer(static_cast<int32_t>(i), network_.layers[i]);
}

void Lowering::layer(int32_t index, const DecoderLayer& layer) {
  layer_ = index;
  const AttentionLayer& attention = layer.attention;
  const MlpLayer& mlp = layer.mlp;
  const std::vector<Reader> attention_readers = readers_of(attention), mlp_readers = readers_of(mlp);
  if (layer.parallel_residual) {
    // Both branches read the same hidden state, so both inputs are made before either branch adds to it.
    std::vector<Reader> readers = attention_readers;
    if (layer.shared_norm) readers.insert(readers.end(), mlp_readers.begin(), mlp_readers.end());
    const Inputs attention_in = normed_input(attention.norm, hidden_, "attention input", readers);
    const Inputs mlp_in = layer.shared_norm ? attention_in : normed_input(mlp.norm, hidden_, "mlp input", mlp_readers);
    attention_branch(attention, attention_in);
    add_branch(attention, layer.residual_multiplier);
    mlp_branch(mlp, mlp_in);
    add_branch(mlp, layer.residual_multiplier);
  } else {
    if (layer.convolution) {
      state_branch(*layer.convolution, layer.residual_multiplier);
    } else if (layer.state_space) {
      state_branch(*layer.state_space, layer.residual_multiplier);
    } else {
      attention_branch(attention, normed_input(attention.norm, hidden_, "attention input", attention_readers));
      add_branch(attention, layer.residual_multiplier);
    }
    if (layer.cross) {
      cross_branch(*layer.cross, normed_input(layer.cross->norm, hidden_, "cross attention input", {{&layer.cross->q}}));
      add_branch(*layer.cross, layer.residual_multiplier);
    }
    if (!layer.has_mlp) return;
    mlp_branch(mlp, normed_input(mlp.norm, hidden_, "mlp input", mlp_readers));
    add_branch(mlp, layer.residual_multiplier);
  }
}

void Lowering::head() {
  layer_ = -1;
  const BufferId rows = buffer("output hidden", network_.hidden_size, kF32Only, true);
  add({.kind = OpKind::kGather, .in = hidden_, .out = rows});
  const BufferId in = normed_input(network_.final_norm, rows, "head input", {{&network_.head}}, true)[0].buffer;
  program_.logits = buffer("logits", round_up(network_.vocab_size, kPanelRows), kF32Only, true);
  add({.kind = OpKind::kLinear,
       .in = in,
       .out = program_.logits,
       .segments = {segment(network_.head, 0)},
       .softcap = network_.logits_softcap,
       .scale = network_.logits_multiplier});
  add({.kind = OpKind::kSample, .in = program_.logits});
}

void Lowering::pooled_head(const PooledHead& head) {
  layer_ = -1;
  if (network_.final_norm) add({.kind = OpKind::kNorm, .in = hidden_, .out = hidden_, .norm = &*network_.final_norm});
  program_.hidden = hidden_;
  BufferId rows = buffer("pooled", network_.hidden_size, kF32Only, true);
  add({.kind = OpKind::kPool, .in = hidden_, .out = rows, .pooling = head.pooling});
  for (std::size_t i = 0; i < head.layers.size(); ++i) {
    const DenseLayer& layer = head.layers[i];
    const std::string name = "dense " + std::to_string(i);
    const int64_t size = layer.linear.weight.rows();
    const BufferId in = converted_input(rows, name + " input", {{&layer.linear}})[0].buffer;
    rows = buffer(name, size, kF32Only, true);
    add({.kind = OpKind::kLinear, .in = in, .out = rows, .segments = {segment(layer.linear, 0)}});
    if (layer.activation) {
      const BufferId activated = buffer(name + " activated", size, kF32Only, true);
      add({.kind = OpKind::kActivate, .in = rows, .out = activated, .activation = layer.activation});
      rows = activated;
    }
    if (layer.norm) rows = normed_rows(*layer.norm, rows, name + " normed", size);
  }
  if (head.unit_norm) rows = normed_rows(*head.unit_norm, rows, "unit", head.size);
  program_.logits = rows;
}

BufferId Lowering::normed_rows(const Norm& norm, BufferId in, const std::string& name, int64_t size) {
  const BufferId out = buffer(name, size, kF32Only, true);
  add({.kind = OpKind::kNorm, .in = in, .out = out, .norm = &norm});
  return out;
}

std::string_view op_name(OpKind kind) {
  switch (kind) {
    case OpKind::kEmbed: return "embed";
    case OpKind::kNorm: return "norm";
    case OpKind::kConvert: return "convert";
    case OpKind::kLinear: return "linear";
    case OpKind::kRoute: return "route";
    case OpKind::kDispatch: return "dispatch";
    case OpKind::kCombine: return "combine";
    case OpKind::kExpand: return "expand";
    case OpKind::kHeadsNorm: return "norm of all heads";
    case OpKind::kPosition: return "position";
    case OpKind::kAttention: return "attention";
    case OpKind::kConvolve: return "convolve";
    case OpKind::kScan: return "scan";
    case OpKind::kActivate: return "activate";
    case OpKind::kAdd: return "add";
    case OpKind::kGather: return "gather";
    case OpKind::kPool: return "pool";
    case OpKind::kSample: return "sample";
  }
  return "unknown";
}

Program lower_network(const Network& network, const Weights& weights, Isa isa, GemmPath path) {
  return Lowering(network, weights, isa, path).run();
}

Program lower_encoder(const Network& network, const Weights& weights, Isa isa, GemmPath path) {
  return Lowering(*network.encoder, weights, isa, path).run_for(network);
}

}  // namespace millrace
