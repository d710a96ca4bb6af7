#pragma once

#include <array>
#include <memory>
#include <vector>

#include "millrace/base/aligned_buffer.h"
#include "millrace/kernels/attention.h"
#include "millrace/kernels/gemm.h"
#include "millrace/model/program.h"
#include "millrace/model/step_times.h"

namespace millrace {

struct CpuExecutorOptions {
  Isa isa = Isa::kScalar;
  GemmPath path = GemmPath::kFast;
  KvDType kv_dtype = KvDType::kBf16;
  int32_t max_rows = 512;  // tokens that one step may compute: activations are planned for so many
  // Ids that sampling may draw: the tokenizer's, where the head has more rows (padding) than it. 0: every row.
  int64_t sampled_vocab_size = 0;
};

// Interprets a program on the threads of a pool: one parallel region a step, one stage an operation. Rows, panels and heads are
// partitioned into chunks, never sums, so the number of threads changes no bit of the result (docs/design.md D5).
class CpuExecutor final : public Executor {
 public:
  // The weights may serve several executors; network, checkpoint and pool must outlive the executor.
  static Result<std::unique_ptr<CpuExecutor>> create(const Network& network, std::shared_ptr<const Weights> weights, Program program,
                                                     ThreadPool& pool, const CpuExecutorOptions& options);

  const ExecutorInfo& info() const override { return info_; }
  Status allocate_kv(std::span<const int64_t> num_blocks) override;
  void enqueue(const StepPlan& plan) override;
  const StepOutput& wait() override { return output_; }
  void save_block(int64_t group, int32_t block_id, std::span<std::byte> to) const override;
  void load_block(int64_t group, int32_t block_id, std::span<const std::byte> from) override;

  // Of an encoder-decoder's decoder: what reads its source texts, an executor of lower_encoder()'s program. Before allocate_kv().
  void take_encoder(std::unique_ptr<CpuExecutor> encoder);

  const CpuExecutorOptions& options() const { return options_; }
  const Program& program() const { return program_; }
  const Weights& weights() const { return weights_; }
  // Memory for the activations of one step of max_rows rows; and of every row more whose logits are wanted in it.
  int64_t activation_bytes() const { return activation_bytes_; }
  int64_t output_row_bytes() const;
  int64_t kv_bytes() const;
  // Stages of the last step that had work: how often its threads waited for each other.
  int64_t num_stages() const { return num_stages_; }

  // Every following step notes its times there; null: none. For profiles; a step that notes nothing pays one comparison a chunk.
  void set_times(StepTimes* times) { times_ = times; }

 private:
  // A worker visits two panels at a time, 32 columns: one block of the int8 form, so that an epilogue can quantize its own output. It
  // computes this many rows a visit: enough to amortize the panels, few enough that the tile stays in the cache.
  static constexpr int64_t kTileRows = 64;
  static constexpr int64_t kTilePanels = 2;
  // At most so many times as many where there are few rows.
  static constexpr int64_t kFewRowsVisit = 8;
  // Of a prompt more rows share each visit, since decoding weights costs as much as multiplying tens of rows, and more panels, which share
  // fetching the rows into the second cache level.
  static constexpr int64_t kPromptRows = 512;
  static constexpr int64_t kPromptPanels = 16;
  // Query rows that share each visit to a KV block.
  static constexpr int64_t kAttentionRows = 16;
  // Channels of a unit of an operation with a state: their state stays in the first cache level.
  static constexpr int64_t kStateChannels = 64;
  // A norm of at most this many rows is computed by every worker.
  static constexpr int64_t kAbsorbedRows = 4;
  // From so many rows on a stage is long enough for more and smaller chunks, and what its beginning costs does not count.
  static constexpr int64_t kManyRows = 32;

  // The memory of one Buffer: max_rows rows of every form it has.
  struct Rows {
    int64_t width = 0, f32_stride = 0, k_padded = 0, capacity = 0, rows_per_token = 1;
    ActivationForms forms;
    bool output_rows = false;
    AlignedBuffer f32, codes, scales, sums16, bf16;
    bool has(ActivationForm form) const { return (forms.any() & static_cast<uint8_t>(form)) != 0; }
    float* row(int64_t r) { return f32.as<float>() + r * f32_stride; }
    Activations view(int64_t num_rows) const;
  };
  // What one worker computes in without asking anyone.
  struct WorkerScratch {
    Rows absorbed;  // the norm before absorbed_op, of step absorbed_step
    int64_t absorbed_step = -1;
    const Op* absorbed_op = nullptr;
    AlignedBuffer gemm, tile, attention, row, state;
    SamplingScratch sampling;
  };
  // One unit of attention: some rows of one sequence and one kv head; or one segment of one row (decode over long contexts).
  struct AttentionItem {
    int32_t sequence, row_begin, row_end, kv_head, segment;
  };

