#include "millrace/base/round_up.h"
#include "millrace/model/cpu_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <cmath>

namespace millrace {
namespace {

std::size_t bytes_of(int64_t count, std::size_t size) { return static_cast<std::size_t>(count) * size; }

KvFormat kv_format(KvDType dtype) {
  switch (dtype) {
    case KvDType::kF32: return KvFormat::kF32;
    case KvDType::kBf16: return KvFormat::kBf16;
    case KvDType::kInt8: return KvFormat::kInt8;
    case KvDType::kFp8E4M3: return KvFormat::kFp8E4M3;
    case KvDType::kInt4: return KvFormat::kInt4;
  }
  return KvFormat::kF32;
}

}  // namespace

Activations CpuExecutor::Rows::view(int64_t num_rows) const {
  Activations a{.num_rows = num_rows, .k = width};
  if (has(ActivationForm::kF32)) a.f32 = f32.as<float>(), a.f32_stride = f32_stride;
  if (has(ActivationForm::kInt8)) a.codes = codes.as<int8_t>(), a.scales = scales.as<float>(), a.sums16 = sums16.as<int16_t>();
  if (has(ActivationForm::kBf16)) a.bf16 = bf16.as<uint16_t>();
  return a;
}

Result<std::unique_ptr<CpuExecutor>> CpuExecutor::create(const Network& network, std::shared_ptr<const Weights> weights, Program program,
                                                         ThreadPool& pool, const CpuExecutorOptions& options) {
  MR_CHECK(options.max_rows > 0, "a step needs room for at least one row");
  return std::unique_ptr<CpuExecutor>(new CpuExecutor(network, std::move(weights), std::move(program), pool, options));
}

CpuExecutor::CpuExecutor(const Network& network, std::shared_ptr<const Weights> weights, Program program, ThreadPool& pool,
                         const CpuExecutorOptions& options)
    : network_(network),
      weights_ptr_(std::move(weights)),
      weights_(*weights_ptr_),
      program_(std::move(program)),
      pool_(pool),
      options_(options) {
  info_.vocab_size = network.vocab_size;
  info_.sampled_vocab_size = options.sampled_vocab_size > 0 ? std::min(options.sampled_vocab_size, network.vocab_size) : network.vocab_size;
  info_.max_positions = network.max_positions;
  info_.prompt_differs = options.path == GemmPath::kFast && has_prompt_path(options.isa);
  for (const Rope* rope : program_.ropes) info_.rope_short_length = std::max(info_.rope_short_length, rope->short_length);
  for (KvGroupSpec& group : program_.kv_groups) {
    const KvGeometry geometry{kv_format(options.kv_dtype), group.num_kv_heads, group.head_dim};
    kv_geometry_.push_back(geometry);
    group.block_bytes =
        group.state_floats > 0 ? group.state_floats * static_cast<int64_t>(sizeof(float)) : group.num_layers * geometry.layer_bytes();
  }
  info_.hidden_size = network.hidden_size;
  info_.is_encoder = network.is_encoder();
  info_.output_size = network.pooled ? network.pooled->size : network.feeds_decoder ? 0 : network.vocab_size;
  info_.num_token_types = network.token_types ? network.token_types->rows() : 0;
  if (!info_.is_encoder) info_.kv_groups = program_.kv_groups;
  const std::size_t num_groups = program_.kv_groups.size();
  kv_memory_.resize(num_groups);
  kv_base_.resize(num_groups, nullptr);
  attention_items_.resize(num_groups);
  num_segments_.resize(num_groups);
  attention_merges_.resize(num_groups);
  heads_have_one_item_.resize(num_groups);
  plan_buffers();
  plan_stages();
  plan_upcoming();
}

void CpuExecutor::plan_buffers() {
  const int64_t max_rows = options_.max_rows;
  int64_t width_max = 0, k_max = 0, attention_floats = 0, state_floats = 0;
  // Columns beyond a buffer's width stay zero: whole panels are written, whole blocks are read.
  buffers_.resize(program_.buffers.size());
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    const Buffer& spec = program_.buffers[i];
    Rows& buffer = buffers_[i];
    buffer.width = spec.width;
    buffer.forms = spec.forms;
    buffer.output_rows = spec.output_rows;
    buffer.rows_per_token = spec.rows_per_token;
    buffer.f32_stride = round_up(spec.width, kPanelRows);
    buffer.k_padded = round_up(spec.width, 32);
    width_max = std::max(width_max, buffer.k_padded);
  }
  // Which buffers an operation left after fusion still touches; the others get no memory.
  std::vector<bool> used(buffers_.size(), false);
  for (const Op& op : program_.ops) {
    for (BufferId id : {op.in, op.out, op.residual, op.shared, op.shared_gate}) {
      if (id >= 0) used[static_cast<std::size_t>(id)] = true;
    }
    for (std::size_t id = 0; op.state && id < used.size(); ++id) used[id] = used[id] || op.state->reads(static_cast<BufferId>(id));
    state_floats = std::max(state_floats, state_scratch_floats(op));
    for (const LinearSegment& segment : op.segments) k_max = std::max(k_max, weights_[segment.weight].k());
  }
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    if (!used[i]) buffers_[i].forms = {};
    if (!buffers_[i].output_rows) activation_bytes_ += allocate(buffers_[i], max_rows * buffers_[i].rows_per_token);
  }
  reserve_outputs(1);

  for (const Rope* rope : program_.ropes) {
    rope_cos_.emplace_back(bytes_of(max_rows * (rope->rotary_dim / 2), sizeof(float)));
    rope_sin_.emplace_back(bytes_of(max_rows * (rope->rotary_dim / 2), sizeof(float)));
  }
  partial_floats_.resize(program_.kv_groups.size());
  for (const Op& op : program_.ops) {
    if (op.kind == OpKind::kAttention) {
      const auto g = static_cast<std::size_t>(op.kv_group);
      const int64_t heads = op.attention->num_heads / op.attention->num_kv_heads;
      partial_floats_[g] = std::max(partial_floats_[g], heads * (op.attention->head_dim + 2));
      attention_floats = std::max(attention_floats, attention_scratch_floats(kv_geometry_[g], op.attention->num_heads));
    }
  }
  for (const Op& op : program_.ops) {
    if (op.kind != OpKind::kRoute) continue;
    const RoutingRule& rule = op.mixture->rule;
    const auto places = std::max(routed_experts_.size(), static_cast<std::size_t>(max_rows * rule.experts_per_token));
    for (auto* list : {&routed_experts_, &routed_places_, &place_tokens_}) list->resize(places);
    routed_weights_.resize(places);
    expert_begin_.resize(std::max(expert_begin_.size(), static_cast<std::size_t>(rule.num_experts) + 1));
    active_experts_.reserve(static_cast<std::size_t>(rule.num_experts));
  }
  scratch_.resize(static_cast<std::size_t>(pool_.num_threads()));
  int64_t tile_floats = 2 * kTileRows * kTilePanels * kPanelRows;  // the gate's and the up projection's
  if (info_.prompt_differs) tile_floats = std::max(tile_floats, std::min(max_rows, kPromptRows) * kPromptPanels * kPanelRows);
  for (const auto* tables : {&rope_cos_, &rope_sin_}) {
    for (const AlignedBuffer& table : *tables) activation_bytes_ += static_cast<int64_t>(table.size());
  }
  for (WorkerScratch& scratch : scratch_) {
    scratch.gemm = AlignedBuffer(bytes_of(round_up(k_max, 32) * kPanelRows, sizeof(float)));
    scratch.tile = AlignedBuffer(bytes_of(tile_floats, sizeof(float)));
    scratch.attention = AlignedBuffer(bytes_of(attention_floats, sizeof(float)));
    scratch.row = AlignedBuffer(bytes_of(width_max, sizeof(float)));
    scratch.state = AlignedBuffer(bytes_of(state_floats, sizeof(float)));
    for (const AlignedBuffer* buffer : {&scratch.gemm, &scratch.tile, &scratch.attention, &scratch.row, &scratch.state})
      activation_bytes_ += static_cast<int64_t>(buffer->size());
  }
}

