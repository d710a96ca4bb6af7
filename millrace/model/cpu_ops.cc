// The operations of a program on the CPU. Each call computes units [begin, end) of one: rows, pairs of panels or heads.
#include <algorithm>
#include <cmath>

#include "millrace/kernels/elementwise.h"
#include "millrace/model/cpu_executor.h"

namespace millrace {
namespace {

ActivationKind kind_of(Activation activation) {
  switch (activation) {
    case Activation::kSilu: return ActivationKind::kSilu;
    case Activation::kGeluTanh: return ActivationKind::kGeluTanh;
    case Activation::kGeluErf: return ActivationKind::kGeluErf;
    case Activation::kRelu: return ActivationKind::kRelu;
    case Activation::kReluSquared: return ActivationKind::kReluSquared;
    case Activation::kQuickGelu: return ActivationKind::kQuickGelu;
    case Activation::kTanh: return ActivationKind::kTanh;
  }
  return ActivationKind::kSilu;
}

// `first`: where among the norm's weights those of x begin.
void apply_norm(Isa isa, const Norm& norm, const float* x, int64_t size, float* y, int64_t first = 0) {
  const float* weight = norm.weight.empty() ? nullptr : norm.weight.data() + first;
  if (norm.kind == Norm::Kind::kRms) {
    rms_norm_row(isa, x, weight, norm.eps, size, y);
  } else {
    layer_norm_row(isa, x, weight, norm.bias.empty() ? nullptr : norm.bias.data() + first, norm.eps, size, y);
  }
}

int64_t num_units(int64_t num_panels, int64_t unit_panels) { return (num_panels + unit_panels - 1) / unit_panels; }

}  // namespace

void CpuExecutor::embed(const Op& op, int64_t begin, int64_t end) {
  const Isa isa = options_.isa;
  for (int64_t r = begin; r < end; ++r) {
    const auto index = static_cast<std::size_t>(r);
    float* x = rows(op.out).row(r);
    weights_.embed(tokens_[index], x);
    if (op.multiplier != 1.0f) scale_row(isa, x, op.multiplier, network_.hidden_size, x);
    if (network_.token_types) Weights::add_row(*network_.token_types, plan_->token_types.empty() ? 0 : plan_->token_types[index], x);
    if (network_.positions) Weights::add_row(*network_.positions, positions_[index] + network_.position_offset, x);
    if (!network_.sinusoids.empty())
      add_row(isa, network_.sinusoids.data() + positions_[index] * network_.hidden_size, network_.hidden_size, x);
    if (op.norm != nullptr) apply_norm(isa, *op.norm, x, network_.hidden_size, x);
    const bool rope_long = plan_->sequences[static_cast<std::size_t>(sequence_of_row_[index])].rope_long;
    for (std::size_t t = 0; t < program_.ropes.size(); ++t) {
      const Rope& rope = *program_.ropes[t];
      const bool use_long = rope_long && rope.short_length > 0;
      const auto& inv_freq = use_long ? rope.long_inv_freq : rope.inv_freq;
      const float factor = use_long ? rope.long_attention_factor : rope.attention_factor;
      const int64_t half = rope.rotary_dim / 2;
      float *cosines = rope_cos_[t].as<float>() + r * half, *sines = rope_sin_[t].as<float>() + r * half;
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(positions_[index]) * inv_freq[static_cast<std::size_t>(i)];
        cosines[i] = std::cos(angle) * factor;
        sines[i] = std::sin(angle) * factor;
      }
    }
  }
}

void CpuExecutor::norm(const Op& op, int64_t begin, int64_t end, Rows& out, WorkerScratch& scratch) {
  Rows& in = rows(op.in);
  float* temporary = scratch.row.as<float>();
  for (int64_t r = begin; r < end; ++r) {
    if (op.residual >= 0) {
      apply_norm(options_.isa, *op.norm, in.row(r), in.width, temporary);
      if (op.multiplier != 1.0f) scale_row(options_.isa, temporary, op.multiplier, in.width, temporary);
      add_row(options_.isa, temporary, in.width, out.row(r));
      continue;
    }
    float* y = op.in_place ? in.row(r) : out.has(ActivationForm::kF32) ? out.row(r) : temporary;
    const int64_t size = in.width / op.norm_groups;
    for (int64_t first = 0; first < in.width; first += size) apply_norm(options_.isa, *op.norm, in.row(r) + first, size, y + first, first);
    store_forms(out, r, 0, y, in.width);
  }
}

