#include <algorithm>

#include "millrace/model/lowering.h"

namespace millrace {

template <class Layer>
void Lowering::state_branch(const Layer& layer, float multiplier) {
  const Inputs in = normed_input(layer.norm, hidden_, "attention input", {{&layer.in}});
  const BufferId projected = buffer("state projections", layer.in.weight.rows(), kF32Only);
  add_linears(in, {{&layer.in, 0}}, {.kind = OpKind::kLinear, .out = projected});
  const BufferId result = state_result(layer, projected);
  add_linears(converted_input(result, "state output", {{&layer.out}}), {{&layer.out, 0}}, {.kind = OpKind::kLinear, .out = sum_});
  add_branch(layer, multiplier);
}

BufferId Lowering::state_result(const ShortConvolution& layer, BufferId projected) {
  const int64_t channels = layer.convolution.num_channels;
  const BufferId convolved = buffer("convolved", channels, kF32Only);
  StateOperands state{.convolution = &layer.convolution, .x = {projected, 2 * channels}};
  state.before = {projected, 0};
  state.after = {projected, channels};
  add_state({.kind = OpKind::kConvolve, .in = projected, .out = convolved}, state);
  return convolved;
}

BufferId Lowering::state_result(const StateSpace& space, BufferId projected) {
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

void Lowering::add_state(Op op, StateOperands state) {
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

template void Lowering::state_branch(const ShortConvolution& layer, float multiplier);
template void Lowering::state_branch(const StateSpace& layer, float multiplier);

}  // namespace millrace
