#include "millrace/measure/step_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace millrace {
namespace {

double seconds(int64_t ns) { return 1e-9 * static_cast<double>(ns); }

template <class Member>
double sum_of(const std::vector<ProfileRow>& rows, Member member) {
  return std::accumulate(rows.begin(), rows.end(), 0.0, [&](double sum, const ProfileRow& row) { return sum + row.*member; });
}

bool is(const std::optional<Norm>& norm, const Norm* pointer) { return norm && &*norm == pointer; }

OpLabel norm_label(const Network& network, const Op& op) {
  if (op.layer < 0) return {"head", "norm"};
  const DecoderLayer& layer = network.layers[static_cast<std::size_t>(op.layer)];
  if (is(layer.attention.norm, op.norm)) return {"attention", "norm"};
  if (is(layer.attention.post_norm, op.norm)) return {"attention", "norm after"};
  if (layer.attention.latent && (op.norm == &layer.attention.latent->kv_norm || is(layer.attention.latent->q_norm, op.norm)))
    return {"attention", "latent norm"};
  if (is(layer.attention.sum_norm, op.norm)) return {"attention", "norm of the sum"};
  if (layer.convolution && is(layer.convolution->norm, op.norm)) return {"state", "norm"};
  if (layer.state_space && is(layer.state_space->norm, op.norm)) return {"state", "norm"};
  if (layer.state_space && layer.state_space->selection && is(layer.state_space->selection->norm, op.norm))
    return {"state", "selection norm"};
  if (layer.state_space && is(layer.state_space->gated_norm, op.norm)) return {"state", "gated norm"};
  if (layer.cross && is(layer.cross->norm, op.norm)) return {"cross attention", "norm"};
  if (layer.cross && is(layer.cross->sum_norm, op.norm)) return {"cross attention", "norm of the sum"};
  if (is(layer.mlp.sum_norm, op.norm)) return {"mlp", "norm of the sum"};
  if (is(layer.mlp.norm, op.norm)) return {"mlp", "norm"};
  if (is(layer.mlp.post_norm, op.norm)) return {"mlp", "norm after"};
  return {"layer", "norm"};
}

OpLabel linear_label(const Network& network, const Weights& weights, const Op& op) {
  const Linear* linear = &weights.linear(op.segments.front().weight);
  if (op.layer < 0) return {"head", network.is_encoder() ? "dense" : "logits"};
  const DecoderLayer& layer = network.layers[static_cast<std::size_t>(op.layer)];
  const AttentionLayer& attention = layer.attention;
  if (linear == &attention.q || linear == &attention.k || linear == &attention.v) return {"attention", "q k v"};
  if (linear == &attention.o) return {"attention", "output"};
  if (layer.cross && linear == &layer.cross->q) return {"cross attention", "q"};
  if (layer.cross && linear == &layer.cross->o) return {"cross attention", "output"};
  if (const auto& latent = attention.latent) {
    if (latent->q_down && linear == &*latent->q_down) return {"attention", "q latent"};
    if (linear == &latent->kv_down || linear == &latent->k_rope) return {"attention", "kv latent"};
    if (linear == &latent->k_up) return {"attention", "k v"};
  }
  if (const auto& convolution = layer.convolution) {
    if (linear == &convolution->in) return {"state", "projections"};
    if (linear == &convolution->out) return {"state", "output"};
  }
  if (const auto& space = layer.state_space) {
    if (linear == &space->in) return {"state", "projections"};
    if (linear == &space->out) return {"state", "output"};
    if (space->selection &&
        (linear == &space->selection->dt_down || linear == &space->selection->b_c || linear == &space->selection->dt_up))
      return {"state", "selection"};
  }
  if (const auto& mixture = layer.mlp.mixture) {
    if (linear == &mixture->router) return {"experts", "router"};
    if (mixture->shared && linear == &mixture->shared->down) return {"experts", "shared down"};
    if (op.mixture == nullptr) return {"experts", layer.mlp.gated ? "shared gate and up" : "shared up"};
    return {"experts", linear == &mixture->experts[0].down ? "down" : layer.mlp.gated ? "gate and up" : "up"};
  }
  if (linear == &layer.mlp.down) return {"mlp", "down"};
  return {"mlp", layer.mlp.gated ? "gate and up" : "up"};
}

}  // namespace

