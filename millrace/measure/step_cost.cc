#include "millrace/measure/step_cost.h"

#include <algorithm>
#include <cmath>

namespace millrace {
namespace {

double& operations(OpCost& cost, Arithmetic arithmetic) { return cost.operations[static_cast<std::size_t>(arithmetic)]; }

Arithmetic arithmetic_of(ActivationForm form) {
  switch (form) {
    case ActivationForm::kInt8: return Arithmetic::kInt8;
    case ActivationForm::kBf16: return Arithmetic::kBf16;
    case ActivationForm::kF32: return Arithmetic::kF32;
  }
  return Arithmetic::kF32;
}

Arithmetic arithmetic_of(KvDType dtype) {
  switch (dtype) {
    case KvDType::kInt8:
    case KvDType::kInt4: return Arithmetic::kInt8;
    case KvDType::kBf16: return Arithmetic::kBf16;
    case KvDType::kFp8E4M3:
    case KvDType::kF32: return Arithmetic::kF32;
  }
  return Arithmetic::kF32;
}

int64_t published_bytes(const MatrixSource& matrix, int64_t num_rows) {
  if (matrix.grouped) return num_rows * matrix.grouped->stored_bytes / matrix.grouped->rows;
  return num_rows * row_bytes(matrix.tensor->dtype, matrix.k).value_or(0);
}

int64_t norm_bytes(const Norm& norm) { return static_cast<int64_t>((norm.weight.size() + norm.bias.size()) * sizeof(float)); }

// Rows of the step that are multiplied as a prompt's.
int64_t num_prompt_rows(const CpuExecutor& executor, const StepPlan& plan) {
  if (!executor.info().prompt_differs) return 0;
  int64_t count = 0;
  for (const auto& s : plan.sequences) count += std::clamp(s.num_prompt_tokens - s.first_position, 0, s.row_end - s.row_begin);
  return count;
}

OpCost linear_cost(const CpuExecutor& executor, const Op& op, int64_t num_rows, int64_t prompt_rows) {
  OpCost cost;
  for (const LinearSegment& segment : op.segments) {
    const PackedMatrix& weight = executor.weights()[segment.weight];
    cost.weight_bytes += published_bytes(executor.weights().linear(segment.weight).weight, weight.rows());
    cost.weight_bytes += static_cast<int64_t>(segment.bias.size() * sizeof(float));
    const auto add = [&](GemmPath path, int64_t rows) {
      const ActivationForm form = activation_form(weight.weight_class(), executor.options().isa, path);
      operations(cost, arithmetic_of(form)) +=
          2.0 * static_cast<double>(weight.rows()) * static_cast<double>(weight.k()) * static_cast<double>(rows);
    };
    add(op.exact ? GemmPath::kExact : executor.options().path, num_rows - prompt_rows);
    add(op.exact ? GemmPath::kExact : GemmPath::kPrompt, prompt_rows);
  }
  if (op.mixture == nullptr) return cost;
  // Above all experts were counted for all rows. A row is computed by some of them, and read are those that some row takes: how many is
  // known only after routing, so it is what independent, even choices would give.
  const double share = static_cast<double>(op.mixture->rule.experts_per_token) / static_cast<double>(op.mixture->rule.num_experts);
  cost.weight_bytes = std::llround(static_cast<double>(cost.weight_bytes) * (1 - std::pow(1 - share, static_cast<double>(num_rows))));
  for (double& count : cost.operations) count *= share;
  return cost;
}

// Of one token in one layer of the group, keys and values.
int64_t kv_token_bytes(const KvGroupSpec& group) { return group.block_bytes / group.num_layers / kKvBlockTokens; }

OpCost attention_cost(const CpuExecutor& executor, const Op& op, const StepPlan& plan) {
  const AttentionLayer& layer = *op.attention;
  OpCost cost;
  for (const auto& sequence : plan.sequences) {
    const int64_t first = sequence.first_position, end = first + sequence.row_end - sequence.row_begin, window = layer.window.value_or(end);
    if (layer.cross) {
      cost.kv_bytes += sequence.num_source_tokens * kv_token_bytes(executor.program().kv_groups[static_cast<std::size_t>(op.kv_group)]);
      operations(cost, arithmetic_of(executor.options().kv_dtype)) +=
          4.0 * static_cast<double>(layer.head_dim * layer.num_heads * sequence.num_source_tokens * (end - first));
      continue;
    }
    cost.kv_bytes += (end - std::max<int64_t>(0, first + 1 - window)) *
                     kv_token_bytes(executor.program().kv_groups[static_cast<std::size_t>(op.kv_group)]);
    int64_t keys = 0;
    for (int64_t position = first; position < end; ++position) {
      const int64_t keys_end = layer.causal ? position + 1 : std::min(end, position + window);
      keys += keys_end - std::max<int64_t>(0, position + 1 - window);
    }
    operations(cost, arithmetic_of(executor.options().kv_dtype)) +=
        4.0 * static_cast<double>(layer.head_dim * layer.num_heads) * static_cast<double>(keys);
  }
  return cost;
}

// A sequence's state is read and written once. Of the weights a convolution's kernel is read, and of a state space its decays.
OpCost state_cost(const Op& op, const StepPlan& plan) {
  const StateOperands& state = *op.state;
  OpCost cost;
  cost.kv_bytes = 2 * static_cast<int64_t>(plan.sequences.size()) * state.state_floats() * static_cast<int64_t>(sizeof(float));
  double operations_per_row = 0;
  if (state.space != nullptr) {
    const StateSpace& space = *state.space;
    cost.weight_bytes = static_cast<int64_t>((space.a.size() + space.d.size() + space.dt_bias.size()) * sizeof(float));
    operations_per_row = 6.0 * static_cast<double>(space.num_channels * space.num_states);
  } else {
    const CausalConvolution& convolution = *state.convolution;
    cost.weight_bytes = static_cast<int64_t>((convolution.weights.size() + convolution.bias.size()) * sizeof(float));
    operations_per_row = 2.0 * static_cast<double>(convolution.num_channels * convolution.num_taps);
  }
  operations(cost, Arithmetic::kF32) = operations_per_row * static_cast<double>(plan.tokens.size());
  return cost;
}

}  // namespace

OpCost& OpCost::operator+=(const OpCost& other) {
  weight_bytes += other.weight_bytes;
  kv_bytes += other.kv_bytes;
  for (std::size_t a = 0; a < kNumArithmetics; ++a) operations[a] += other.operations[a];
  return *this;
}

std::vector<OpCost> step_cost(const CpuExecutor& executor, const StepPlan& plan) {
  const Program& program = executor.program();
  const Network& network = *program.network;
  const auto num_rows = static_cast<int64_t>(plan.tokens.size()), num_outputs = static_cast<int64_t>(plan.outputs.size());
  std::vector<OpCost> costs(program.ops.size());
  for (std::size_t i = 0; i < costs.size(); ++i) {
    const Op& op = program.ops[i];
    OpCost& cost = costs[i];
    switch (op.kind) {
      case OpKind::kEmbed:
        cost.weight_bytes = published_bytes(network.embedding, num_rows) +
                            (network.positions ? published_bytes(*network.positions, num_rows) : 0) +
                            (network.token_types ? published_bytes(*network.token_types, num_rows) : 0);
        if (op.norm != nullptr) cost.weight_bytes += norm_bytes(*op.norm);
        break;
      case OpKind::kNorm: cost.weight_bytes = norm_bytes(*op.norm); break;
      case OpKind::kLinear:
        if (program.buffers[static_cast<std::size_t>(op.in)].output_rows) {
          cost = linear_cost(executor, op, num_outputs, 0);
        } else {
          cost = linear_cost(executor, op, num_rows, num_prompt_rows(executor, plan));
        }
        break;
      case OpKind::kHeadsNorm:
        if (op.attention->q_norm) cost.weight_bytes += norm_bytes(*op.attention->q_norm);
        if (op.attention->k_norm) cost.weight_bytes += norm_bytes(*op.attention->k_norm);
        break;
      case OpKind::kPosition:
        if (op.qk_norm && op.attention->q_norm) cost.weight_bytes += norm_bytes(*op.attention->q_norm);
        if (op.qk_norm && op.attention->k_norm) cost.weight_bytes += norm_bytes(*op.attention->k_norm);
        if (op.kv_write) cost.kv_bytes = num_rows * kv_token_bytes(executor.program().kv_groups[static_cast<std::size_t>(op.kv_group)]);
        break;
      case OpKind::kAttention: cost = attention_cost(executor, op, plan); break;
      case OpKind::kConvolve:
      case OpKind::kScan: cost = state_cost(op, plan); break;
      case OpKind::kGather:
      case OpKind::kPool:
        // Without a wanted row the executor stops here.
        if (num_outputs == 0) return costs;
        break;
      case OpKind::kConvert:
      case OpKind::kExpand:
      case OpKind::kRoute:
      case OpKind::kDispatch:
      case OpKind::kCombine:
      case OpKind::kActivate:
      case OpKind::kAdd:
      case OpKind::kSample: break;
    }
  }
  return costs;
}

double MachineBound::compute_seconds(const OpCost& cost) const {
  double seconds = 0;
  for (std::size_t a = 0; a < kNumArithmetics; ++a) {
    if (cost.operations[a] > 0) seconds += cost.operations[a] / operations_per_second[a];
  }
  return seconds;
}

MachineBound machine_bound(const ThreadProfile& profile, Isa isa) {
  MachineBound bound{.bytes_per_second = profile.read_bandwidth()};
  for (std::size_t a = 0; a < kNumArithmetics; ++a) bound.operations_per_second[a] = profile.peak(isa, static_cast<Arithmetic>(a));
  return bound;
}

}  // namespace millrace