void CpuExecutor::plan_stages() {
  // Whether nobody reads what `reader` read before it is written again.
  const auto is_last_reader = [this](const Op& reader) {
    for (const Op* op = &reader + 1; op != program_.ops.data() + program_.ops.size(); ++op) {
      if (op->in == reader.in) return false;
      if (op->out == reader.in) return true;
    }
    return true;
  };
  const Rows* normed = nullptr;  // what a worker's copy of a norm looks like
  for (const Op& op : program_.ops) {
    Stage* before = stages_.empty() ? nullptr : &stages_.back();
    Stage stage{.op = &op};
    if (before != nullptr && op.kind == OpKind::kLinear && before->op->kind == OpKind::kNorm && before->op->residual < 0 &&
        !before->op->in_place && before->op->out == op.in && is_last_reader(op)) {
      const Rows& out = rows(op.in);
      if (normed == nullptr) normed = &out;
      before->absorbable = out.width == normed->width && out.forms == normed->forms;
    }
    if (before != nullptr && op.kind == OpKind::kAttention && before->op->kind == OpKind::kPosition && before->op->kv_write)
      before->absorbable = true;
    if (before != nullptr && before->absorbable) stage.absorbs = before->op;
    stages_.push_back(stage);
    if (op.kind == OpKind::kAttention) stages_.push_back({.op = &op, .merges = true});
  }
  if (normed == nullptr) return;
  for (WorkerScratch& scratch : scratch_) {
    Rows& copy = scratch.absorbed;
    copy.width = normed->width, copy.f32_stride = normed->f32_stride, copy.k_padded = normed->k_padded, copy.forms = normed->forms;
    activation_bytes_ += allocate(copy, kAbsorbedRows);
  }
}