double StepProfile::busy_seconds() const { return sum_of(rows, &ProfileRow::busy_seconds); }
double StepProfile::wait_seconds() const { return sum_of(rows, &ProfileRow::wait_seconds); }
double StepProfile::bound_seconds() const { return sum_of(rows, &ProfileRow::bound_seconds); }

OpLabel op_label(const CpuExecutor& executor, const Op& op) {
  const Network& network = *executor.program().network;
  switch (op.kind) {
    case OpKind::kEmbed: return {"embedding", "embedding"};
    case OpKind::kNorm: return norm_label(network, op);
    case OpKind::kLinear: return linear_label(network, executor.weights(), op);
    case OpKind::kRoute: return {"experts", "routing"};
    case OpKind::kDispatch: return {"experts", "dispatch"};
    case OpKind::kCombine: return {"experts", "combine"};
    case OpKind::kExpand: return {"attention", "keys and values"};
    case OpKind::kHeadsNorm: return {"attention", "q k norm"};
    case OpKind::kPosition: return {"attention", "rope and KV"};
    case OpKind::kAttention: return {"attention", "attention"};
    case OpKind::kConvolve: return {"state", "convolution"};
    case OpKind::kScan: return {"state", "scan"};
    case OpKind::kActivate: return {"mlp", "activation"};
    case OpKind::kGather: return {"head", "gather"};
    case OpKind::kPool: return {"head", "pooling"};
    case OpKind::kSample: return {"head", "sampling"};
    case OpKind::kConvert:
    case OpKind::kAdd: break;
  }
  return {op.layer < 0 ? "head" : "layer", std::string(op_name(op.kind))};
}

void ProfileSampler::add(const StepPlan& plan, const StepTimes& times) {
  const std::size_t num_ops = executor_.program().ops.size(), num_run = times.op_begin_ns.size();
  num_threads_ = times.num_threads;
  open_.busy_seconds.resize(num_ops);
  open_.wait_seconds.resize(num_ops);
  open_.costs.resize(num_ops);
  open_.seconds += seconds(times.end_ns - times.begin_ns);
  open_.start_seconds += seconds((num_run == 0 ? times.end_ns : times.op_begin_ns.front()) - times.begin_ns);
  const std::vector<OpCost> costs = step_cost(executor_, plan);
  for (std::size_t i = 0; i < num_run; ++i) {
    const double whole = seconds((i + 1 < num_run ? times.op_begin_ns[i + 1] : times.end_ns) - times.op_begin_ns[i]);
    int64_t busy_ns = 0;
    for (int worker = 0; worker < times.num_threads; ++worker)
      busy_ns += times.op_busy_ns[i * static_cast<std::size_t>(times.num_threads) + static_cast<std::size_t>(worker)];
    const double busy = seconds(busy_ns) / times.num_threads;
    open_.busy_seconds[i] += busy;
    open_.wait_seconds[i] += whole - busy;
    open_.costs[i] += costs[i];
  }
}

void ProfileSampler::close_sample() {
  samples_.push_back(std::move(open_));
  open_ = {};
}

StepProfile ProfileSampler::profile(std::string_view title, const MachineBound& bound, bool per_layer) const {
  MR_CHECK(!samples_.empty(), "a profile needs a sample");
  std::vector<const Sample*> fastest;
  for (const Sample& sample : samples_) fastest.push_back(&sample);
  std::sort(fastest.begin(), fastest.end(), [](const Sample* a, const Sample* b) { return a->seconds < b->seconds; });
  fastest.resize((fastest.size() + 9) / 10);
  const double share = 1.0 / static_cast<double>(fastest.size());
  StepProfile profile{.title = fmt::format("{}, fastest {} of {}", title, fastest.size(), samples_.size()), .num_threads = num_threads_};
  const auto& ops = executor_.program().ops;
  for (const Sample* sample : fastest) {
    profile.seconds += share * sample->seconds;
    profile.start_seconds += share * sample->start_seconds;
  }
  for (std::size_t i = 0; i < ops.size(); ++i) {
    OpLabel label = op_label(executor_, ops[i]);
    if (per_layer && ops[i].layer >= 0) label = {fmt::format("layer {}", ops[i].layer), fmt::format("{}: {}", label.group, label.name)};
    auto row = std::find_if(profile.rows.begin(), profile.rows.end(),
                            [&](const ProfileRow& known) { return known.group == label.group && known.name == label.name; });
    if (row == profile.rows.end()) row = profile.rows.insert(row, {.group = label.group, .name = label.name});
    ++row->count;
    OpCost cost;
    for (const Sample* sample : fastest) {
      row->busy_seconds += share * sample->busy_seconds[i];
      row->wait_seconds += share * sample->wait_seconds[i];
      row->bound_seconds += share * bound.seconds(sample->costs[i]);
      cost += sample->costs[i];
    }
    const auto num_samples = static_cast<int64_t>(fastest.size());
    cost.weight_bytes /= num_samples;
    cost.kv_bytes /= num_samples;
    for (double& operations : cost.operations) operations *= share;
    row->cost += cost;
  }
  return profile;
}

