#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "millrace/base/round_up.h"
#include "millrace/model/program.h"

namespace millrace {

// Makes a network's program: lower.cc the layers in their order and what comes before and after them, lower_attention.cc, lower_mixture.cc
// and lower_state.cc the branches of a layer, lowering.cc what all of these share: buffers, and the forms in which matrices want their
// input.
class Lowering {
 public:
  Lowering(const Network& network, const Weights& weights, Isa isa, GemmPath path)
      : network_(network), weights_(weights), isa_(isa), path_(path) {
    program_.network = &network;
  }

  Program run();
  // Of an encoder, for the decoder that reads it.
  Program run_for(const Network& decoder);

 private:
  // A matrix that reads a buffer. exact: on the exact path, whatever the program's.
  struct Reader {
    const Linear* linear;
    bool exact = false;
  };
  // What linears read: one buffer for all but where their columns are in different orders (GPTQ's act-order).
  struct Input {
    const Linear* linear;
    BufferId buffer;
  };
  using Inputs = std::vector<Input>;
  struct Placed {
    const Linear* linear;
    int64_t column;  // of the output where its first row goes
  };

  // lower.cc
  void stack();
  void layer(int32_t index, const DecoderLayer& layer);
  template <class Part>
  void add_branch(const Part& part, float multiplier) {
    if (part.post_norm) add({.kind = OpKind::kNorm, .in = sum_, .out = sum_, .norm = &*part.post_norm});
    add({.kind = OpKind::kAdd, .in = sum_, .residual = hidden_, .multiplier = multiplier});
    if (part.sum_norm) add({.kind = OpKind::kNorm, .in = hidden_, .out = hidden_, .norm = &*part.sum_norm});
  }
  void head();
  void pooled_head(const PooledHead& head);
  BufferId normed_rows(const Norm& norm, BufferId in, const std::string& name, int64_t size);

  // lower_attention.cc
  // Everything that reads the attention's input.
  static std::vector<Reader> readers_of(const AttentionLayer& attention);
  void attention_branch(const AttentionLayer& attention, const Inputs& in);
  void latent_qkv(const AttentionLayer& attention, const Inputs& in, BufferId qkv, int64_t k_column, int64_t v_column);
  // A norm of a vector narrower than the hidden state, and what reads it.
  Inputs normed_latent(const Norm& norm, BufferId in, const std::string& name, const std::vector<Reader>& readers);
  void cross_branch(const AttentionLayer& cross, const Inputs& in);
  // What the decoder's layers read of the last hidden states, layer by layer.
  void cross_keys(const Network& decoder);
  // Layers with one geometry and one window share a KV group (docs/design.md D6). Of layers that look both ways nothing is kept: they take
  // turns with the memory of one. What an encoder leaves to a decoder is kept, in groups of its own.
  void kv_group(const AttentionLayer& attention, Op& op);
  int32_t rope_table(const Rope& rope);

  // lower_mixture.cc
  template <class Part>
  static std::vector<Reader> up_readers(const MlpLayer& mlp, const Part& part) {
    return mlp.gated ? std::vector<Reader>{{&part.gate}, {&part.up}} : std::vector<Reader>{{&part.up}};
  }
  // Everything that reads the mlp's input before it is dealt out to experts.
  std::vector<Reader> readers_of(const MlpLayer& mlp) const;
  // Whether experts want columns of their input in orders of their own. Then they take its f32 rows, which the router has anyway, and these
  // are gathered and converted where they lie expert by expert.
  bool has_orders(const MlpLayer& mlp) const;
  void mlp_branch(const MlpLayer& mlp, const Inputs& in);
  // The same chain of operations for one mlp over all rows and for many experts, each over its own rows.
  template <class Part>
  void experts(const MlpLayer& mlp, std::span<const Part> parts, const Inputs& in, BufferId out, const std::string& name,
               const Mixture* mixture);
  // The router stays on the exact path: a rounded logit would choose another expert, which is no small error.
  void mixture(const MlpLayer& mlp, const Mixture& mixture, const Inputs& in);

  // lower_state.cc
  template <class Layer>
  void state_branch(const Layer& layer, float multiplier);
  BufferId state_result(const ShortConvolution& layer, BufferId projected);
  BufferId state_result(const StateSpace& space, BufferId projected);
  // The states of all layers lie in the blocks of one group.
  void add_state(Op op, StateOperands state);

  // lowering.cc
  BufferId buffer(const std::string& name, int64_t width, ActivationForms forms, bool output_rows = false, int64_t rows_per_token = 1);
  Op& add(Op op);
  const PackedMatrix& matrix(const Linear& linear) const { return weights_[weights_.id_of(linear)]; }
  LinearSegment segment(const Linear& linear, int64_t column) const { return {weights_.id_of(linear), column, linear.bias}; }
  ActivationForms forms_of(const Reader& reader) const;
  static bool same_columns(const std::vector<int32_t>* a, const std::vector<int32_t>* b);
  // `in`, f32 rows, in the forms and orders of columns that its readers want.
  Inputs converted_input(BufferId in, const std::string& name, const std::vector<Reader>& readers);
  // The same after a norm, if there is one.
  Inputs normed_input(const std::optional<Norm>& norm, BufferId in, const std::string& name, const std::vector<Reader>& readers,
                      bool output_rows = false);
  // `in`, f32 rows of experts, for matrices of which each expert has one; `roles`: those of gate and up, or of down. Roles that agree in
  // every expert's order of columns share a buffer.
  Inputs expert_input(BufferId in, const std::string& name, const std::vector<std::vector<Reader>>& roles);
  // What linears on the exact path read: the rows as they are, but where an order of columns is wanted.
  Inputs exact_input(BufferId in, const std::string& name, const std::vector<const Linear*>& linears);
  static BufferId input_of(const Inputs& inputs, const Linear& linear);
  // Operations like `like`, one for all linears that read the same buffer.
  void add_linears(const Inputs& inputs, const std::vector<Placed>& linears, const Op& like);

  const Network& network_;
  const Weights& weights_;
  Isa isa_;
  GemmPath path_;
  Program program_;
  int32_t layer_ = -1;
  BufferId hidden_ = -1, sum_ = -1, normed_ = -1;
};

}  // namespace millrace
