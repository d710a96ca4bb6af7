#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/engine/block_allocator.h"
#include "millrace/engine/draft_acceptance.h"
#include "millrace/engine/drafter.h"
#include "millrace/model/step_plan.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {

// Token ids of both must mean the same, or a draft is a draft of something else. kInvalidArgument names the first difference: the number of
// tokens, a token's bytes or whether it is special, the BOS or EOS token.
Status check_same_vocabulary(const Tokenizer& draft, const Tokenizer& target);

// Drafts from a smaller model. (Speculative decoding: Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318. There a
// draft is accepted with a probability; here it is drawn with the random number with which the target will draw in its place, and accepted
// where both draw the same.)
//
// Each sequence that gets drafts has keys and values of the draft model in blocks of a pool of its own. What the draft model has not seen
// of it (the prompt at first, the tokens since the last draft) is computed before it drafts, at most a step of rows_max rows at a time;
// where that does not suffice, drafts begin in a later step. What it computed of rejected drafts is overwritten. All sequences are drafted
// together: round k computes one row for each that wants more than k tokens.
// Invariant: a sequence has blocks only while it decodes; one that is preempted gives them back and is computed anew.
// Not handled: blocks behind a window are kept, and sequences share no blocks. Costs memory and time, never a token.
class ModelDraftSource : public DraftSource {
 public:
  struct Options {
    int64_t rows_max = 512;         // of one step of the draft model
    int64_t num_blocks = 1;         // of each KV group
    std::function<double()> clock;  // seconds, monotonic
  };
  // Takes the executor's KV memory; it is used by this source only, and outlives it. Errors: what it says.
  static Result<std::unique_ptr<ModelDraftSource>> create(Executor& executor, Options options);

  std::unique_ptr<Drafter> follow(const DraftOwner& owner) override;
  void compute(std::span<const DraftWork> work) override;
  const StepSeconds* draft_seconds() const override { return &round_seconds_; }
  int64_t num_used_blocks() const override;

 private:
  class Follower;
  // A sequence in the step being computed.
  struct Row {
    const DraftWork* work;
    Follower* follower;
    int64_t num_rows = 0;
    bool wants_token = false;
    int64_t num_drawn = 0;
    bool ended = false;  // the draft model has no token to give
  };
  // More than so many tokens behind, a sequence has yet to be begun with.
  static constexpr int64_t kFewRows = 8;

  ModelDraftSource(Executor& executor, Options options)
      : executor_(executor),
        options_(std::move(options)),
        allocator_(std::vector<int64_t>(executor.info().kv_groups.size(), options_.num_blocks)) {}
  void plan_first_rows();
  bool plan_next_rows();
  void run_step();

  Executor& executor_;
  const Options options_;
  BlockAllocator allocator_;
  std::vector<Follower*> followers_;  // that live
  int64_t num_releases_ = 0;          // how often one gave its blocks back
  AcceptanceRate acceptance_;         // of all sequences
  StepSeconds round_seconds_;         // by number of sequences
  double prompt_row_seconds_ = 0;     // of a row among many

  std::vector<Row> rows_;
  StepPlan plan_;
  std::vector<SamplingInput> sampling_;
};

}  // namespace millrace