void CpuExecutor::convert(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch) {
  Rows &in = rows(op.in), &out = rows(op.out);
  std::size_t expert = 0;  // whose row this is: rows lie expert by expert
  for (int64_t r = begin; r < end; ++r) {
    const float* x = in.row(r);
    const std::vector<int32_t>* columns = op.columns;
    if (!op.expert_columns.empty()) {
      while (expert_begin_[expert + 1] <= r) ++expert;
      columns = op.expert_columns[expert];
    }
    if (columns != nullptr) {
      float* gathered = scratch.row.as<float>();
      for (int64_t i = 0; i < out.width; ++i) gathered[i] = x[(*columns)[static_cast<std::size_t>(i)]];
      x = gathered;
    }
    store_forms(out, r, 0, x, out.width);
  }
}

// With an activation the gate's and the up projection's panels are walked together, otherwise the segments one after the other.
int64_t CpuExecutor::linear_units(const Op& op, std::span<const LinearSegment> segments) const {
  if (op.activation) return num_units(weights_[segments.back().weight].num_panels(), kTilePanels);
  int64_t units = 0;
  for (const LinearSegment& segment : segments) units += num_units(weights_[segment.weight].num_panels(), kTilePanels);
  return units;
}

// The rows that a linear operation reads: of its buffer, or this worker's own, computed on its first visit to the stage.
Activations CpuExecutor::linear_input(const Stage& stage, WorkerScratch& scratch) {
  Rows& in = rows(stage.op->in);
  const int64_t count = num_rows(in);
  if (stage.absorbs == nullptr || count > kAbsorbedRows) return in.view(count);
  if (scratch.absorbed_step != step_ || scratch.absorbed_op != stage.op) {
    norm(*stage.absorbs, 0, count, scratch.absorbed, scratch);
    scratch.absorbed_step = step_;
    scratch.absorbed_op = stage.op;
  }
  return scratch.absorbed.view(count);
}

void CpuExecutor::linear(const Stage& stage, int64_t begin, int64_t end, WorkerScratch& scratch) {
  const Op& op = *stage.op;
  const Activations x = linear_input(stage, scratch);
  if (op.mixture == nullptr) return linear_part(op, {x, op.segments, 0, x.num_rows}, begin, end, scratch);
  // Experts are of one shape, so units are numbered expert by expert, of those that some token takes.
  const int64_t units = linear_units(op, expert_segments(op, 0));
  for (int64_t first = begin / units * units; first < end; first += units) {
    const int64_t expert = active_experts_[static_cast<std::size_t>(first / units)];
    const LinearPart part{x, expert_segments(op, expert), expert_begin_[static_cast<std::size_t>(expert)],
                          expert_begin_[static_cast<std::size_t>(expert) + 1]};
    linear_part(op, part, std::max(begin, first) - first, std::min(end, first + units) - first, scratch);
  }
}

void CpuExecutor::linear_part(const Op& op, const LinearPart& part, int64_t begin, int64_t end, WorkerScratch& scratch) {
  if (op.activation)
    return activated_panels(op, part, begin * kTilePanels, std::min(weights_[part.segments.back().weight].num_panels(), end * kTilePanels),
                            scratch);
  int64_t first = 0;  // unit number of the segment's first panel
  for (const LinearSegment& segment : part.segments) {
    const int64_t panels = weights_[segment.weight].num_panels(), count = num_units(panels, kTilePanels);
    const int64_t from = std::max(begin, first) - first, to = std::min(end, first + count) - first;
    if (from < to) linear_panels(op, part, segment, from * kTilePanels, std::min(panels, to * kTilePanels), scratch);
    first += count;
  }
}

int64_t CpuExecutor::visit_panels(const Op& op, int64_t num_rows) const {
  // Fewer rows than the tile has room for leave it to more panels: what a visit costs beyond its panels counts for a single row.
  if (!has_prompt_rows_) return std::clamp(kTileRows / num_rows, int64_t{1}, kFewRowsVisit) * kTilePanels;
  return op.gated ? kPromptPanels / 2 : kPromptPanels;
}