// After the last operation comes the first of the next step.
void CpuExecutor::plan_upcoming() {
  if (pool_.num_threads() == 1) return;
  const Op* next = nullptr;
  for (std::size_t i = 2 * stages_.size(); i-- > 0;) {
    Stage& stage = stages_[i % stages_.size()];
    stage.upcoming.clear();
    for (int worker = 0; next != nullptr && worker < pool_.num_threads(); ++worker) stage.upcoming.push_back(first_weights(*next, worker));
    if (stage.op->kind == OpKind::kLinear && stage.op->mixture == nullptr) next = stage.op;
  }
}

ThreadPool::Upcoming CpuExecutor::first_weights(const Op& op, int worker) const {
  constexpr int64_t kBytes = 64 << 10;
  const int64_t units = linear_units(op, op.segments), chunk = units_per_chunk(op, units), chunks = (units + chunk - 1) / chunk;
  int64_t panel = chunks * worker / pool_.num_threads() * chunk * kTilePanels;  // the beginning of the worker's share (ThreadPool)
  const auto from = [](const PackedMatrix& weight, int64_t first, int64_t bytes) -> std::span<const std::byte> {
    if (first >= weight.num_panels()) return {};
    return {weight.panel(first), static_cast<std::size_t>(std::min(bytes, (weight.num_panels() - first) * weight.panel_bytes()))};
  };
  if (op.activation && op.gated)
    return {from(weights_[op.segments.back().weight], panel, kBytes / 2), from(weights_[op.segments.front().weight], panel, kBytes / 2)};
  for (const LinearSegment& segment : op.segments) {
    const PackedMatrix& weight = weights_[segment.weight];
    if (panel < weight.num_panels()) return {from(weight, panel, kBytes), {}};
    panel -= round_up(weight.num_panels(), kTilePanels);
  }
  return {};
}

