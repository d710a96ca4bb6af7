#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "millrace/formats/checkpoint.h"
#include "millrace/kernels/expert_routing.h"
#include "millrace/tensor/grouped_weights.h"

// A network with every name, number and tensor resolved: what a family file (families/*.json) says about one checkpoint.
// Plain data. Made by bind_network (family.h), consumed by the lowering to a program (program.h). Nothing here or after
// it knows a family's name other than to print it.
namespace millrace {

// A [rows, k] matrix in terms of the rows of a stored tensor. The row map is what fused, split, permuted and
// de-interleaved checkpoints come down to, and what adapters, pruning and tensor parallelism will reuse.
struct MatrixSource {
  const SourceTensor* tensor = nullptr;  // stored [source_rows, k], or [k, source_rows] when `transposed`
  bool transposed = false;
  std::shared_ptr<const GroupedWeights> grouped;  // what a quantizer stored, [source_rows, k]; `tensor` then holds its codes. Null: plain
  std::vector<int32_t> row_map;                   // [rows] row of this matrix -> row of the stored tensor
  int64_t k = 0;

  int64_t rows() const { return static_cast<int64_t>(row_map.size()); }
};

struct Linear {
  MatrixSource weight;
  std::vector<float> bias;  // [rows], or empty
};

struct Norm {
  enum class Kind { kRms, kLayer };
  Kind kind = Kind::kRms;
  std::vector<float> weight;  // [size], with transforms such as "add one" applied; empty: ones
  std::vector<float> bias;    // [size], or empty
  float eps = 1e-5f;
};

// Rotary position embedding, RoFormer (arXiv:2104.09864), with the scalings of Hugging Face transformers' modeling_rope_utils.
struct Rope {
  enum class Pairing { kHalf, kInterleaved };  // (i, i + d/2) or (2i, 2i + 1)
  Pairing pairing = Pairing::kHalf;
  int64_t rotary_dim = 0;         // first dimensions of a head that rotate
  std::vector<float> inv_freq;    // [rotary_dim / 2]
  float attention_factor = 1.0f;  // multiplies cos and sin (YaRN, LongRoPE)
  // Length-dependent scalings (dynamic NTK, LongRoPE) use these for a request whose prompt + max_tokens exceeds
  // `short_length`; the choice is made once, at admission (docs/design.md D5).
  int64_t short_length = 0;          // 0: no second variant
  std::vector<float> long_inv_freq;  // [rotary_dim / 2]
  float long_attention_factor = 1.0f;
};

enum class Activation { kSilu, kGeluTanh, kGeluErf, kRelu, kReluSquared, kQuickGelu, kTanh };

// What a norm of q or k is taken over: one head, all heads sharing a weight; one head, each with its own weight; all heads of a token at
// once.
enum class HeadNorm { kHead, kEachHead, kAllHeads };

// Multi-head latent attention, DeepSeek-V2, arXiv:2405.04434: keys and values come from one small vector a token, and a part of the keys,
// which alone is rotated, is the same for all heads. A head is [rope_dim, the rest] here, whatever the checkpoint's order.
struct LatentAttention {
  std::optional<Linear> q_down;         // [q_rank, hidden]; then q is [num_heads * head_dim, q_rank]
  std::optional<Norm> q_norm;           // of q_down's result
  Linear kv_down, k_rope;               // [kv_rank, hidden], [rope_dim, hidden]
  Norm kv_norm;                         // of kv_down's result
  Linear k_up, v_up;                    // [num_heads * (head_dim - rope_dim), kv_rank], [num_heads * value_dim, kv_rank]
  int64_t rope_dim = 0, value_dim = 0;  // value_dim <= head_dim: what attention computes of a head ends in zeros
  std::vector<int32_t> value_columns;   // [num_heads * value_dim] of [num_heads, head_dim]
};

// What is added to the score of a key by its distance from the query: T5, arXiv:1910.10683, with the buckets of distances spread out.
struct RelativeBias {
  int64_t reach = 0;         // further keys count as the furthest
  std::vector<float> table;  // [num_heads, 2 * reach + 1]: of keys at distances -reach (before the query) to reach (after it)
};

struct AttentionLayer {
  std::optional<Norm> norm;       // before; absent in post-norm networks
  std::optional<Norm> post_norm;  // on the output, before the residual is added
  std::optional<Norm> sum_norm;   // on the hidden state, after the output was added to it (post-norm networks)
  bool causal = true;             // false: a token sees those after it too, so a text is computed whole, in one step
  bool cross = false;             // keys and values are those of an encoder's last hidden states, and every token sees all of them
  Linear q, k, v, o;          // q [num_heads * head_dim, hidden], k v [num_kv_heads * head_dim, hidden], o [hidden, num_heads * head_dim]
  std::optional<float> clip;  // q, k and v are limited to [-clip, clip]
  std::optional<Norm> q_norm, k_norm;    // before rope
  HeadNorm head_norm = HeadNorm::kHead;  // kHead: weights [head_dim]; else [num_heads * head_dim] and [num_kv_heads * head_dim]
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  float scale = 0;                // multiplies q . k
  std::optional<float> softcap;   // scores = cap * tanh(scores / cap)
  std::optional<int64_t> window;  // keys at distance >= window are masked
  std::optional<Rope> rope;
  std::vector<float> alibi_slopes;  // [num_heads], or empty: score += slope * key position
  std::optional<RelativeBias> relative_bias;
  std::optional<LatentAttention> latent;  // then k and v are of no rows, and o is [hidden, num_heads * value_dim]
  std::vector<float> sinks;               // [num_heads], or empty: the score of a key without a value that every row sees
};

// Of every channel a weighted sum over a token and those before it.
struct CausalConvolution {
  int64_t num_channels = 0, num_taps = 0;
  std::vector<float> weights;  // [num_taps, num_channels], the oldest token's first
  std::vector<float> bias;     // [num_channels], or empty
};

// In place of attention: out(c * convolution(b * x)), with b, c and x the thirds of in(norm(hidden)): LFM2.
struct ShortConvolution {
  std::optional<Norm> norm, post_norm, sum_norm;  // as of attention
  Linear in;                                      // [3 * channels, hidden]: b's rows, then c's, then x's
  CausalConvolution convolution;
  Linear out;  // [hidden, channels]
};

// In place of attention: out(y * silu(gate)), where y is what a selective state space makes of x = silu(convolution(...)),
// kernels/state_space.h. Mamba, arXiv:2312.00752, has a decay for every channel and state, and computes b, c and the step width from x
// (`selection`). Mamba-2, arXiv:2405.21060, has one for each head of channels, takes all from `in`, and norms what goes into `out`.
struct StateSpace {
  std::optional<Norm> norm, post_norm, sum_norm;                            // as of attention
  int64_t num_channels = 0, num_heads = 0, num_groups = 1, num_states = 0;  // a group of channels shares b and c
  Linear in;                                                                // [.., hidden]; columns of its result:
  int64_t x_column = 0, gate_column = 0, dt_column = 0;
  CausalConvolution convolution;  // of x, and where there is no selection of b and c after it, [num_groups, num_states] each
  struct Selection {
    Linear dt_down, b_c;  // [rank, num_channels], [2 * num_states, num_channels]
    Linear dt_up;         // [num_channels, rank]
    // Of dt_down's result, of b and of c, each by itself: without weights (Falcon-Mamba, arXiv:2410.05355).
    std::optional<Norm> norm;
  };
  std::optional<Selection> selection;
  bool decay_per_head = false;
  std::vector<float> a;        // [num_states, num_channels], decay_per_head: [num_channels]
  std::vector<float> d;        // [num_channels]
  std::vector<float> dt_bias;  // [num_heads], or empty: then it is dt_up's
  float dt_min = 0, dt_max = std::numeric_limits<float>::infinity();
  std::optional<Norm> gated_norm;  // of each group of channels
  Linear out;                      // [hidden, num_channels]
};

// Bounds of what a gated mlp's activation reads: gate at most `limit`, up from -limit to limit, and `offset` added to it.
struct GateLimit {
  float limit = 0, offset = 0;
};

// down(activation(gate(x)) * up(x)), or without a gate down(activation(up(x))).
struct Expert {
  Linear gate, up, down;  // gate: of no rows in an mlp that is not gated
};

// A mixture of experts, arXiv:1701.06538: of every token the sum over its experts of weight * expert(x), in the order of the experts.
struct Mixture {
  Linear router;  // [num_experts, hidden]
  RoutingRule rule;
  std::vector<Expert> experts;        // [num_experts]
  std::optional<Expert> shared;       // added for every token
  std::optional<Linear> shared_gate;  // [1, hidden]: the shared expert counts sigmoid(shared_gate(x))
};

struct MlpLayer {
  std::optional<Norm> norm, post_norm, sum_norm;
  bool gated = true;  // down(activation(gate(x)) * up(x)), else down(activation(up(x)))
  Activation activation = Activation::kSilu;
  std::optional<GateLimit> gate_limit;
  Linear gate, up, down;  // of no rows where there is a mixture
  std::optional<Mixture> mixture;
};

struct DecoderLayer {
  // sequential: x += attention(norm(x)); x += mlp(norm(x)).   parallel: x += attention(norm(x)) + mlp(norm'(x)), both from the same x.
  bool parallel_residual = false;
  // The mlp reads the attention's normed input (falcon-7b, gpt-j, phi): its own norm is absent.
  bool shared_norm = false;
  float residual_multiplier = 1.0f;
  AttentionLayer attention;  // of no rows where one of the next two is there
  std::optional<ShortConvolution> convolution;
  std::optional<StateSpace> state_space;
  std::optional<AttentionLayer> cross;  // of an encoder-decoder, before the MLP: x += cross(norm''(x))
  bool has_mlp = true;
  MlpLayer mlp;

