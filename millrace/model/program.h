#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "millrace/base/thread_pool.h"
#include "millrace/kernels/gemm.h"
#include "millrace/model/network.h"
#include "millrace/model/step_plan.h"

// What a network lowers to (docs/design.md D2): a flat list of coarse operations on numbered buffers and weights. The lowering
// (lower.cc) writes one operation a thought; the fusion pass (fuse.cc) merges neighbours by setting more fields of one
// operation, so a fused operation is the same kind doing more, and every family goes through the same pass.
namespace millrace {

using BufferId = int32_t;
using WeightId = int32_t;

// Rows of activations. f32 rows, and the forms that consumers want, live side by side (kernels/gemm.h).
// What the readers of a buffer want its rows as: ActivationForm bits. A prompt's rows may be multiplied otherwise (GemmPath::kPrompt).
struct ActivationForms {
  uint8_t fast = 0, prompt = 0;
  uint8_t any() const { return fast | prompt; }
  ActivationForms operator|(ActivationForms other) const {
    return {static_cast<uint8_t>(fast | other.fast), static_cast<uint8_t>(prompt | other.prompt)};
  }
  bool operator==(const ActivationForms&) const = default;
};
inline constexpr ActivationForms kF32Only{static_cast<uint8_t>(ActivationForm::kF32), static_cast<uint8_t>(ActivationForm::kF32)};

struct Buffer {
  std::string name;
  int64_t width = 0;
  ActivationForms forms;
  bool output_rows = false;    // one row per output of the step instead of one per token
  int64_t rows_per_token = 1;  // more: one for each expert of a token, all tokens' rows sorted by expert
};

enum class OpKind : uint8_t {
  kEmbed,    // tokens -> out: embedding row * multiplier + learned position, optional norm; also fills the step's rope tables
  kNorm,     // out = norm(in) in out's forms;  with residual: residual += multiplier * norm(in)
  kConvert,  // in (f32) -> out in out's forms
  kLinear,   // out = in * weights + bias;  with activation: out = act(gate) * up or act(up);  with residual: residual += multiplier * (...)
  kRoute,    // in (the router's logits) -> which experts each token takes, and their weights
  kDispatch,   // out[row of a token and expert] = in[token], rows sorted by expert
  kCombine,    // out = sum over a token's experts of weight * in, + shared * sigmoid(shared gate);  with residual: residual += multiplier *
               // (...)
  kExpand,     // in (keys and values without rope) and shared (the rope part of all heads' keys) -> the k and v columns of out
  kHeadsNorm,  // on the q and k columns of out: the norm over all heads of a token
  kPosition,   // on the q, k, v columns of out: q/k norm, rope, kv write (each a flag)
  kAttention,  // in (q columns) -> out
  kConvolve,   // x (state) -> out: after * convolution(before * x), or silu(convolution(x)); reads and writes the sequence's state
  kScan,       // x, dt, b, c, gate (state) -> out: the state space's y * silu(gate); reads and writes the sequence's state
  kActivate,   // out = act(in gate columns) * in up columns, or act(in)
  kAdd,        // residual += multiplier * in
  kGather,     // out[output] = in[row of that output]
  kPool,       // out[output] = one row of those that the output's text has in `in`
  kSample,     // logits -> tokens
};
std::string_view op_name(OpKind kind);

struct LinearSegment {
  WeightId weight = -1;
  int64_t column = 0;       // of the output where its first row goes, a multiple of 16
  std::vector<float> bias;  // [rows], or empty
};

// Columns of a buffer's rows.
struct Operand {
  BufferId buffer = -1;
  int64_t column = 0;
};

// kConvolve, kScan: what they read, and where in a block of the KV group the layer's state lies.
struct StateOperands {
  const CausalConvolution* convolution = nullptr;  // kConvolve: [num_taps - 1, num_channels] of state
  const StateSpace* space = nullptr;               // kScan: [num_states, num_channels] of state
  Operand x;
  Operand before, after;     // kConvolve: factors of x and of the result; without a buffer: none
  bool silu = false;         // kConvolve: of the result
  Operand dt, b, c, gate;    // kScan
  int64_t state_offset = 0;  // in floats