template <class Visit>
void CpuExecutor::for_row_runs(const Op& op, const LinearPart& part, int64_t rows_max, const Visit& visit) const {
  const Rows& in = buffers_[static_cast<std::size_t>(op.in)];
  const bool one_path = op.exact || in.output_rows;
  const auto path_of_input = [&](int64_t row) { return op.exact ? GemmPath::kExact : path_of(in, row); };
  for (int64_t row = part.row_begin; row < part.row_end;) {
    const GemmPath path = path_of_input(row);
    const int64_t most = std::min(part.row_end, row + (path == GemmPath::kPrompt ? kPromptRows : rows_max));
    int64_t end = one_path ? most : row + 1;
    while (end < most && path_of_input(end) == path) ++end;
    visit(path, row, end);
    row = end;
  }
}

void CpuExecutor::linear_panels(const Op& op, const LinearPart& part, const LinearSegment& segment, int64_t panel_begin, int64_t panel_end,
                                WorkerScratch& scratch) {
  const PackedMatrix& weight = weights_[segment.weight];
  const Isa isa = options_.isa;
  const auto columns_of = [&](int64_t begin, int64_t end) { return std::min(end * kPanelRows, weight.rows()) - begin * kPanelRows; };
  const float* bias = segment.bias.empty() ? nullptr : segment.bias.data() + panel_begin * kPanelRows;
  if (op.residual < 0) {
    Rows& out = rows(op.out);
    const int64_t column = segment.column + panel_begin * kPanelRows, columns = columns_of(panel_begin, panel_end);
    for_row_runs(op, part, part.row_end - part.row_begin, [&](GemmPath path, int64_t row, int64_t row_end) {
      gemm(isa, path, weight, part.x, panel_begin, panel_end, row, row_end, out.row(row) + column, out.f32_stride,
           scratch.gemm.as<float>());
    });
    for (int64_t r = part.row_begin; r < part.row_end; ++r) {
      float* y = out.row(r) + column;
      if (bias != nullptr) add_row(isa, bias, columns, y);
      if (op.clip) clip_row(isa, y, *op.clip, columns);
      if (op.scale != 1.0f) scale_row(isa, y, op.scale, columns, y);
      if (op.softcap) softcap_row(isa, y, *op.softcap, columns);
    }
    return;
  }
  Rows& residual = rows(op.residual);
  float* tile = scratch.tile.as<float>();
  const int64_t visit = visit_panels(op, part.row_end - part.row_begin), stride = visit * kPanelRows;
  for (int64_t panel = panel_begin; panel < panel_end; panel += visit) {
    const int64_t end = std::min(panel_end, panel + visit), columns = columns_of(panel, end);
    for_row_runs(op, part, kTileRows, [&](GemmPath path, int64_t row, int64_t row_end) {
      gemm(isa, path, weight, part.x, panel, end, row, row_end, tile, stride, scratch.gemm.as<float>());
      for (int64_t r = row; r < row_end; ++r) {
        float* y = tile + (r - row) * stride;
        if (bias != nullptr) add_row(isa, bias + (panel - panel_begin) * kPanelRows, columns, y);
        if (op.multiplier != 1.0f) scale_row(isa, y, op.multiplier, columns, y);
        add_row(isa, y, columns, residual.row(r) + panel * kPanelRows);
      }
    });
  }
}