  bool has_attention() const { return !convolution && !state_space; }
};

// Calls visit(linear) for the matrices that a layer has in place of attention's, in the order in which they are computed.
template <class Layer, class Visit>
void for_each_state_linear(Layer& layer, const Visit& visit) {
  if (auto& convolution = layer.convolution) {
    visit(convolution->in);
    visit(convolution->out);
  }
  if (auto& space = layer.state_space) {
    visit(space->in);
    if (auto& selection = space->selection) {
      for (auto* linear : {&selection->dt_down, &selection->b_c, &selection->dt_up}) visit(*linear);
    }
    visit(space->out);
  }
}

// What one row is made of a text's: the first token's, the mean over all tokens, the last token's.
enum class Pooling { kFirst, kMean, kLast };

struct DenseLayer {  // norm(activation(linear(x)))
  Linear linear;
  std::optional<Activation> activation;
  std::optional<Norm> norm;
};

// What an encoder gives for a text: an embedding, or numbers for classes.
struct PooledHead {
  Pooling pooling = Pooling::kMean;
  std::vector<DenseLayer> layers;
  std::optional<Norm> unit_norm;  // makes the result as long as 1: an RMS norm whose weights are 1 / sqrt(size)
  int64_t size = 0;               // of the result
  bool classes = false;           // the result is one logit for each class
};

struct Network {
  std::string family;  // for people only
  int64_t vocab_size = 0, hidden_size = 0, max_positions = 0;
  MatrixSource embedding;  // [vocab_size, hidden_size]
  float embedding_multiplier = 1.0f;
  std::optional<Norm> embedding_norm;
  std::optional<MatrixSource> positions;  // learned, [num positions, hidden_size]
  int64_t position_offset = 0;
  std::vector<float> sinusoids;             // [max_positions, hidden_size], or empty: positions that are computed, not learned
  std::optional<MatrixSource> token_types;  // learned, [num types, hidden_size]
  std::vector<DecoderLayer> layers;
  std::optional<Norm> final_norm;
  std::optional<PooledHead> pooled;  // of an encoder; then there is no head
  Linear head;                       // [vocab_size, hidden_size]; of no rows where there is `pooled`
  bool tied_head = false;            // head.weight is the embedding
  float logits_multiplier = 1.0f;
  std::optional<float> logits_softcap;
  // Of an encoder-decoder: what reads the source text, and what every answer of the decoder, which is this network, begins with.
  std::shared_ptr<Network> encoder;
  std::vector<int32_t> start_tokens;
  bool feeds_decoder = false;  // of such an encoder: there is neither `pooled` nor a head

  struct Binding {  // for `inspect --explain`: how each stored tensor was used
    std::string tensor, dtype, shape, role, transforms;
  };
  std::vector<Binding> bindings;

  bool is_encoder() const { return pooled.has_value() || feeds_decoder; }

  bool has_mixture() const {
    return std::any_of(layers.begin(), layers.end(), [](const DecoderLayer& layer) { return layer.mlp.mixture.has_value(); });
  }
};

}  // namespace millrace
