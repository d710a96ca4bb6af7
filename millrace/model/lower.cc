#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "millrace/base/round_up.h"
#include "millrace/model/program.h"

namespace millrace {
namespace {

constexpr uint8_t bit(ActivationForm form) { return static_cast<uint8_t>(form); }

class Lowering {
 public:
  Lowering(const Network& network, const Weights& weights, Isa isa, GemmPath path)
      : network_(network), weights_(weights), isa_(isa), path_(path) {
    program_.network = &network;
  }

  Program run() {
    stack();
    if (network_.pooled) {
      pooled_head(*network_.pooled);
    } else {
      head();
    }
    return std::move(program_);
  }

  // Of an encoder, for the decoder that reads it.
  Program run_for(const Network& decoder) {
    stack();
    cross_keys(decoder);
    return std::move(program_);
  }

 private:
  void stack() {
    hidden_ = buffer("hidden", network_.hidden_size, kF32Only);
    sum_ = buffer("branch", network_.hidden_size, kF32Only);
    normed_ = buffer("normed", network_.hidden_size, kF32Only);
    Op embed{.kind = OpKind::kEmbed, .out = hidden_, .multiplier = network_.embedding_multiplier};
    if (network_.embedding_norm) embed.norm = &*network_.embedding_norm;
    add(std::move(embed));
    for (std::size_t i = 0; i < network_.layers.size(); ++i) layer(static_cast<int32_t>(i), network_.layers[i]);
  }

  BufferId buffer(const std::string& name, int64_t width, ActivationForms forms, bool output_rows = false, int64_t rows_per_token = 1) {
    auto& buffers = program_.buffers;
    if (output_rows) forms.prompt = forms.fast;  // what comes of a row is multiplied in one way, whosever it is
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      if (buffers[i].name != name || buffers[i].output_rows != output_rows || buffers[i].rows_per_token != rows_per_token) continue;
      buffers[i].width = std::max(buffers[i].width, width);
      buffers[i].forms = buffers[i].forms | forms;
      if (buffers[i].width == width) return static_cast<BufferId>(i);
    }
    // Layers of different widths (gemma 3n, pruned networks) get buffers of their own: activations are dense rows of one width.
    buffers.push_back({name, width, forms, output_rows, rows_per_token});
    return static_cast<BufferId>(buffers.size() - 1);
  }

  Op& add(Op op) {
    op.layer = layer_;
    program_.ops.push_back(std::move(op));
    return program_.ops.back();
  }

  const PackedMatrix& matrix(const Linear& linear) const { return weights_[weights_.id_of(linear)]; }

  // A matrix that reads a buffer. exact: on the exact path, whatever the program's.
  struct Reader {
    const Linear* linear;
    bool exact = false;
  };

  ActivationForms forms_of(const Reader& reader) const {
    if (reader.exact) return kF32Only;
    const WeightClass weight_class = matrix(*reader.linear).weight_class();
    const GemmPath prompt_path = path_ == GemmPath::kFast ? GemmPath::kPrompt : path_;
    return {bit(activation_form(weight_class, isa_, path_)), bit(activation_form(weight_class, isa_, prompt_path))};
  }

  template <class Part>
  static std::vector<Reader> up_readers(const MlpLayer& mlp, const Part& part) {
    return mlp.gated ? std::vector<Reader>{{&part.gate}, {&part.up}} : std::vector<Reader>{{&part.up}};
  }

  // Everything that reads the attention's input.
  static std::vector<Reader> readers_of(const AttentionLayer& attention) {
    if (!attention.latent) return {{&attention.q}, {&attention.k}, {&attention.v}};
    const LatentAttention& latent = *attention.latent;
    return {{latent.q_down ? &*latent.q_down : &attention.q}, {&latent.kv_down}, {&latent.k_rope}};
  }

  // Whether experts want columns of their input in orders of their own. Then they take its f32 rows, which the router has anyway, and these
  // are gathered and converted where they lie expert by expert.
  bool has_orders(const MlpLayer& mlp) const {
    return std::any_of(mlp.mixture->experts.begin(), mlp.mixture->experts.end(), [&](const Expert& expert) {
      const std::vector<Reader> readers = up_readers(mlp, expert);
      return std::any_of(readers.begin(), readers.end(), [&](const Reader& reader) { return matrix(*reader.linear).columns() != nullptr; });
    });
  }