// A row of the tile has the up projection's columns, then the gate's.
void CpuExecutor::activated_panels(const Op& op, const LinearPart& part, int64_t panel_begin, int64_t panel_end, WorkerScratch& scratch) {
  Rows& out = rows(op.out);
  const LinearSegment &gate = part.segments.front(), &up = part.segments.back();
  const PackedMatrix &up_weight = weights_[up.weight], &gate_weight = weights_[gate.weight];
  const Isa isa = options_.isa;
  const ActivationKind kind = kind_of(*op.activation);
  const int64_t visit = visit_panels(op, part.row_end - part.row_begin), half = visit * kPanelRows, stride = op.gated ? 2 * half : half;
  float* tile = scratch.tile.as<float>();
  for (int64_t begin = panel_begin; begin < panel_end; begin += visit) {
    const int64_t end = std::min(panel_end, begin + visit), column = begin * kPanelRows,
                  columns = std::min(end * kPanelRows, up_weight.rows()) - column;
    for_row_runs(op, part, kTileRows, [&](GemmPath path, int64_t row, int64_t row_end) {
      gemm(isa, path, up_weight, part.x, begin, end, row, row_end, tile, stride, scratch.gemm.as<float>());
      if (op.gated) gemm(isa, path, gate_weight, part.x, begin, end, row, row_end, tile + half, stride, scratch.gemm.as<float>());
      for (int64_t r = row; r < row_end; ++r) {
        float *y = tile + (r - row) * stride, *g = y + half;
        if (!up.bias.empty()) add_row(isa, up.bias.data() + column, columns, y);
        if (op.gated) {
          if (!gate.bias.empty()) add_row(isa, gate.bias.data() + column, columns, g);
          if (op.gate_limit) limit_gated_row(isa, g, y, op.gate_limit->limit, op.gate_limit->offset, columns);
          activate_mul_row(isa, kind, g, y, columns, y);
        } else {
          activate_row(isa, kind, y, columns, y);
        }
        store_forms(out, r, column, y, columns);
      }
    });
  }
}

// Every head's key is the shared part with rope, then its own; its value is padded with zeros to the size of a key.
void CpuExecutor::expand(const Op& op, int64_t begin, int64_t end) {
  const AttentionLayer& layer = *op.attention;
  const LatentAttention& latent = *layer.latent;
  const int64_t size = layer.head_dim, own = size - latent.rope_dim,
                values = (latent.k_up.weight.rows() + kPanelRows - 1) / kPanelRows * kPanelRows;
  for (int64_t r = begin; r < end; ++r) {
    const float *shared = rows(op.shared).row(r), *from = rows(op.in).row(r);
    float* to = rows(op.out).row(r);
    for (int64_t head = 0; head < layer.num_heads; ++head) {
      float *k = to + op.k_column + head * size, *v = to + op.v_column + head * size;
      std::copy_n(shared, latent.rope_dim, k);
      std::copy_n(from + head * own, own, k + latent.rope_dim);
      std::copy_n(from + values + head * latent.value_dim, latent.value_dim, v);
      std::fill_n(v + latent.value_dim, size - latent.value_dim, 0.0f);
    }
  }
}

void CpuExecutor::heads_norm(const Op& op, int64_t begin, int64_t end) {
  const AttentionLayer& layer = *op.attention;
  for (int64_t r = begin; r < end; ++r) {
    float *q = rows(op.out).row(r), *k = q + op.k_column;
    if (layer.q_norm) apply_norm(options_.isa, *layer.q_norm, q, layer.num_heads * layer.head_dim, q);
    if (layer.k_norm) apply_norm(options_.isa, *layer.k_norm, k, layer.num_kv_heads * layer.head_dim, k);
  }
}

void CpuExecutor::position(const Op& op, int64_t begin, int64_t end) {
  const int64_t heads = op.attention->num_heads + op.attention->num_kv_heads;
  for (int64_t unit = begin; unit < end; ++unit) position_head(op, unit / heads, unit % heads);
}

// Head `head` of row `r`: the query heads, then the keys'. A value is stored with its key.
void CpuExecutor::position_head(const Op& op, int64_t r, int64_t head) {
  const AttentionLayer& layer = *op.attention;
  const int64_t size = layer.head_dim, kv_head = head - layer.num_heads;
  const bool is_query = kv_head < 0;
  const Isa isa = options_.isa;
  float* row = rows(op.out).row(r);
  float* vector = is_query ? row + head * size : row + op.k_column + kv_head * size;
  if (op.qk_norm) {
    const auto& norm = is_query ? layer.q_norm : layer.k_norm;
    const int64_t first = layer.head_norm == HeadNorm::kEachHead ? (is_query ? head : kv_head) * size : 0;
    if (norm) apply_norm(isa, *norm, vector, size, vector, first);
  }
  if (op.rope) {
    const auto t = static_cast<std::size_t>(op.rope_table);
    const Rope& rope = *program_.ropes[t];
    const int64_t half = rope.rotary_dim / 2;
    rope_head(isa, vector, rope_cos_[t].as<float>() + r * half, rope_sin_[t].as<float>() + r * half, rope.rotary_dim,
              layer.rope->pairing == Rope::Pairing::kInterleaved);
  }
  if (op.kv_write && !is_query) {
    const int32_t position = positions_[static_cast<std::size_t>(r)];
    const auto blocks = block_table(op.kv_group, sequence_of_row_[static_cast<std::size_t>(r)]);
    kv_write(isa, kv_view(op), blocks[static_cast<std::size_t>(position / kKvBlockTokens)], position % kKvBlockTokens, kv_head, vector,
             row + op.v_column + kv_head * size);
  }
}