int64_t CpuExecutor::allocate(Rows& buffer, int64_t capacity) {
  buffer.capacity = capacity;
  if (buffer.has(ActivationForm::kF32)) buffer.f32 = AlignedBuffer(bytes_of(capacity * buffer.f32_stride, sizeof(float)));
  if (buffer.has(ActivationForm::kInt8)) {
    buffer.codes = AlignedBuffer(bytes_of(capacity * buffer.k_padded, 1));
    buffer.scales = AlignedBuffer(bytes_of(capacity * buffer.k_padded / 32, sizeof(float)));
    buffer.sums16 = AlignedBuffer(bytes_of(capacity * buffer.k_padded / 16, sizeof(int16_t)));
  }
  if (buffer.has(ActivationForm::kBf16)) buffer.bf16 = AlignedBuffer(bytes_of(capacity * bf16_row_stride(buffer.width), sizeof(uint16_t)));
  return static_cast<int64_t>(buffer.f32.size() + buffer.codes.size() + buffer.scales.size() + buffer.sums16.size() + buffer.bf16.size());
}

// Buffers with one row per output grow with the most outputs a step has had: usually a few, every row for scoring.
void CpuExecutor::reserve_outputs(int64_t num_outputs) {
  for (Rows& buffer : buffers_) {
    if (!buffer.output_rows || buffer.forms.any() == 0 || buffer.capacity >= num_outputs) continue;
    const int64_t capacity = std::max(num_outputs, std::min<int64_t>(2 * buffer.capacity, options_.max_rows));
    allocate(buffer, capacity);
  }
}

int64_t CpuExecutor::output_row_bytes() const {
  int64_t bytes = 0;
  for (const Rows& buffer : buffers_) {
    if (!buffer.output_rows) continue;
    if (buffer.has(ActivationForm::kF32)) bytes += buffer.f32_stride * 4;
    if (buffer.has(ActivationForm::kInt8)) bytes += buffer.k_padded + buffer.k_padded / 32 * 4 + buffer.k_padded / 16 * 2;
    if (buffer.has(ActivationForm::kBf16)) bytes += bf16_row_stride(buffer.width) * 2;
  }
  return bytes;
}

Status CpuExecutor::allocate_kv(std::span<const int64_t> num_blocks) {
  MR_CHECK(num_blocks.size() == info_.kv_groups.size(), "one block count per KV group");
  for (std::size_t g = 0; g < num_blocks.size(); ++g) {
    auto memory = AlignedBuffer::allocate(bytes_of(num_blocks[g] * info_.kv_groups[g].block_bytes, 1));
    if (!memory.is_ok()) return memory.status().with_context("KV cache");
    kv_memory_[g] = std::move(memory).value();
    kv_base_[g] = kv_memory_[g].data();
  }
  for (std::size_t g = 0; g < group_read_.size(); ++g) {
    if (group_read_[g] >= 0) encoder_->kv_base_[g] = kv_base_[static_cast<std::size_t>(group_read_[g])];
  }
  return Status::ok();
}

int64_t CpuExecutor::kv_bytes() const {
  int64_t sum = 0;
  for (const auto& memory : kv_memory_) sum += static_cast<int64_t>(memory.size());
  return sum;
}

void CpuExecutor::save_block(int64_t group, int32_t block_id, std::span<std::byte> to) const {
  const auto g = static_cast<std::size_t>(group);
  MR_CHECK(static_cast<int64_t>(to.size()) == info_.kv_groups[g].block_bytes, "a block of the group's size");
  std::memcpy(to.data(), kv_memory_[g].data() + block_id * info_.kv_groups[g].block_bytes, to.size());
}

void CpuExecutor::load_block(int64_t group, int32_t block_id, std::span<const std::byte> from) {
  const auto g = static_cast<std::size_t>(group);
  MR_CHECK(static_cast<int64_t>(from.size()) == info_.kv_groups[g].block_bytes, "a block of the group's size");
  std::memcpy(kv_memory_[g].data() + block_id * info_.kv_groups[g].block_bytes, from.data(), from.size());
}

