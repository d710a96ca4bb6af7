#include <algorithm>

#include "millrace/model/program.h"

namespace millrace {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

constexpr uint8_t bit(ActivationForm form) { return static_cast<uint8_t>(form); }

class Lowering {
 public:
  Lowering(const Network& network, const Weights& weights, Isa isa, GemmPath path) : network_(network), weights_(weights), isa_(isa), path_(path) {
    program_.network = &network;
  }

  Program run() {
    hidden_ = buffer("hidden", network_.hidden_size, kF32Only);
    sum_ = buffer("branch", network_.hidden_size, kF32Only);
    normed_ = buffer("normed", network_.hidden_size, kF32Only);
    Op embed{.kind = OpKind::kEmbed, .out = hidden_, .multiplier = network_.embedding_multiplier};
    if (network_.embedding_norm) embed.norm = &*network_.embedding_norm;
    add(std::move(embed));
    for (std::size_t i = 0; i < network_.layers.size(); ++i) layer(static_cast<int32_t>(i), network_.layers[i]);
    head();
    return std::move(program_);
  }

 private:
  BufferId buffer(const std::string& name, int64_t width, ActivationForms forms, bool output_rows = false) {
    auto& buffers = program_.buffers;
    if (output_rows) forms.prompt = forms.fast;  // what comes of a row is multiplied in one way, whosever it is
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      if (buffers[i].name != name || buffers[i].output_rows != output_rows) continue;
      buffers[i].width = std::max(buffers[i].width, width);
      buffers[i].forms = buffers[i].forms | forms;
      if (buffers[i].width == width) return static_cast<BufferId>(i);
    }
    // Layers of different widths (gemma 3n, pruned networks) get buffers of their own: activations are dense rows of one width.
    buffers.push_back({name, width, forms, output_rows});
    return static_cast<BufferId>(buffers.size() - 1);
  }

  Op& add(Op op) {
    op.layer = layer_;
    program_.ops.push_back(std::move(op));
    return program_.ops.back();
  }

  ActivationForms forms_of(std::initializer_list<const Linear*> linears) const {
    ActivationForms forms;
    for (const Linear* linear : linears) {
      const WeightClass weight_class = weights_[weights_.id_of(*linear)].weight_class();
      const GemmPath prompt_path = path_ == GemmPath::kFast ? GemmPath::kPrompt : path_;
      forms = forms | ActivationForms{bit(activation_form(weight_class, isa_, path_)), bit(activation_form(weight_class, isa_, prompt_path))};
    }
    return forms;
  }

  LinearSegment segment(const Linear& linear, int64_t column) const { return {weights_.id_of(linear), column, linear.bias}; }

  // norm (if any) and conversion of `in` for the consumers; returns the buffer that they read.
  BufferId normed_input(const std::optional<Norm>& norm, BufferId in, const std::string& name, ActivationForms forms, bool output_rows = false) {
    const BufferId converted = buffer(name, network_.hidden_size, forms, output_rows);
    if (norm) {
      const BufferId temporary = output_rows ? buffer("normed", network_.hidden_size, kF32Only, true) : normed_;
      add({.kind = OpKind::kNorm, .in = in, .out = temporary, .norm = &*norm});
      in = temporary;
    }
    add({.kind = OpKind::kConvert, .in = in, .out = converted});
    return converted;
  }

  void add_branch(const std::optional<Norm>& post_norm, float multiplier) {
    if (post_norm) add({.kind = OpKind::kNorm, .in = sum_, .out = sum_, .norm = &*post_norm});
    add({.kind = OpKind::kAdd, .in = sum_, .residual = hidden_, .multiplier = multiplier});
  }

  void layer(int32_t index, const DecoderLayer& layer) {
    layer_ = index;
    const AttentionLayer& attention = layer.attention;
    const MlpLayer& mlp = layer.mlp;
    const auto attention_forms = forms_of({&attention.q, &attention.k, &attention.v});
    const auto mlp_forms = mlp.gated ? forms_of({&mlp.gate, &mlp.up}) : forms_of({&mlp.up});
    if (layer.parallel_residual) {
      // Both branches read the same hidden state, so both inputs are made before either branch adds to it.
      const ActivationForms shared = layer.shared_norm ? mlp_forms : ActivationForms{};
      const BufferId attention_in = normed_input(attention.norm, hidden_, "attention input", attention_forms | shared);
      const BufferId mlp_in = layer.shared_norm ? attention_in : normed_input(mlp.norm, hidden_, "mlp input", mlp_forms);
      attention_branch(attention, attention_in);
      add_branch(attention.post_norm, layer.residual_multiplier);
      mlp_branch(mlp, mlp_in);
      add_branch(mlp.post_norm, layer.residual_multiplier);
    } else {
      attention_branch(attention, normed_input(attention.norm, hidden_, "attention input", attention_forms));
      add_branch(attention.post_norm, layer.residual_multiplier);
      mlp_branch(mlp, normed_input(mlp.norm, hidden_, "mlp input", mlp_forms));
      add_branch(mlp.post_norm, layer.residual_multiplier);
    }
  }