KvView CpuExecutor::kv_view(const Op& op) {
  const auto g = static_cast<std::size_t>(op.kv_group);
  return {kv_base_[g] + op.kv_layer * kv_geometry_[g].layer_bytes(), program_.kv_groups[g].block_bytes, kv_geometry_[g]};
}

std::span<const int32_t> CpuExecutor::block_table(int32_t group, int32_t sequence) const {
  if (info_.is_encoder && !program_.kv_groups[static_cast<std::size_t>(group)].cross) {
    const auto first = static_cast<std::size_t>(step_block_begin_[static_cast<std::size_t>(sequence)]);
    const auto last = static_cast<std::size_t>(step_block_begin_[static_cast<std::size_t>(sequence) + 1]);
    return {step_blocks_.data() + first, last - first};
  }
  const std::size_t entry = static_cast<std::size_t>(group) * plan_->sequences.size() + static_cast<std::size_t>(sequence);
  const auto begin = static_cast<std::size_t>(plan_->table_begin[entry]), end = static_cast<std::size_t>(plan_->table_begin[entry + 1]);
  return {plan_->block_ids.data() + begin, end - begin};
}

// A unit of attention is a tile of query rows and one kv head. Where there are too few of them to keep the workers busy, a decoding row
// is split over segments of its keys; the partial results go to partials_ and are merged in order (kernels/attention.h).
void CpuExecutor::plan_attention() {
  for (std::size_t g = 0; g < attention_items_.size(); ++g) {
    auto& items = attention_items_[g];
    auto& merges = attention_merges_[g];
    items.clear();
    merges.clear();
    const int64_t num_kv_heads = program_.kv_groups[g].num_kv_heads;
    int64_t num_tiles = 0, segments_max = 0;
    for (const auto& sequence : plan_->sequences)
      num_tiles += num_kv_heads * num_units(sequence.row_end - sequence.row_begin, kAttentionRows);
    const bool split = num_tiles < 4 * pool_.num_threads();
    bool one_item = true;
    for (std::size_t s = 0; s < plan_->sequences.size(); ++s) {
      const auto& sequence = plan_->sequences[s];
      const int32_t count = sequence.row_end - sequence.row_begin;
      AttentionArgs args{.num_rows = count, .first_position = sequence.first_position, .window = program_.kv_groups[g].window};
      if (program_.kv_groups[g].cross) args.num_keys = sequence.num_source_tokens;
      const int64_t segments = count == 1 && split ? attention_num_segments(args, 0) : 1;
      // An item's rows are computed in one way.
      const int32_t of_prompt = info_.prompt_differs ? std::clamp(sequence.num_prompt_tokens - sequence.first_position, 0, count) : 0;
      one_item = one_item && segments <= 1 && count <= kAttentionRows && (of_prompt == 0 || of_prompt == count);
      for (int32_t kv_head = 0; kv_head < num_kv_heads; ++kv_head) {
        if (segments > 1) {
          merges.push_back(static_cast<int32_t>(items.size()));
          for (int32_t segment = 0; segment < segments; ++segment) items.push_back({static_cast<int32_t>(s), 0, 1, kv_head, segment});
          segments_max = std::max(segments_max, segments);
          continue;
        }
        for (int32_t row = 0; row < count;) {
          const auto end = static_cast<int32_t>(std::min<int64_t>(row < of_prompt ? of_prompt : count, row + kAttentionRows));
          items.push_back({static_cast<int32_t>(s), row, end, kv_head, -1});
          row = end;
        }
      }
    }
    heads_have_one_item_[g] = one_item;
    num_segments_[g] = segments_max;
    if (segments_max > 0) {
      const auto floats = static_cast<int64_t>(plan_->sequences.size()) * num_kv_heads * segments_max * partial_floats_[g];
      if (partials_.size() < static_cast<std::size_t>(floats) * sizeof(float))
        partials_ = AlignedBuffer(static_cast<std::size_t>(2 * floats) * sizeof(float));
    }
  }
}