  CpuExecutor(const Network& network, std::shared_ptr<const Weights> weights, Program program, ThreadPool& pool,
              const CpuExecutorOptions& options);
  void plan_buffers();
  void plan_stages();
  int64_t allocate(Rows& buffer, int64_t capacity);
  void reserve_outputs(int64_t num_outputs);
  void plan_attention();

  // A stage of the parallel region: one operation, or the merge after an attention that was split over segments.
  //
  // In a step of few rows handing over to the next stage takes as long as a small operation. So a stage can do a small one before it
  // along with its own (`absorbs`), and that one's stage is then empty: every worker computes the norm of a linear operation for itself,
  // and an item of attention rotates and stores the heads that it reads. The arithmetic is the same, and so are the bits.
  struct Stage {
    const Op* op;
    bool merges = false;
    const Op* absorbs = nullptr;
    bool absorbable = false;  // the next stage absorbs this one where the step allows it
    // [workers] where each will begin to read the matrices of the next linear operation, in a step of few rows.
    std::vector<ThreadPool::Upcoming> upcoming;
  };
  void plan_upcoming();
  ThreadPool::Upcoming first_weights(const Op& op, int worker) const;
  bool is_absorbed(const Stage& stage) const;
  int64_t num_chunks(const Stage& stage);
  int64_t units_per_chunk(const Op& op, int64_t units) const;
  bool has_few_rows() const { return num_rows_ < kManyRows && !has_prompt_rows_; }
  int64_t stage_units(const Stage& stage) const;
  void run_stage(const Stage& stage, int64_t begin, int64_t end, WorkerScratch& scratch);
  std::size_t op_index(const Stage& stage) const { return static_cast<std::size_t>(stage.op - program_.ops.data()); }
  void embed(const Op& op, int64_t begin, int64_t end);
  void norm(const Op& op, int64_t begin, int64_t end, Rows& out, WorkerScratch& scratch);
  void convert(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch);
  int64_t linear_units(const Op& op, std::span<const LinearSegment> segments) const;
  Activations linear_input(const Stage& stage, WorkerScratch& scratch);
  void linear(const Stage& stage, int64_t begin, int64_t end, WorkerScratch& scratch);
  // Some rows of a linear operation's input, and the matrices for them: all of both, or those of one expert.
  struct LinearPart {
    const Activations& x;
    std::span<const LinearSegment> segments;
    int64_t row_begin, row_end;
  };
  // Panels of one matrix that a visit computes.
  int64_t visit_panels(const Op& op, int64_t num_rows) const;
  // Calls visit(path, row_begin, row_end) for the part's rows that are multiplied in one way, at most `rows_max` of them at a time, of a
  // prompt kPromptRows.
  template <class Visit>
  void for_row_runs(const Op& op, const LinearPart& part, int64_t rows_max, const Visit& visit) const;
  void linear_part(const Op& op, const LinearPart& part, int64_t begin, int64_t end, WorkerScratch& scratch);
  void linear_panels(const Op& op, const LinearPart& part, const LinearSegment& segment, int64_t panel_begin, int64_t panel_end,
                     WorkerScratch& scratch);
  void activated_panels(const Op& op, const LinearPart& part, int64_t panel_begin, int64_t panel_end, WorkerScratch& scratch);
  std::span<const LinearSegment> expert_segments(const Op& op, int64_t expert) const;
  void route(const Op& op, int64_t begin, int64_t end);
  void sort_by_expert(const Op& op);
  void dispatch(const Op& op, int64_t begin, int64_t end);
  void combine(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch);
  void expand(const Op& op, int64_t begin, int64_t end);
  void heads_norm(const Op& op, int64_t begin, int64_t end);
  void position(const Op& op, int64_t begin, int64_t end);
  void position_head(const Op& op, int64_t row, int64_t head);
  void attention(const Stage& stage, int64_t begin, int64_t end, WorkerScratch& scratch);
  void merge(const Op& op, int64_t begin, int64_t end);
  int64_t partial_floats(const Op& op) const;
  float* partials_of(const Op& op, const AttentionItem& item);
  void finish_rows(const Op& op, const AttentionItem& item);
  // Some channels, all of one group, of one sequence.
  struct StateUnit {
    int32_t sequence;
    int64_t group, channel, size;
  };
  int64_t state_units(const Op& op) const;
  StateUnit state_unit(const Op& op, int64_t unit) const;
  float* state_at(const Op& op, int32_t sequence, int32_t position);
  void load_state(const Op& op, const StateUnit& unit, int64_t num_rows, float* state);
  static bool keeps_state(const StepPlan::Sequence& sequence, int32_t row);
  static int64_t state_scratch_floats(const Op& op);
  void step_widths(const Op& op, const StateUnit& unit, int64_t row, float* dt);
  void convolve(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch);
  void scan(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch);
  void activate(const Op& op, int64_t begin, int64_t end);
  void add(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch);
  void gather(const Op& op, int64_t begin, int64_t end);
  void pool(const Op& op, int64_t begin, int64_t end);
  void sample(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch);

