#include <fmt/format.h>

#include "millrace/model/program.h"

namespace millrace {
namespace {

bool reads(const Op& op, BufferId buffer) {
  return op.in == buffer || op.residual == buffer || op.shared == buffer || op.shared_gate == buffer ||
         (op.kind == OpKind::kPosition && op.out == buffer) || (op.state && op.state->reads(buffer));
}

// Whether anything after op `index` sees what it left in `buffer`.
bool read_later(const Program& program, std::size_t index, BufferId buffer) {
  for (std::size_t i = index + 1; i < program.ops.size(); ++i) {
    if (reads(program.ops[i], buffer)) return true;
    if (program.ops[i].out == buffer) return false;
  }
  return false;
}

const Buffer& buffer_of(const Program& program, BufferId id) { return program.buffers[static_cast<std::size_t>(id)]; }

// Whether it only puts values into other forms, which whoever makes them can do as well.
bool only_converts(const Op& op) { return op.kind == OpKind::kConvert && op.columns == nullptr && op.expert_columns.empty(); }

bool only_f32(const Program& program, BufferId id) { return buffer_of(program, id).forms == kF32Only; }

// The pair (ops[i], ops[i + 1]) as one operation, if a rule applies. Every rule needs that the buffer between them has no other reader.
std::optional<Op> merged(const Program& program, std::size_t i) {
  const Op &first = program.ops[i], &second = program.ops[i + 1];
  if (first.kind == OpKind::kPosition && second.kind == OpKind::kPosition && first.out == second.out && first.kv_group == second.kv_group &&
      first.kv_layer == second.kv_layer) {
    Op op = first;
    op.qk_norm |= second.qk_norm;
    op.rope |= second.rope;
    op.kv_write |= second.kv_write;
    if (second.rope) op.rope_table = second.rope_table;
    return op;
  }
  // The hidden state of a post-norm network is read as f32 by the residual, too.
  if (first.kind == OpKind::kNorm && first.in == first.out && first.residual < 0 && only_converts(second) && second.in == first.out) {
    Op op = first;
    op.out = second.out;
    op.in_place = true;
    return op;
  }
  if (second.in != first.out || first.out < 0 || read_later(program, i + 1, first.out)) return std::nullopt;
  if (only_converts(second)) {
    // A scan works group by group, and quantizes what it has only where groups fill whole blocks of 32.
    const auto is_state = [](const Op& op) {
      if (op.kind != OpKind::kScan) return op.kind == OpKind::kConvolve;
      return op.state->space->num_groups == 1 || op.state->space->num_channels / op.state->space->num_groups % 32 == 0;
    };
    const bool producer = first.kind == OpKind::kNorm || (first.kind == OpKind::kLinear && first.activation) || is_state(first);
    // Attention works head by head, so it can quantize its output only where a group's heads fill whole blocks of 32.
    const bool attention =
        first.kind == OpKind::kAttention &&
        (only_f32(program, second.out) || first.attention->num_heads / first.attention->num_kv_heads * first.attention->head_dim % 32 == 0);
    if ((producer && first.residual < 0) || attention) {
      Op op = first;
      op.out = second.out;
      return op;
    }
  }
  // Gate and up from one operation: where they read different orders of columns they are two, each with half of the segments.
  const std::size_t parts = first.mixture != nullptr ? first.mixture->experts.size() : 1;
  if (second.kind == OpKind::kActivate && first.kind == OpKind::kLinear && !first.activation && first.residual < 0 &&
      first.segments.size() == parts * (second.gated ? 2 : 1)) {
    Op op = first;
    op.activation = second.activation;
    op.gated = second.gated;
    op.gate_limit = second.gate_limit;
    op.out = second.out;
    return op;
  }
  if (second.kind == OpKind::kAdd &&
      (first.kind == OpKind::kNorm || first.kind == OpKind::kCombine || (first.kind == OpKind::kLinear && !first.activation)) &&
      first.residual < 0) {
    Op op = first;
    op.out = -1;
    op.residual = second.residual;
    op.multiplier = second.multiplier;
    return op;
  }
  return std::nullopt;
}

// Of one row of a generated token in all the forms that it is kept in.
int64_t form_bytes(const Buffer& buffer) {
  const auto has = [&](ActivationForm form) { return (buffer.forms.fast & static_cast<uint8_t>(form)) != 0; };
  int64_t bytes = 0;
  if (has(ActivationForm::kF32)) bytes += buffer.width * 4;
  if (has(ActivationForm::kInt8)) bytes += buffer.width + buffer.width / 32 * 4 + buffer.width / 16 * 2;  // codes, scales, sums
  if (has(ActivationForm::kBf16)) bytes += buffer.width * 2;
  return bytes;
}

}  // namespace

void fuse(Program& program) {
  for (std::size_t i = 0; i + 1 < program.ops.size();) {
    if (auto op = merged(program, i)) {
      // Attention writes f32 rows and then quantizes them in place, so its output keeps that form too.
      if (op->kind == OpKind::kAttention) {
        ActivationForms& forms = program.buffers[static_cast<std::size_t>(op->out)].forms;
        forms = forms | kF32Only;
      }
      program.ops[i] = std::move(*op);
      program.ops.erase(program.ops.begin() + static_cast<std::ptrdiff_t>(i) + 1);
      if (i > 0) --i;  // the merged operation may now merge with the one before
    } else {
      ++i;
    }
  }
  program.unfused.clear();
  for (std::size_t i = 0; i < program.ops.size(); ++i) {
    const Op& op = program.ops[i];
    if (op.kind != OpKind::kConvert && op.kind != OpKind::kActivate && op.kind != OpKind::kAdd) continue;
    const char* why = op.columns != nullptr || !op.expert_columns.empty()
                          ? "its columns are gathered, in the weights' act-order or without the zeros after values narrower than keys"
                      : op.kind == OpKind::kConvert ? "a group's heads do not fill blocks of 32, or the producer has another reader"
                                                    : "no producer to merge with";
    const Buffer& in = buffer_of(program, op.in);
    int64_t bytes = in.width * static_cast<int64_t>(sizeof(float));
    if (op.out >= 0) bytes += form_bytes(buffer_of(program, op.out));
    if (op.residual >= 0) bytes += 2 * in.width * static_cast<int64_t>(sizeof(float));  // read, and written
    program.unfused.push_back(
        {i, fmt::format("layer {}: {} of \"{}\": {}", op.layer, op_name(op.kind), in.name, why), bytes * in.rows_per_token});
  }
}

}  // namespace millrace