  // Everything that reads the mlp's input before it is dealt out to experts.
  std::vector<Reader> readers_of(const MlpLayer& mlp) const {
    if (!mlp.mixture) return up_readers(mlp, mlp);
    const Mixture& mixture = *mlp.mixture;
    std::vector<Reader> readers = {{&mixture.router, true}};
    const auto append = [&](const std::vector<Reader>& more) { readers.insert(readers.end(), more.begin(), more.end()); };
    if (mixture.shared_gate) append({{&*mixture.shared_gate, true}});
    if (!has_orders(mlp)) {
      for (const Expert& expert : mixture.experts) append(up_readers(mlp, expert));
    }
    if (mixture.shared) append(up_readers(mlp, *mixture.shared));
    return readers;
  }

  LinearSegment segment(const Linear& linear, int64_t column) const { return {weights_.id_of(linear), column, linear.bias}; }

  // What linears read: one buffer for all but where their columns are in different orders (GPTQ's act-order).
  struct Input {
    const Linear* linear;
    BufferId buffer;
  };
  using Inputs = std::vector<Input>;

  static bool same_columns(const std::vector<int32_t>* a, const std::vector<int32_t>* b) {
    return a == b || (a != nullptr && b != nullptr && *a == *b);
  }

  // `in`, f32 rows, in the forms and orders of columns that its readers want.
  Inputs converted_input(BufferId in, const std::string& name, const std::vector<Reader>& readers) {
    Inputs inputs;
    int orders = 0;
    for (const Reader& reader : readers) {
      const std::vector<int32_t>* columns = matrix(*reader.linear).columns();
      const auto alike = [&](const auto& other) { return same_columns(columns, matrix(*other.linear).columns()); };
      if (const auto known = std::find_if(inputs.begin(), inputs.end(), alike); known != inputs.end()) {
        const BufferId shared = known->buffer;
        inputs.push_back({reader.linear, shared});
        continue;
      }
      ActivationForms forms;
      for (const Reader& other : readers) {
        if (alike(other)) forms = forms | forms_of(other);
      }
      ++orders;
      const Buffer from = program_.buffers[static_cast<std::size_t>(in)];
      const BufferId out = buffer(orders == 1 ? name : name + " in order " + std::to_string(orders), from.width, forms, from.output_rows,
                                  from.rows_per_token);
      add({.kind = OpKind::kConvert, .in = in, .out = out, .columns = columns});
      inputs.push_back({reader.linear, out});
    }
    return inputs;
  }

  // `in`, f32 rows of experts, for matrices of which each expert has one; `roles`: those of gate and up, or of down. Roles that agree in
  // every expert's order of columns share a buffer.
  Inputs expert_input(BufferId in, const std::string& name, const std::vector<std::vector<Reader>>& roles) {
    using Orders = std::vector<const std::vector<int32_t>*>;
    const auto orders_of = [&](const std::vector<Reader>& role) {
      Orders orders;
      for (const Reader& reader : role) orders.push_back(matrix(*reader.linear).columns());
      return orders;
    };
    const auto alike = [&](const Orders& a, const Orders& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end(), same_columns); };
    Inputs inputs;
    std::vector<std::pair<Orders, BufferId>> made;
    for (const std::vector<Reader>& role : roles) {
      Orders orders = orders_of(role);
      auto known = std::find_if(made.begin(), made.end(), [&](const auto& other) { return alike(orders, other.first); });
      if (known == made.end()) {
        ActivationForms forms;
        for (const std::vector<Reader>& other : roles) {
          if (!alike(orders, orders_of(other))) continue;
          for (const Reader& reader : other) forms = forms | forms_of(reader);
        }
        const Buffer from = program_.buffers[static_cast<std::size_t>(in)];
        const BufferId out = buffer(made.empty() ? name : name + " in order " + std::to_string(made.size() + 1), from.width, forms, false,
                                    from.rows_per_token);
        const bool gathers = std::any_of(orders.begin(), orders.end(), [](const auto* columns) { return columns != nullptr; });
        add({.kind = OpKind::kConvert, .in = in, .out = out, .expert_columns = gathers ? orders : Orders()});
        made.emplace_back(std::move(orders), out);
        known = made.end() - 1;
      }
      for (const Reader& reader : role) inputs.push_back({reader.linear, known->second});
    }
    return inputs;
  }

  // The same after a norm, if there is one.
  Inputs normed_input(const std::optional<Norm>& norm, BufferId in, const std::string& name, const std::vector<Reader>& readers,
                      bool output_rows = false) {
    if (norm) {
      const BufferId temporary = output_rows ? buffer("normed", network_.hidden_size, kF32Only, true) : normed_;
      add({.kind = OpKind::kNorm, .in = in, .out = temporary, .norm = &*norm});
      in = temporary;
    }
    return converted_input(in, name, readers);
  }