  Rows& rows(BufferId id) { return buffers_[static_cast<std::size_t>(id)]; }
  int64_t num_rows(const Rows& buffer) const { return buffer.output_rows ? num_outputs_ : num_rows_ * buffer.rows_per_token; }
  GemmPath path_of(const Rows& buffer, int64_t r) const;
  // Puts columns [column, column + count) of row r, given as f32, into every form of `buffer`; column is a multiple of 32.
  void store_forms(Rows& buffer, int64_t r, int64_t column, const float* values, int64_t count);
  KvView kv_view(const Op& op);
  void reserve_step_kv();
  void read_sources();
  std::span<const int32_t> block_table(int32_t group, int32_t sequence) const;
  AttentionArgs attention_args(const Op& op, int32_t sequence);

  const Network& network_;
  std::shared_ptr<const Weights> weights_ptr_;
  const Weights& weights_;
  Program program_;
  ThreadPool& pool_;
  CpuExecutorOptions options_;
  ExecutorInfo info_;
  std::vector<KvGeometry> kv_geometry_;   // [groups]
  std::vector<AlignedBuffer> kv_memory_;  // [groups]; of an encoder, of the step's texts: grows to the most that a step has had
  std::vector<std::byte*> kv_base_;       // [groups] its beginning; of an encoder's cross groups it is the decoder's
  std::vector<int64_t> partial_floats_;   // [groups] floats of one attention partial, of the layer with most heads
  std::vector<Rows> buffers_;
  std::vector<AlignedBuffer> rope_cos_, rope_sin_;  // [ropes] of [max_rows, rotary_dim / 2]
  std::vector<WorkerScratch> scratch_;              // [workers]
  std::vector<Stage> stages_;                       // of program_.ops, in order
  int64_t chunk_units_ = 1;                         // of the stage being computed
  int64_t step_ = 0, num_stages_ = 0;
  int64_t activation_bytes_ = 0;

  std::unique_ptr<CpuExecutor> encoder_;
  std::vector<int32_t> group_read_;  // [the encoder's groups] the group of this executor that it writes, or -1: the encoder's own
  StepPlan source_plan_;

  // Of the step being computed.
  const StepPlan* plan_ = nullptr;
  int64_t num_rows_ = 0, num_outputs_ = 0;
  // Of an encoder's step, in which every text begins at a block: the number of its first one, and all numbers.
  std::vector<int32_t> step_block_begin_, step_blocks_;        // [num_sequences + 1], [number of blocks]
  std::vector<int32_t> positions_, sequence_of_row_, tokens_;  // [num_rows]
  std::vector<GemmPath> path_of_row_;                          // [num_rows]
  bool has_prompt_rows_ = false;                               // that are computed in a way of their own
  std::vector<std::vector<AttentionItem>> attention_items_;    // [groups]
  std::vector<std::vector<int32_t>> attention_merges_;         // [groups] items that are the first segment of a split row
  std::vector<bool> heads_have_one_item_;                      // [groups] each kv head of each sequence has one item for all its rows
  std::vector<int64_t> num_segments_;                          // [groups] partials per (row, head): the stride
  // Of the layer with a mixture of experts being computed. A place is a row of a buffer whose rows are sorted by expert.
  std::vector<int32_t> routed_experts_, routed_places_, place_tokens_;  // [num_rows * experts_per_token]; the last by place
  std::vector<float> routed_weights_;
  std::vector<int32_t> expert_begin_;    // [num_experts + 1] its first place
  std::vector<int32_t> active_experts_;  // those that some token takes, ascending
  AlignedBuffer partials_;
  StepOutput output_;
  StepTimes* times_ = nullptr;
};

}  // namespace millrace