AttentionArgs CpuExecutor::attention_args(const Op& op, int32_t index) {
  const AttentionLayer& layer = *op.attention;
  const auto& sequence = plan_->sequences[static_cast<std::size_t>(index)];
  Rows &in = rows(op.in), &out = rows(op.out);
  AttentionArgs args;
  args.q = in.row(sequence.row_begin);
  args.q_stride = in.f32_stride;
  args.out = out.row(sequence.row_begin);
  args.out_stride = out.f32_stride;
  args.num_rows = sequence.row_end - sequence.row_begin;
  args.num_heads = layer.num_heads;
  args.first_position = sequence.first_position;
  args.blocks = block_table(op.kv_group, index);
  if (!layer.causal) args.num_keys = layer.cross ? sequence.num_source_tokens : args.num_rows;
  args.scale = layer.scale;
  args.softcap = layer.softcap;
  args.window = layer.window;
  args.alibi_slopes = layer.alibi_slopes.empty() ? nullptr : layer.alibi_slopes.data();
  if (layer.relative_bias) {
    args.relative_bias = layer.relative_bias->table.data();
    args.relative_reach = layer.relative_bias->reach;
  }
  args.sinks = layer.sinks.empty() ? nullptr : layer.sinks.data();
  return args;
}

int64_t CpuExecutor::partial_floats(const Op& op) const {
  // partial_floats_ is the group's largest; a layer with fewer heads packs its partials more tightly.
  return op.attention->num_heads / op.attention->num_kv_heads * (op.attention->head_dim + 2);
}

float* CpuExecutor::partials_of(const Op& op, const AttentionItem& item) {
  const auto g = static_cast<std::size_t>(op.kv_group);
  return partials_.as<float>() + (item.sequence * op.attention->num_kv_heads + item.kv_head) * num_segments_[g] * partial_floats_[g];
}

void CpuExecutor::finish_rows(const Op& op, const AttentionItem& item) {
  Rows& out = rows(op.out);
  if (out.forms == kF32Only) return;
  const int64_t group_columns = op.attention->num_heads / op.attention->num_kv_heads * op.attention->head_dim;
  const int64_t first = plan_->sequences[static_cast<std::size_t>(item.sequence)].row_begin, column = item.kv_head * group_columns;
  for (int64_t r = first + item.row_begin; r < first + item.row_end; ++r) store_forms(out, r, column, out.row(r) + column, group_columns);
}

void CpuExecutor::attention(const Stage& stage, int64_t begin, int64_t end, WorkerScratch& scratch) {
  const Op& op = *stage.op;
  const int64_t num_heads = op.attention->num_heads, group_size = num_heads / op.attention->num_kv_heads;
  const bool absorbs_position = stage.absorbs != nullptr && heads_have_one_item_[static_cast<std::size_t>(op.kv_group)];
  const KvView kv = kv_view(op);
  for (int64_t i = begin; i < end; ++i) {
    const AttentionItem& item = attention_items_[static_cast<std::size_t>(op.kv_group)][static_cast<std::size_t>(i)];
    AttentionArgs args = attention_args(op, item.sequence);
    const int64_t first = plan_->sequences[static_cast<std::size_t>(item.sequence)].row_begin;
    args.of_prompt = path_of_row_[static_cast<std::size_t>(first + item.row_begin)] == GemmPath::kPrompt;
    if (absorbs_position) {
      for (int64_t row = first + item.row_begin; row < first + item.row_end; ++row) {
        for (int64_t head = item.kv_head * group_size; head < (item.kv_head + 1) * group_size; ++head)
          position_head(*stage.absorbs, row, head);
        position_head(*stage.absorbs, row, num_heads + item.kv_head);
      }
    }
    if (item.segment >= 0) {
      float* partial = partials_of(op, item) + item.segment * partial_floats(op);
      millrace::attention_partial(options_.isa, kv, args, item.row_begin, item.kv_head, item.segment, partial,
                                  scratch.attention.as<float>());
    } else {
      millrace::attention(options_.isa, kv, args, item.row_begin, item.row_end, item.kv_head, scratch.attention.as<float>());
      finish_rows(op, item);
    }
  }
}