void CpuExecutor::enqueue(const StepPlan& plan) {
  if (times_ != nullptr) times_->begin_ns = steady_ns();
  plan_ = &plan;
  ++step_;
  num_stages_ = 0;
  num_rows_ = static_cast<int64_t>(plan.tokens.size());
  num_outputs_ = static_cast<int64_t>(plan.outputs.size());
  MR_CHECK(num_rows_ > 0 && num_rows_ <= options_.max_rows, "a step has between 1 and max_rows rows");
  tokens_.resize(plan.tokens.size());
  positions_.resize(plan.tokens.size());
  sequence_of_row_.resize(plan.tokens.size());
  path_of_row_.resize(plan.tokens.size());
  has_prompt_rows_ = false;
  for (std::size_t i = 0; i < plan.tokens.size(); ++i) {
    const int32_t token = plan.tokens[i];
    tokens_[i] = token >= 0 ? token : output_.tokens[static_cast<std::size_t>(~token)].id;
    MR_CHECK(tokens_[i] >= 0 && tokens_[i] < network_.vocab_size, "a token id outside the vocabulary");
  }
  for (std::size_t s = 0; s < plan.sequences.size(); ++s) {
    const auto& sequence = plan.sequences[s];
    for (int32_t row = sequence.row_begin; row < sequence.row_end; ++row) {
      positions_[static_cast<std::size_t>(row)] = sequence.first_position + row - sequence.row_begin;
      sequence_of_row_[static_cast<std::size_t>(row)] = static_cast<int32_t>(s);
      const bool is_prompt = info_.prompt_differs && positions_[static_cast<std::size_t>(row)] < sequence.num_prompt_tokens;
      path_of_row_[static_cast<std::size_t>(row)] = is_prompt ? GemmPath::kPrompt : options_.path;
      has_prompt_rows_ |= is_prompt;
    }
  }
  reserve_outputs(num_outputs_);
  output_.tokens.resize(plan.outputs.size());
  if (info_.is_encoder) reserve_step_kv();
  for (const StepPlan::BlockCopy& copy : plan.block_copies) {
    const auto g = static_cast<std::size_t>(copy.group);
    const int64_t bytes = info_.kv_groups[g].block_bytes;
    std::memcpy(kv_memory_[g].data() + copy.to * bytes, kv_memory_[g].data() + copy.from * bytes, static_cast<std::size_t>(bytes));
  }
  if (!plan.sources.empty()) read_sources();
  plan_attention();
  std::size_t num_stages = stages_.size();
  if (num_outputs_ == 0) {  // a prefill chunk of which nothing is wanted but its keys and values
    const auto gather = std::find_if(stages_.begin(), stages_.end(), [](const Stage& stage) {
      return stage.op->kind == OpKind::kGather || stage.op->kind == OpKind::kPool;
    });
    num_stages = static_cast<std::size_t>(gather - stages_.begin());
  }
  if (times_ != nullptr) times_->resize(op_index(stages_[num_stages - 1]) + 1, pool_.num_threads());
  pool_.run_stages(
      static_cast<int64_t>(num_stages),
      [this](int64_t index) {
        const Stage& stage = stages_[static_cast<std::size_t>(index)];
        if (times_ != nullptr) times_->begin_op(op_index(stage));
        return num_chunks(stage);
      },
      [this](int64_t index, int64_t chunk, int worker) {
        const Stage& stage = stages_[static_cast<std::size_t>(index)];
        const int64_t begin = chunk * chunk_units_, begin_ns = times_ == nullptr ? 0 : steady_ns();
        run_stage(stage, begin, std::min(begin + chunk_units_, stage_units(stage)), scratch_[static_cast<std::size_t>(worker)]);
        if (times_ != nullptr) times_->add_busy(op_index(stage), worker, steady_ns() - begin_ns);
        if (!stage.upcoming.empty() && has_few_rows()) pool_.fetch_when_idle(worker, stage.upcoming[static_cast<std::size_t>(worker)]);
      });
  if (program_.logits >= 0) {
    const Rows& logits = rows(program_.logits);
    output_.logits_stride = logits.f32_stride;
    output_.logits = {logits.f32.as<float>(), static_cast<std::size_t>(num_outputs_ * logits.f32_stride)};
  }
  if (program_.hidden >= 0) {
    const Rows& hidden = rows(program_.hidden);
    output_.hidden_stride = hidden.f32_stride;
    output_.hidden = {hidden.f32.as<float>(), static_cast<std::size_t>(num_rows_ * hidden.f32_stride)};
  }
  if (times_ != nullptr) times_->end_ns = steady_ns();
}