  void attention_branch(const AttentionLayer& attention, BufferId in) {
    const int64_t q_size = attention.num_heads * attention.head_dim, kv_size = attention.num_kv_heads * attention.head_dim;
    const int64_t k_column = round_up(q_size, kPanelRows), v_column = k_column + round_up(kv_size, kPanelRows);
    const BufferId qkv = buffer("qkv", v_column + round_up(kv_size, kPanelRows), kF32Only);
    add({.kind = OpKind::kLinear, .in = in, .out = qkv,
         .segments = {segment(attention.q, 0), segment(attention.k, k_column), segment(attention.v, v_column)}});
    Op position{.kind = OpKind::kPosition, .out = qkv, .attention = &attention, .k_column = k_column, .v_column = v_column};
    kv_group(attention, position);
    if (attention.q_norm || attention.k_norm) {
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
    const BufferId converted = buffer("attention output", q_size, forms_of({&attention.o}));
    add({.kind = OpKind::kAttention, .in = qkv, .out = attended, .attention = &attention, .kv_group = position.kv_group, .kv_layer = position.kv_layer});
    add({.kind = OpKind::kConvert, .in = attended, .out = converted});
    add({.kind = OpKind::kLinear, .in = converted, .out = sum_, .segments = {segment(attention.o, 0)}});
  }

  void mlp_branch(const MlpLayer& mlp, BufferId in) {
    const int64_t size = mlp.up.weight.rows(), padded = round_up(size, kPanelRows);
    const BufferId projected = buffer("mlp projections", mlp.gated ? 2 * padded : padded, kF32Only);
    std::vector<LinearSegment> segments;
    if (mlp.gated) {
      segments = {segment(mlp.gate, 0), segment(mlp.up, padded)};
    } else {
      segments = {segment(mlp.up, 0)};
    }
    add({.kind = OpKind::kLinear, .in = in, .out = projected, .segments = std::move(segments)});
    const BufferId activated = buffer("mlp activated", size, kF32Only);
    add({.kind = OpKind::kActivate, .in = projected, .out = activated, .activation = mlp.activation, .gated = mlp.gated});
    const BufferId converted = buffer("mlp output", size, forms_of({&mlp.down}));
    add({.kind = OpKind::kConvert, .in = activated, .out = converted});
    add({.kind = OpKind::kLinear, .in = converted, .out = sum_, .segments = {segment(mlp.down, 0)}});
  }

  void head() {
    layer_ = -1;
    const BufferId rows = buffer("output hidden", network_.hidden_size, kF32Only, true);
    add({.kind = OpKind::kGather, .in = hidden_, .out = rows});
    const BufferId in = normed_input(network_.final_norm, rows, "head input", forms_of({&network_.head}), true);
    program_.logits = buffer("logits", round_up(network_.vocab_size, kPanelRows), kF32Only, true);
    add({.kind = OpKind::kLinear, .in = in, .out = program_.logits, .segments = {segment(network_.head, 0)}, .softcap = network_.logits_softcap,
         .scale = network_.logits_multiplier});
    add({.kind = OpKind::kSample, .in = program_.logits});
  }

  // Layers with one geometry and one window share a KV group (docs/design.md D6).
  void kv_group(const AttentionLayer& attention, Op& op) {
    auto& groups = program_.kv_groups;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      if (groups[g].num_kv_heads == attention.num_kv_heads && groups[g].head_dim == attention.head_dim && groups[g].window == attention.window) {
        op.kv_group = static_cast<int32_t>(g);
        op.kv_layer = static_cast<int32_t>(groups[g].num_layers++);
        return;
      }
    }
    groups.push_back({1, attention.num_kv_heads, attention.head_dim, attention.window, 0});
    op.kv_group = static_cast<int32_t>(groups.size() - 1);
    op.kv_layer = 0;
  }

  int32_t rope_table(const Rope& rope) {
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

  const Network& network_;
  const Weights& weights_;
  Isa isa_;
  GemmPath path_;
  Program program_;
  int32_t layer_ = -1;
  BufferId hidden_ = -1, sum_ = -1, normed_ = -1;
};

}  // namespace

std::string_view op_name(OpKind kind) {
  switch (kind) {
    case OpKind::kEmbed: return "embed";
    case OpKind::kNorm: return "norm";
    case OpKind::kConvert: return "convert";
    case OpKind::kLinear: return "linear";
    case OpKind::kPosition: return "position";
    case OpKind::kAttention: return "attention";
    case OpKind::kActivate: return "activate";
    case OpKind::kAdd: return "add";
    case OpKind::kGather: return "gather";
    case OpKind::kSample: return "sample";
  }
  return "unknown";
}

Program lower_network(const Network& network, const Weights& weights, Isa isa, GemmPath path) { return Lowering(network, weights, isa, path).run(); }

}  // namespace millrace