void CpuExecutor::merge(const Op& op, int64_t begin, int64_t end) {
  const auto g = static_cast<std::size_t>(op.kv_group);
  for (int64_t i = begin; i < end; ++i) {
    const AttentionItem& item = attention_items_[g][static_cast<std::size_t>(attention_merges_[g][static_cast<std::size_t>(i)])];
    const AttentionArgs args = attention_args(op, item.sequence);
    attention_merge(options_.isa, kv_view(op), args, item.row_begin, item.kv_head, partials_of(op, item),
                    attention_num_segments(args, item.row_begin));
    finish_rows(op, item);
  }
}

void CpuExecutor::activate(const Op& op, int64_t begin, int64_t end) {
  Rows &in = rows(op.in), &out = rows(op.out);
  const int64_t up_column = op.gated ? in.width / 2 : 0;
  for (int64_t r = begin; r < end; ++r) {
    if (op.gated) {
      if (op.gate_limit)
        limit_gated_row(options_.isa, in.row(r), in.row(r) + up_column, op.gate_limit->limit, op.gate_limit->offset, out.width);
      activate_mul_row(options_.isa, kind_of(*op.activation), in.row(r), in.row(r) + up_column, out.width, out.row(r));
    } else {
      activate_row(options_.isa, kind_of(*op.activation), in.row(r), out.width, out.row(r));
    }
  }
}

void CpuExecutor::add(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch) {
  Rows& in = rows(op.in);
  float* temporary = scratch.row.as<float>();
  for (int64_t r = begin; r < end; ++r) {
    const float* x = in.row(r);
    if (op.multiplier != 1.0f) {
      scale_row(options_.isa, x, op.multiplier, in.width, temporary);
      x = temporary;
    }
    add_row(options_.isa, x, in.width, rows(op.residual).row(r));
  }
}

void CpuExecutor::gather(const Op& op, int64_t begin, int64_t end) {
  Rows& out = rows(op.out);
  for (int64_t i = begin; i < end; ++i) {
    const float* x = rows(op.in).row(plan_->outputs[static_cast<std::size_t>(i)].row);
    std::copy(x, x + out.width, out.row(i));
  }
}

// The rows of a text are summed in their order: the result does not depend on the step's other texts.
void CpuExecutor::pool(const Op& op, int64_t begin, int64_t end) {
  Rows &in = rows(op.in), &out = rows(op.out);
  for (int64_t i = begin; i < end; ++i) {
    const int32_t row = plan_->outputs[static_cast<std::size_t>(i)].row;
    const auto& sequence = plan_->sequences[static_cast<std::size_t>(sequence_of_row_[static_cast<std::size_t>(row)])];
    const float* first = in.row(op.pooling == Pooling::kLast ? sequence.row_end - 1 : sequence.row_begin);
    float* y = out.row(i);
    std::copy(first, first + out.width, y);
    if (op.pooling != Pooling::kMean) continue;
    for (int32_t r = sequence.row_begin + 1; r < sequence.row_end; ++r) add_row(options_.isa, in.row(r), out.width, y);
    scale_row(options_.isa, y, 1.0f / static_cast<float>(sequence.row_end - sequence.row_begin), out.width, y);
  }
}

void CpuExecutor::sample(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch) {
  for (int64_t i = begin; i < end; ++i) {
    const auto index = static_cast<std::size_t>(i);
    SampledToken& token = output_.tokens[index];
    const SamplingInput* input = plan_->outputs[index].sampling;
    if (input == nullptr) {
      token.id = -1;
      continue;
    }
    const std::span<const float> logits{rows(op.in).row(i), static_cast<std::size_t>(info_.sampled_vocab_size)};
    millrace::sample(logits, *input, scratch.sampling, token);
  }
}

}  // namespace millrace