// An encoder's keys and values. A text begins at a block, so that what it computes does not depend on where in the step it stands
// (docs/design.md D5).
void CpuExecutor::reserve_step_kv() {
  MR_CHECK(plan_->token_types.empty() || plan_->token_types.size() == plan_->tokens.size(), "a type for each token or none");
  for (const int32_t type : plan_->token_types)
    MR_CHECK(type >= 0 && type < std::max<int64_t>(1, info_.num_token_types), "a token type that the network does not have");
  step_block_begin_.assign(1, 0);
  for (const auto& sequence : plan_->sequences) {
    MR_CHECK(sequence.first_position == 0, "a text is computed whole");
    step_block_begin_.push_back(step_block_begin_.back() + (sequence.row_end - sequence.row_begin + kKvBlockTokens - 1) / kKvBlockTokens);
  }
  while (step_blocks_.size() < static_cast<std::size_t>(step_block_begin_.back()))
    step_blocks_.push_back(static_cast<int32_t>(step_blocks_.size()));
  for (std::size_t g = 0; g < kv_memory_.size(); ++g) {
    const std::size_t bytes = bytes_of(step_block_begin_.back(), static_cast<std::size_t>(program_.kv_groups[g].block_bytes));
    if (program_.kv_groups[g].cross) continue;
    if (kv_memory_[g].size() < bytes) kv_memory_[g] = AlignedBuffer(bytes);
    kv_base_[g] = kv_memory_[g].data();
  }
}

// Whether the next stage does this one's work along with its own in the step being computed.
bool CpuExecutor::is_absorbed(const Stage& stage) const {
  if (!stage.absorbable) return false;
  if (stage.op->kind == OpKind::kPosition) return heads_have_one_item_[static_cast<std::size_t>(stage.op->kv_group)];
  return num_rows(buffers_[static_cast<std::size_t>(stage.op->in)]) <= kAbsorbedRows;
}

int64_t CpuExecutor::num_chunks(const Stage& stage) {
  if (stage.op->kind == OpKind::kDispatch) sort_by_expert(*stage.op);  // all tokens are routed by now, and nobody else is at work
  const int64_t units = stage_units(stage);
  if (units > 0) ++num_stages_;
  chunk_units_ = units_per_chunk(*stage.op, units);
  return (units + chunk_units_ - 1) / chunk_units_;
}

int64_t CpuExecutor::units_per_chunk(const Op& op, int64_t units) const {
  // An item of attention is large enough to be claimed by itself, and they differ; only the pool's limit on chunks puts some together.
  if (op.kind == OpKind::kAttention) return std::max<int64_t>(1, units >> 15);
  const int64_t num_threads = pool_.num_threads();
  if (op.kind == OpKind::kLinear && has_prompt_rows_) {
    // A visit, or less of it where that shares the units more evenly.
    const auto longest = [&](int64_t chunk) { return ((units + chunk - 1) / chunk + num_threads - 1) / num_threads * chunk; };
    int64_t best = 1;
    for (int64_t chunk = 2; chunk <= visit_panels(op, num_rows_) / kTilePanels; ++chunk) {
      if (longest(chunk) <= longest(best)) best = chunk;
    }
    return best;
  }
  // Some chunks a thread, so that a slower one computes fewer of them; more where one is long enough that claiming it does not count.
  constexpr int64_t kHeadsPerChunk = 8;
  const int64_t chunks_per_thread = num_rows_ >= kManyRows ? 16 : 4, units_min = op.kind == OpKind::kPosition ? kHeadsPerChunk : 1;
  return std::max(units_min, units / (chunks_per_thread * num_threads));
}