  static BufferId input_of(const Inputs& inputs, const Linear& linear) {
    const auto input = std::find_if(inputs.begin(), inputs.end(), [&](const Input& candidate) { return candidate.linear == &linear; });
    MR_CHECK(input != inputs.end(), "every matrix has its input made first");
    return input->buffer;
  }

  struct Placed {
    const Linear* linear;
    int64_t column;  // of the output where its first row goes
  };

  // Operations like `like`, one for all linears that read the same buffer.
  void add_linears(const Inputs& inputs, const std::vector<Placed>& linears, const Op& like) {
    std::vector<Op> ops;
    for (const Placed& placed : linears) {
      const BufferId in = input_of(inputs, *placed.linear);
      auto op = std::find_if(ops.begin(), ops.end(), [&](const Op& other) { return other.in == in; });
      if (op == ops.end()) {
        op = ops.insert(ops.end(), like);
        op->in = in;
      }
      op->segments.push_back(segment(*placed.linear, placed.column));
    }
    for (Op& op : ops) add(std::move(op));
  }

  template <class Part>
  void add_branch(const Part& part, float multiplier) {
    if (part.post_norm) add({.kind = OpKind::kNorm, .in = sum_, .out = sum_, .norm = &*part.post_norm});
    add({.kind = OpKind::kAdd, .in = sum_, .residual = hidden_, .multiplier = multiplier});
    if (part.sum_norm) add({.kind = OpKind::kNorm, .in = hidden_, .out = hidden_, .norm = &*part.sum_norm});
  }

