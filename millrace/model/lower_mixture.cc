#include <algorithm>

#include "millrace/model/lowering.h"

namespace millrace {

bool Lowering::has_orders(const MlpLayer& mlp) const {
  return std::any_of(mlp.mixture->experts.begin(), mlp.mixture->experts.end(), [&](const Expert& expert) {
    const std::vector<Reader> readers = up_readers(mlp, expert);
    return std::any_of(readers.begin(), readers.end(), [&](const Reader& reader) { return matrix(*reader.linear).columns() != nullptr; });
  });
}

std::vector<Lowering::Reader> Lowering::readers_of(const MlpLayer& mlp) const {
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

void Lowering::mlp_branch(const MlpLayer& mlp, const Inputs& in) {
  if (mlp.mixture) {
    mixture(mlp, *mlp.mixture, in);
  } else {
    experts(mlp, std::span(&mlp, 1), in, sum_, "mlp", nullptr);
  }
}

template <class Part>
void Lowering::experts(const MlpLayer& mlp, std::span<const Part> parts, const Inputs& in, BufferId out, const std::string& name,
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

void Lowering::mixture(const MlpLayer& mlp, const Mixture& mixture, const Inputs& in) {
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

}  // namespace millrace