std::string profile_table(const StepProfile& profile) {
  const auto ms = [](double time) { return 1e3 * time; };
  const auto percent = [](double part, double whole) { return whole > 0 ? 100 * part / whole : 0; };
  std::string text = fmt::format("{}: {:.3f} ms with {} thread{}\n", profile.title, ms(profile.seconds), profile.num_threads,
                                 profile.num_threads == 1 ? "" : "s");
  text += fmt::format("  {:<12}{:<22}{:>5}{:>10}{:>8}{:>10}{:>8}{:>9}{:>10}{:>10}{:>10}\n", "", "", "times", "ms", "step", "MB", "GB/s",
                      "Gop/s", "bound ms", "of bound", "wait ms");
  for (const ProfileRow& row : profile.rows) {
    const double operations = row.cost.all_operations(), busy = row.busy_seconds;
    text += fmt::format("  {:<12}{:<22}{:>5}{:>10.3f}{:>7.1f}%{:>10.3f}{:>8.1f}{:>9}{:>10.3f}{:>10}{:>10.3f}\n", row.group, row.name,
                        row.count, ms(busy), percent(busy, profile.seconds), 1e-6 * static_cast<double>(row.cost.bytes()),
                        busy > 0 ? 1e-9 * static_cast<double>(row.cost.bytes()) / busy : 0.0,
                        operations > 0 && busy > 0 ? fmt::format("{:.1f}", 1e-9 * operations / busy) : "-", ms(row.bound_seconds),
                        operations > 0 && busy > 0 ? fmt::format("{:.0f}%", percent(row.bound_seconds, busy)) : "-", ms(row.wait_seconds));
  }
  const auto line = [&](const char* what, double time) {
    text += fmt::format("  {:<39}{:>10.3f}{:>7.1f}%\n", what, ms(time), percent(time, profile.seconds));
  };
  line("waiting for one another", profile.wait_seconds());
  line("start of the step", profile.start_seconds);
  OpCost cost;
  for (const ProfileRow& row : profile.rows) cost += row.cost;
  text += fmt::format("  {:<39}{:>10.3f}{:>7.1f}%{:>10.3f}{:>8.1f}{:>9.1f}{:>10.3f}{:>9.0f}%{:>10.3f}\n", "step", ms(profile.seconds),
                      100.0, 1e-6 * static_cast<double>(cost.bytes()), 1e-9 * static_cast<double>(cost.bytes()) / profile.seconds,
                      1e-9 * cost.all_operations() / profile.seconds, ms(profile.bound_seconds()),
                      percent(profile.bound_seconds(), profile.seconds), ms(profile.wait_seconds()));
  return text;
}

json::object profile_json(const StepProfile& profile) {
  json::array rows;
  for (const ProfileRow& row : profile.rows) {
    json::object operations;
    for (std::size_t a = 0; a < kNumArithmetics; ++a) operations[arithmetic_name(static_cast<Arithmetic>(a))] = row.cost.operations[a];
    rows.push_back(json::object{{"group", row.group},
                                {"name", row.name},
                                {"count", row.count},
                                {"busy_seconds", row.busy_seconds},
                                {"wait_seconds", row.wait_seconds},
                                {"weight_bytes", row.cost.weight_bytes},
                                {"kv_bytes", row.cost.kv_bytes},
                                {"operations", std::move(operations)},
                                {"bound_seconds", row.bound_seconds}});
  }
  return {{"title", profile.title},
          {"threads", profile.num_threads},
          {"seconds", profile.seconds},
          {"start_seconds", profile.start_seconds},
          {"wait_seconds", profile.wait_seconds()},
          {"busy_seconds", profile.busy_seconds()},
          {"bound_seconds", profile.bound_seconds()},
          {"rows", std::move(rows)}};
}

}  // namespace millrace