  void layer(int32_t index, const DecoderLayer& layer) {
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

  void attention_branch(const AttentionLayer& attention, const Inputs& in) {
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
    add_linears(converted_input(attended, "attention output", {{&attention.o}}), {{&attention.o, 0}},
                {.kind = OpKind::kLinear, .out = sum_});
  }

  template <class Layer>
  void state_branch(const Layer& layer, float multiplier) {
    const Inputs in = normed_input(layer.norm, hidden_, "attention input", {{&layer.in}});
    const BufferId projected = buffer("state projections", layer.in.weight.rows(), kF32Only);
    add_linears(in, {{&layer.in, 0}}, {.kind = OpKind::kLinear, .out = projected});
    const BufferId result = state_result(layer, projected);
    add_linears(converted_input(result, "state output", {{&layer.out}}), {{&layer.out, 0}}, {.kind = OpKind::kLinear, .out = sum_});
    add_branch(layer, multiplier);
  }

  BufferId state_result(const ShortConvolution& layer, BufferId projected) {
    const int64_t channels = layer.convolution.num_channels;
    const BufferId convolved = buffer("convolved", channels, kF32Only);
    StateOperands state{.convolution = &layer.convolution, .x = {projected, 2 * channels}};
    state.before = {projected, 0};
    state.after = {projected, channels};
    add_state({.kind = OpKind::kConvolve, .in = projected, .out = convolved}, state);
    return convolved;
  }

  BufferId state_result(const StateSpace& space, BufferId projected) {
    const int64_t channels = space.num_channels, of_states = space.num_groups * space.num_states;
    const BufferId convolved = buffer("convolved", space.convolution.num_channels, kF32Only);
    StateOperands convolution{.convolution = &space.convolution, .x = {projected, space.x_column}};
    convolution.silu = true;
    add_state({.kind = OpKind::kConvolve, .in = projected, .out = convolved}, convolution);
    StateOperands scan{.space = &space, .x = {convolved, 0}};
    scan.gate = {projected, space.gate_column};
    if (const auto& selection = space.selection) {
      // Small, and its errors would add up in the state: on the exact path, as routers are.
      const Inputs in = exact_input(convolved, "selection input", {&selection->dt_down, &selection->b_c});
      const BufferId low = buffer("step width latent", selection->dt_down.weight.rows(), kF32Only),
                     b_c = buffer("b and c", 2 * of_states, kF32Only), dt = buffer("step widths", channels, kF32Only);
      add_linears(in, {{&selection->dt_down, 0}}, {.kind = OpKind::kLinear, .out = low, .exact = true});
      add_linears(in, {{&selection->b_c, 0}}, {.kind = OpKind::kLinear, .out = b_c, .exact = true});
      if (selection->norm) {
        add({.kind = OpKind::kNorm, .in = low, .out = low, .norm = &*selection->norm});
        add({.kind = OpKind::kNorm, .in = b_c, .out = b_c, .norm_groups = 2, .norm = &*selection->norm});
      }
      add_linears(exact_input(low, "step width input", {&selection->dt_up}), {{&selection->dt_up, 0}},
                  {.kind = OpKind::kLinear, .out = dt, .exact = true});
      scan.dt = {dt, 0};
      scan.b = {b_c, 0};
      scan.c = {b_c, of_states};
    } else {
      scan.dt = {projected, space.dt_column};
      scan.b = {convolved, channels};
      scan.c = {convolved, channels + of_states};
    }
    const BufferId scanned = buffer("scanned", channels, kF32Only);
    add_state({.kind = OpKind::kScan, .in = convolved, .out = scanned}, scan);
    if (!space.gated_norm) return scanned;
    const BufferId normed = buffer("scanned normed", channels, kF32Only);
    add({.kind = OpKind::kNorm, .in = scanned, .out = normed, .norm_groups = space.num_groups, .norm = &*space.gated_norm});
    return normed;
  }

  // What linears on the exact path read: the rows as they are, but where an order of columns is wanted.
  Inputs exact_input(BufferId in, const std::string& name, const std::vector<const Linear*>& linears) {
    std::vector<Reader> readers;
    Inputs inputs;
    for (const Linear* linear : linears) {
      readers.push_back({linear, true});
      if (matrix(*linear).columns() == nullptr) inputs.push_back({linear, in});
    }
    return inputs.size() == linears.size() ? inputs : converted_input(in, name, readers);
  }

  // The states of all layers lie in the blocks of one group.
  void add_state(Op op, StateOperands state) {
    auto& groups = program_.kv_groups;
    auto group = std::find_if(groups.begin(), groups.end(), [](const KvGroupSpec& known) { return known.state_floats > 0; });
    if (group == groups.end()) group = groups.insert(groups.end(), KvGroupSpec{.window = 1});
    state.state_offset = group->state_floats;
    constexpr int64_t kLineFloats = 16;
    group->state_floats += std::max(kLineFloats, round_up(state.state_floats(), kLineFloats));
    if (state.space == nullptr) ++group->num_layers;  // each has one convolution
    op.kv_group = static_cast<int32_t>(group - groups.begin());
    op.state = state;
    add(std::move(op));
  }

  void cross_branch(const AttentionLayer& cross, const Inputs& in) {
    const int64_t q_size = cross.num_heads * cross.head_dim;
    const BufferId q = buffer("cross q", round_up(q_size, kPanelRows), kF32Only), attended = buffer("attended", q_size, kF32Only);
    add_linears(in, {{&cross.q, 0}}, {.kind = OpKind::kLinear, .out = q});
    Op attention{.kind = OpKind::kAttention, .in = q, .out = attended, .attention = &cross};
    kv_group(cross, attention);
    add(std::move(attention));
    add_linears(converted_input(attended, "attention output", {{&cross.o}}), {{&cross.o, 0}}, {.kind = OpKind::kLinear, .out = sum_});
  }

  // What the decoder's layers read of the last hidden states, layer by layer.
  void cross_keys(const Network& decoder) {
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

  // A norm of a vector narrower than the hidden state, and what reads it.
  Inputs normed_latent(const Norm& norm, BufferId in, const std::string& name, const std::vector<Reader>& readers) {
    const BufferId normed = buffer(name + " normed", program_.buffers[static_cast<std::size_t>(in)].width, kF32Only);
    add({.kind = OpKind::kNorm, .in = in, .out = normed, .norm = &norm});
    return converted_input(normed, name + " input", readers);
  }

  void latent_qkv(const AttentionLayer& attention, const Inputs& in, BufferId qkv, int64_t k_column, int64_t v_column) {
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

  void mlp_branch(const MlpLayer& mlp, const Inputs& in) {
    if (mlp.mixture) {
      mixture(mlp, *mlp.mixture, in);
    } else {
      experts(mlp, std::span(&mlp, 1), in, sum_, "mlp", nullptr);
    }
  }

  // The same chain of operations for one mlp over all rows and for many experts, each over its own rows.
  template <class Part>
  void experts(const MlpLayer& mlp, std::span<const Part> parts, const Inputs& in, BufferId out, const std::string& name,
               const Mixture* mixture) {
    const int64_t size = parts[0].up.weight.rows(), padded = round_up(size, kPanelRows);
    const int64_t rows_per_token = mixture != nullptr ? mixture->rule.experts_per_token : 1;
    std::vector<Placed> up, down;
    std::vector<Reader> down_readers;
    for (const Part& part : parts) {
      if (mlp.gated) up.push_back({&part.gate, 0});
      up.push_back({&part.up, mlp.gated ? padded : 0});
      down.push_back({&part.down, 0});
      down_readers.push_back({&part.down});
    }
    const BufferId projected = buffer(name + " projections", mlp.gated ? 2 * padded : padded, kF32Only, false, rows_per_token);
    add_linears(in, up, {.kind = OpKind::kLinear, .out = projected, .mixture = mixture});
    const BufferId activated = buffer(name + " activated", size, kF32Only, false, rows_per_token);
    add({.kind = OpKind::kActivate,
         .in = projected,
         .out = activated,
         .activation = mlp.activation,
         .gated = mlp.gated,
         .gate_limit = mlp.gate_limit});
    const Inputs down_in = mixture != nullptr ? expert_input(activated, name + " output", {down_readers})
                                              : converted_input(activated, name + " output", down_readers);
    add_linears(down_in, down, {.kind = OpKind::kLinear, .out = out, .mixture = mixture});
  }

  // The router stays on the exact path: a rounded logit would choose another expert, which is no small error.
  void mixture(const MlpLayer& mlp, const Mixture& mixture, const Inputs& in) {
    const int64_t hidden = network_.hidden_size, gate_column = round_up(mixture.rule.num_experts, kPanelRows);
    const int64_t rows_per_token = mixture.rule.experts_per_token;
    const BufferId logits = buffer("router logits", gate_column + (mixture.shared_gate ? kPanelRows : 0), kF32Only);
    std::vector<Placed> router = {{&mixture.router, 0}};
    if (mixture.shared_gate) router.push_back({&*mixture.shared_gate, gate_column});
    add_linears(in, router, {.kind = OpKind::kLinear, .out = logits, .exact = true});
    Op combine{.kind = OpKind::kCombine, .out = sum_, .mixture = &mixture};
    if (mixture.shared) {
      combine.shared = buffer("shared expert", hidden, kF32Only);
      if (mixture.shared_gate) combine.shared_gate = logits, combine.shared_gate_column = gate_column;
      experts(mlp, std::span(&*mixture.shared, 1), in, combine.shared, "shared expert", nullptr);
    }
    add({.kind = OpKind::kRoute, .in = logits, .mixture = &mixture});
    std::vector<std::vector<Reader>> roles(mlp.gated ? 2 : 1);
    for (const Expert& expert : mixture.experts) {
      const std::vector<Reader> readers = up_readers(mlp, expert);
      for (std::size_t i = 0; i < readers.size(); ++i) roles[i].push_back(readers[i]);
    }
    const bool ordered = has_orders(mlp);
    ActivationForms forms = kF32Only;
    if (!ordered) {
      forms = {};
      for (const auto& role : roles) {
        for (const Reader& reader : role) forms = forms | forms_of(reader);
      }
    }
    const BufferId dispatched = buffer(ordered ? "experts rows" : "experts input", hidden, forms, false, rows_per_token);
    // The router's columns are as they are: binding sees to it.
    add({.kind = OpKind::kDispatch, .in = input_of(in, mixture.router), .out = dispatched, .mixture = &mixture});
    Inputs experts_in;
    if (ordered) {
      experts_in = expert_input(dispatched, "experts input", roles);
    } else {
      for (const auto& role : roles) {
        for (const Reader& reader : role) experts_in.push_back({reader.linear, dispatched});
      }
    }
    combine.in = buffer("experts sum", hidden, kF32Only, false, rows_per_token);
    experts(mlp, std::span(mixture.experts), experts_in, combine.in, "experts", &mixture);
    add(std::move(combine));
  }

  void head() {
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

  void pooled_head(const PooledHead& head) {
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

  BufferId normed_rows(const Norm& norm, BufferId in, const std::string& name, int64_t size) {
    const BufferId out = buffer(name, size, kF32Only, true);
    add({.kind = OpKind::kNorm, .in = in, .out = out, .norm = &norm});
    return out;
  }

  // Layers with one geometry and one window share a KV group (docs/design.md D6). Of layers that look both ways nothing is kept: they take
  // turns with the memory of one. What an encoder leaves to a decoder is kept, in groups of its own.
  void kv_group(const AttentionLayer& attention, Op& op) {
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