  bool reads(BufferId buffer) const {
    for (const Operand* operand : {&x, &before, &after, &dt, &b, &c, &gate}) {
      if (operand->buffer == buffer) return true;
    }
    return false;
  }
  int64_t state_floats() const {
    return space != nullptr ? space->num_states * space->num_channels : (convolution->num_taps - 1) * convolution->num_channels;
  }
};

struct Op {
  OpKind kind;
  int32_t layer = -1;  // decoder layer, or -1
  BufferId in = -1, out = -1;
  BufferId residual = -1;
  float multiplier = 1.0f;                        // of what is added to the residual, or of the embedding
  int64_t norm_groups = 1;                        // kNorm: equal parts of a row, each with a norm of its own
  std::optional<StateOperands> state;             // kConvolve, kScan; then `in` is where x is
  const Norm* norm = nullptr;                     // kNorm, kEmbed
  const std::vector<int32_t>* columns = nullptr;  // kConvert: column i of out is column (*columns)[i] of in; null: as they are
  // kConvert of experts' rows: the same for each expert. Empty: as they are.
  std::vector<const std::vector<int32_t>*> expert_columns;
  std::vector<LinearSegment> segments;     // kLinear
  bool in_place = false;                   // kNorm: in's f32 rows become the norm, and out's forms are made of them
  bool exact = false;                      // kLinear: on the exact path, whatever the program's
  const Mixture* mixture = nullptr;        // kRoute, kDispatch, kCombine; kLinear: segments of each expert in turn, for its rows
  BufferId shared = -1, shared_gate = -1;  // kCombine; kExpand
  int64_t shared_gate_column = 0;
  Pooling pooling = Pooling::kMean;                      // kPool
  std::optional<Activation> activation;                  // kActivate, kLinear
  bool gated = false;                                    // segments (gate, up), or columns (gate | up)
  std::optional<GateLimit> gate_limit;                   // with activation, of a gated one
  std::optional<float> softcap;                          // kLinear: of the result (logits)
  float scale = 1.0f;                                    // kLinear: of the result (logits)
  bool qk_norm = false, rope = false, kv_write = false;  // kPosition
  std::optional<float> clip;                             // kLinear: of the result (q, k and v)
  const AttentionLayer* attention = nullptr;             // kHeadsNorm, kPosition, kAttention, kExpand
  int32_t kv_group = -1, kv_layer = -1;                  // layer index within its KV group
  int32_t rope_table = -1;                               // kPosition: which of Program::ropes
  int64_t k_column = 0, v_column = 0;                    // kHeadsNorm, kPosition, kExpand: of the qkv buffer; q is at 0
};

struct Program {
  const Network* network = nullptr;
  std::vector<Buffer> buffers;
  std::vector<Op> ops;
  std::vector<const Rope*> ropes;      // distinct rope tables of a step
  std::vector<KvGroupSpec> kv_groups;  // block_bytes is the executor's to fill. Of an encoder: what a step needs, one layer at a time
  BufferId logits = -1;                // what the network gives for an output: logits, or of an encoder an embedding or classes' logits
  BufferId hidden = -1;                // of an encoder: the last hidden state of every token
  // Operations of lower_network that the fusion pass left as they were: what `inspect --explain` shows.
  struct Unfused {
    std::size_t op;           // of ops
    std::string description;  // which one, and why
    int64_t bytes_per_token;  // of activations that it reads and writes once more
  };
  std::vector<Unfused> unfused;
};

// The network's matrices, packed, in the order that the lowering numbers them.
class Weights {
 public:
  // Classes and sizes of the network's matrices, and nothing packed: enough to lower the network and to say what it takes. Errors name the
  // tensor.
  static Result<Weights> plan(const Network& network, ThreadPool& pool);

  // Packs every matrix of planned weights on the pool's threads. Needs memory for bytes(), and of the files one tensor at a time.
  Status pack_planned(const Checkpoint& checkpoint, ThreadPool& pool);
  // Both.
  static Result<Weights> pack(const Network& network, const Checkpoint& checkpoint, ThreadPool& pool);

  // The panels of all matrices, one after the other, as they lie in memory and in the packed cache; empty after plan().
  std::span<const std::byte> panels() const { return {panels_, panels_ == nullptr ? 0 : static_cast<std::size_t>(panels_bytes_)}; }
  // Gives planned weights their panels: bytes() of them, aligned to 64, that `owner` keeps.
  void set_panels(const std::byte* panels, const std::shared_ptr<const void>& owner);

  const PackedMatrix& operator[](WeightId id) const { return matrices_[static_cast<std::size_t>(id)]; }
  WeightId id_of(const Linear& linear) const;
  const Linear& linear(WeightId id) const { return *linears_[static_cast<std::size_t>(id)]; }
  WeightId embedding_id() const { return embedding_id_; }  // the packed head, where the embedding is tied to it; else -1
  int64_t bytes() const { return panels_bytes_; }
  std::size_t size() const { return matrices_.size(); }

  // Writes the embedding of `token` as hidden_size floats.
  void embed(int32_t token, float* out) const;
  // Row `row` of a learned table (positions, token types), added to out.
  static void add_row(const MatrixSource& table, int64_t row, float* out);

 private:
  std::vector<PackedMatrix> matrices_;
  std::vector<int64_t> offsets_;  // parallel to matrices_: of the first panel in panels_
  int64_t panels_bytes_ = 0;
  const std::byte* panels_ = nullptr;   // the matrices keep what it points to
  std::vector<const Linear*> linears_;  // parallel to matrices_
  std::unordered_map<const Linear*, WeightId> ids_;
  const Network* network_ = nullptr;
  WeightId embedding_id_ = -1;
};

// One operation a thought, unfused. `form_of` says how each weight wants its activations.
Program lower_network(const Network& network, const Weights& weights, Isa isa, GemmPath path);
// Of an encoder-decoder the other program: the encoder, and then the keys and values that each layer's cross attention of the decoder reads
// of its last hidden states.
Program lower_encoder(const Network& network, const Weights& weights, Isa isa, GemmPath path);

// Merges neighbours: norm + convert, linear + activation + convert, linear + residual add, norm + residual add, q/k norm + rope +
// kv write, attention + convert.
void fuse(Program& program);

}  // namespace millrace
