// Operations of layers with a state on the CPU. A unit is a sequence and some channels: they go through the sequence's rows in order, so
// what a token computes does not depend on the step it is computed in. The state comes from the block that holds the token before the first
// row, and goes to every block whose last computed token is among the rows.
#include <algorithm>
#include <array>

#include "millrace/kernels/elementwise.h"
#include "millrace/kernels/state_space.h"
#include "millrace/model/cpu_executor.h"

namespace millrace {
namespace {

int64_t num_chunks_of(int64_t channels, int64_t chunk) { return (channels + chunk - 1) / chunk; }

// Groups of channels are divided separately: a unit's channels share b and c.
int64_t num_groups(const StateOperands& state) { return state.space != nullptr ? state.space->num_groups : 1; }
int64_t num_channels(const StateOperands& state) {
  return state.space != nullptr ? state.space->num_channels : state.convolution->num_channels;
}

constexpr std::size_t kTapsMax = 64;

}  // namespace

int64_t CpuExecutor::state_units(const Op& op) const {
  const int64_t groups = num_groups(*op.state);
  return static_cast<int64_t>(plan_->sequences.size()) * groups * num_chunks_of(num_channels(*op.state) / groups, kStateChannels);
}

CpuExecutor::StateUnit CpuExecutor::state_unit(const Op& op, int64_t unit) const {
  const int64_t groups = num_groups(*op.state), group_channels = num_channels(*op.state) / groups;
  const int64_t chunks = num_chunks_of(group_channels, kStateChannels), of_sequence = groups * chunks;
  const auto sequence = static_cast<int32_t>(unit / of_sequence);
  const int64_t group = unit % of_sequence / chunks, first = unit % chunks * kStateChannels;
  return {sequence, group, group * group_channels + first, std::min(kStateChannels, group_channels - first)};
}

// Row 0 of the layer's state as it is after the token at `position`.
float* CpuExecutor::state_at(const Op& op, int32_t sequence, int32_t position) {
  const auto g = static_cast<std::size_t>(op.kv_group);
  const int32_t block = block_table(op.kv_group, sequence)[static_cast<std::size_t>(position / kKvBlockTokens)];
  MR_DCHECK(block >= 0, "a window never passes the block of the last token");
  return reinterpret_cast<float*>(kv_memory_[g].data() + block * program_.kv_groups[g].block_bytes) + op.state->state_offset;
}

// The `num_rows` rows of a unit's state, which lie side by side in `state`.
void CpuExecutor::load_state(const Op& op, const StateUnit& unit, int64_t num_rows, float* state) {
  const int32_t first = plan_->sequences[static_cast<std::size_t>(unit.sequence)].first_position;
  const int64_t stride = num_channels(*op.state);
  const float* from = first == 0 ? nullptr : state_at(op, unit.sequence, first - 1) + unit.channel;
  for (int64_t row = 0; row < num_rows; ++row) {
    float* to = state + row * kStateChannels;
    if (from == nullptr) {
      std::fill_n(to, unit.size, 0.0f);
    } else {
      std::copy_n(from + row * stride, unit.size, to);
    }
  }
}

bool CpuExecutor::keeps_state(const StepPlan::Sequence& sequence, int32_t row) {
  const int32_t position = sequence.first_position + row - sequence.row_begin;
  return row + 1 == sequence.row_end || (position + 1) % kKvBlockTokens == 0;
}

void CpuExecutor::convolve(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch) {
  const StateOperands& state = *op.state;
  const CausalConvolution& convolution = *state.convolution;
  const int64_t taps = convolution.num_taps, stride = convolution.num_channels;
  const Isa isa = options_.isa;
  // The inputs of the last `taps` tokens in turn; row `newest` is the current token's. After them the result.
  float *inputs = scratch.state.as<float>(), *y = inputs + taps * kStateChannels;
  std::array<const float*, kTapsMax> in_order;
  for (int64_t u = begin; u < end; ++u) {
    const StateUnit unit = state_unit(op, u);
    const auto& sequence = plan_->sequences[static_cast<std::size_t>(unit.sequence)];
    const int64_t c = unit.channel;
    load_state(op, unit, taps - 1, inputs);
    int64_t newest = taps - 1;
    for (int32_t row = sequence.row_begin; row < sequence.row_end; ++row, newest = (newest + 1) % taps) {
      float* input = inputs + newest * kStateChannels;
      const float* x = rows(state.x.buffer).row(row) + state.x.column + c;
      if (state.before.buffer >= 0) {
        multiply_row(isa, rows(state.before.buffer).row(row) + state.before.column + c, x, unit.size, input);
      } else {
        std::copy_n(x, unit.size, input);
      }
      for (int64_t t = 0; t < taps; ++t) in_order[static_cast<std::size_t>(t)] = inputs + (newest + 1 + t) % taps * kStateChannels;
      convolve_row(isa, {in_order.data(), static_cast<std::size_t>(taps)}, convolution.weights.data() + c, stride,
                   convolution.bias.empty() ? nullptr : convolution.bias.data() + c, unit.size, y);
      if (state.silu) activate_row(isa, ActivationKind::kSilu, y, unit.size, y);
      if (state.after.buffer >= 0) multiply_row(isa, rows(state.after.buffer).row(row) + state.after.column + c, y, unit.size, y);
      store_forms(rows(op.out), row, c, y, unit.size);
      if (taps == 1 || !keeps_state(sequence, row)) continue;
      float* kept = state_at(op, unit.sequence, sequence.first_position + row - sequence.row_begin) + c;
      for (int64_t t = 1; t < taps; ++t) std::copy_n(in_order[static_cast<std::size_t>(t)], unit.size, kept + (t - 1) * stride);
    }
  }
}

// The step widths of a unit's channels: dt [size].
void CpuExecutor::step_widths(const Op& op, const StateUnit& unit, int64_t row, float* dt) {
  const StateSpace& space = *op.state->space;
  const float* raw = rows(op.state->dt.buffer).row(row) + op.state->dt.column;
  const int64_t head_size = space.num_channels / space.num_heads, first = unit.channel / head_size;
  const int64_t heads = (unit.channel + unit.size - 1) / head_size + 1 - first;
  float* of_heads = dt;
  for (int64_t h = 0; h < heads; ++h)
    of_heads[h] = raw[first + h] + (space.dt_bias.empty() ? 0.0f : space.dt_bias[static_cast<std::size_t>(first + h)]);
  softplus_row(options_.isa, of_heads, heads, of_heads);
  for (int64_t h = 0; h < heads; ++h) of_heads[h] = std::min(space.dt_max, std::max(space.dt_min, of_heads[h]));
  // Backwards, since a head's width lies before its channels'.
  for (int64_t i = unit.size; i-- > 0 && head_size > 1;) dt[i] = of_heads[(unit.channel + i) / head_size - first];
}

void CpuExecutor::scan(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch) {
  const StateOperands& state = *op.state;
  const StateSpace& space = *state.space;
  const int64_t stride = space.num_channels;
  const Isa isa = options_.isa;
  float *current = scratch.state.as<float>(), *dt = current + space.num_states * kStateChannels, *y = dt + kStateChannels;
  for (int64_t u = begin; u < end; ++u) {
    const StateUnit unit = state_unit(op, u);
    const auto& sequence = plan_->sequences[static_cast<std::size_t>(unit.sequence)];
    const int64_t c = unit.channel, of_group = unit.group * space.num_states;
    load_state(op, unit, space.num_states, current);
    for (int32_t row = sequence.row_begin; row < sequence.row_end; ++row) {
      step_widths(op, unit, row, dt);
      const auto operand = [&](const Operand& from) { return rows(from.buffer).row(row) + from.column; };
      scan_row(isa,
               {.x = operand(state.x) + c,
                .dt = dt,
                .b = operand(state.b) + of_group,
                .c = operand(state.c) + of_group,
                .a = space.a.data() + c,
                .a_stride = space.decay_per_head ? 0 : stride,
                .d = space.d.data() + c,
                .num_states = space.num_states,
                .state = current,
                .state_stride = kStateChannels},
               unit.size, y);
      activate_mul_row(isa, ActivationKind::kSilu, operand(state.gate) + c, y, unit.size, y);
      store_forms(rows(op.out), row, c, y, unit.size);
      if (!keeps_state(sequence, row)) continue;
      float* kept = state_at(op, unit.sequence, sequence.first_position + row - sequence.row_begin) + c;
      for (int64_t n = 0; n < space.num_states; ++n) std::copy_n(current + n * kStateChannels, unit.size, kept + n * stride);
    }
  }
}

// Of the scratch memory that an operation with a state needs.
int64_t CpuExecutor::state_scratch_floats(const Op& op) {
  if (!op.state) return 0;
  const StateOperands& state = *op.state;
  return (state.space != nullptr ? state.space->num_states + 2 : state.convolution->num_taps + 1) * kStateChannels;
}

}  // namespace millrace