int64_t CpuExecutor::stage_units(const Stage& stage) const {
  if (is_absorbed(stage)) return 0;
  const Op& op = *stage.op;
  const auto group = static_cast<std::size_t>(op.kv_group);
  switch (op.kind) {
    case OpKind::kEmbed: return num_rows_;
    case OpKind::kNorm:
    case OpKind::kConvert:
    case OpKind::kExpand:
    case OpKind::kHeadsNorm:
    case OpKind::kActivate:
    case OpKind::kAdd: return num_rows(buffers_[static_cast<std::size_t>(op.in)]);
    case OpKind::kLinear:
      if (op.mixture == nullptr) return linear_units(op, op.segments);
      return static_cast<int64_t>(active_experts_.size()) * linear_units(op, expert_segments(op, 0));
    case OpKind::kRoute: return num_rows_;
    case OpKind::kDispatch: return num_rows_ * op.mixture->rule.experts_per_token;
    case OpKind::kCombine: return num_rows_;
    case OpKind::kPosition: return num_rows_ * (op.attention->num_heads + op.attention->num_kv_heads);
    case OpKind::kAttention: return static_cast<int64_t>(stage.merges ? attention_merges_[group].size() : attention_items_[group].size());
    case OpKind::kConvolve:
    case OpKind::kScan: return state_units(op);
    case OpKind::kGather:
    case OpKind::kPool:
    case OpKind::kSample: return num_outputs_;
  }
  return 0;
}

void CpuExecutor::run_stage(const Stage& stage, int64_t begin, int64_t end, WorkerScratch& scratch) {
  const Op& op = *stage.op;
  switch (op.kind) {
    case OpKind::kEmbed: return embed(op, begin, end);
    case OpKind::kNorm: return norm(op, begin, end, op.residual < 0 ? rows(op.out) : rows(op.residual), scratch);
    case OpKind::kConvert: return convert(op, begin, end, scratch);
    case OpKind::kLinear: return linear(stage, begin, end, scratch);
    case OpKind::kRoute: return route(op, begin, end);
    case OpKind::kDispatch: return dispatch(op, begin, end);
    case OpKind::kCombine: return combine(op, begin, end, scratch);
    case OpKind::kExpand: return expand(op, begin, end);
    case OpKind::kHeadsNorm: return heads_norm(op, begin, end);
    case OpKind::kPosition: return position(op, begin, end);
    case OpKind::kAttention: return stage.merges ? merge(op, begin, end) : attention(stage, begin, end, scratch);
    case OpKind::kConvolve: return convolve(op, begin, end, scratch);
    case OpKind::kScan: return scan(op, begin, end, scratch);
    case OpKind::kActivate: return activate(op, begin, end);
    case OpKind::kAdd: return add(op, begin, end, scratch);
    case OpKind::kGather: return gather(op, begin, end);
    case OpKind::kPool: return pool(op, begin, end);
    case OpKind::kSample: return sample(op, begin, end, scratch);
  }
}

// How row r of the buffer is multiplied: as the token that it is of.
GemmPath CpuExecutor::path_of(const Rows& buffer, int64_t r) const {
  if (buffer.output_rows) return options_.path;
  const int64_t token = buffer.rows_per_token == 1 ? r : place_tokens_[static_cast<std::size_t>(r)];
  return path_of_row_[static_cast<std::size_t>(token)];
}

void CpuExecutor::store_forms(Rows& buffer, int64_t r, int64_t column, const float* values, int64_t count) {
  const uint8_t forms = path_of(buffer, r) == GemmPath::kPrompt ? buffer.forms.prompt : buffer.forms.fast;
  const auto wants = [forms](ActivationForm form) { return (forms & static_cast<uint8_t>(form)) != 0; };
  if (wants(ActivationForm::kF32) && buffer.row(r) + column != values) std::copy(values, values + count, buffer.row(r) + column);
  if (wants(ActivationForm::kInt8)) {
    quantize_row_int8(options_.isa, values, count, buffer.codes.as<int8_t>() + r * buffer.k_padded + column,
                      buffer.scales.as<float>() + (r * buffer.k_padded + column) / 32,
                      buffer.sums16.as<int16_t>() + (r * buffer.k_padded + column) / 16);
  }
  if (wants(ActivationForm::kBf16))
    convert_row_bf16(options_.isa, values, count, buffer.bf16.as<uint16_t>() + r * bf16_row_stride(buffer.width) + column);
}

}  // namespace millrace
