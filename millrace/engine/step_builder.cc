#include "millrace/engine/step_builder.h"

#include <algorithm>

namespace millrace {

const StepPlan& StepBuilder::build(std::span<const Scheduler::Planned> planned, std::span<const StepPlan::BlockCopy> block_copies) {
  plan_.clear();
  wanted_.clear();
  scored_.clear();
  std::size_t num_outputs = 0;
  for (const Scheduler::Planned& rows : planned) {
    num_outputs += static_cast<std::size_t>(rows.sequence->num_scored(rows.num_rows));
    num_outputs += rows.wants_token() ? 1 + static_cast<std::size_t>(rows.sequence->num_draft_tokens) : 0;
  }
  sampling_.clear();
  sampling_.reserve(num_outputs);
  for (const Scheduler::Planned& rows : planned) {
    LiveSequence& sequence = static_cast<LiveSequence&>(*rows.sequence);
    const int32_t row_begin = static_cast<int32_t>(plan_.tokens.size());
    const auto first = sequence.tokens.begin() + sequence.num_computed;
    plan_.tokens.insert(plan_.tokens.end(), first, first + rows.num_rows);
    const int32_t row_end = static_cast<int32_t>(plan_.tokens.size());
    plan_.sequences.push_back({row_begin, row_end, static_cast<int32_t>(sequence.num_computed), sequence.request.rope_long,
                               static_cast<int32_t>(sequence.num_prompt_tokens), static_cast<int32_t>(sequence.num_source_tokens)});
    // Again after a preemption, which took the blocks.
    if (sequence.num_source_tokens > 0 && sequence.num_computed == 0)
      plan_.sources.push_back({static_cast<int32_t>(plan_.sequences.size()) - 1, sequence.request.source});
    add_scores(sequence, rows.num_rows, row_begin);
    if (rows.wants_token()) add_outputs(sequence, row_end);
  }
  plan_.block_copies.assign(block_copies.begin(), block_copies.end());
  plan_.table_begin.push_back(0);
  for (std::size_t g = 0; g < num_kv_groups_; ++g) {
    for (const Scheduler::Planned& rows : planned) {
      const std::vector<int32_t>& table = rows.sequence->block_tables[g];
      plan_.block_ids.insert(plan_.block_ids.end(), table.begin(), table.end());
      plan_.table_begin.push_back(static_cast<int32_t>(plan_.block_ids.size()));
    }
  }
  return plan_;
}

// The prompt's next token after each row that is scored.
void StepBuilder::add_scores(LiveSequence& sequence, int64_t num_rows, int32_t row_begin) {
  const int64_t num_scored = sequence.num_scored(num_rows);
  if (num_scored == 0) return;
  scored_.push_back({&sequence, plan_.outputs.size(), static_cast<std::size_t>(num_scored)});
  const int64_t first = std::max(sequence.num_computed, sequence.score_begin);
  for (int64_t position = first; position < first + num_scored; ++position) {
    SamplingInput& sampling = sampling_.emplace_back();
    sampling.params = &sequence.request.prompt_scores;
    sampling.given = sequence.tokens[static_cast<std::size_t>(position + 1)];
    plan_.outputs.push_back({row_begin + static_cast<int32_t>(position - sequence.num_computed), &sampling});
  }
}

// A token after the sequence's last own row, and one after each draft token as if those before it were accepted.
void StepBuilder::add_outputs(LiveSequence& sequence, int32_t row_end) {
  const std::span<const int32_t> tokens(sequence.tokens);
  const std::span<const int32_t> completion_tokens = tokens.subspan(static_cast<std::size_t>(sequence.num_prompt_tokens));
  const auto num_draft_tokens = static_cast<int32_t>(sequence.num_draft_tokens);
  const int64_t num_completion_tokens = sequence.completion.num_tokens();
  wanted_.push_back({&sequence, plan_.outputs.size(), num_draft_tokens, 0});
  if (sequence.request.max_tokens == 0) return;
  if (sequence.request.beams) {
    SamplingInput& sampling = sampling_.emplace_back();
    sampling.params = &sequence.request.beam_scores;
    plan_.outputs.push_back({row_end - 1, &sampling});
    return;
  }
  for (int32_t k = 0; k <= num_draft_tokens; ++k) {
    SamplingInput& sampling = sampling_.emplace_back(sequence.sampling);
    sampling.position = static_cast<uint64_t>(num_completion_tokens + k);
    sampling.prompt_tokens = tokens.first(static_cast<std::size_t>(sequence.num_prompt_tokens));
    sampling.completion_tokens = completion_tokens.first(static_cast<std::size_t>(num_completion_tokens + k));
    sampling.forbidden = {};
    if (num_completion_tokens + k < sequence.request.request.min_tokens) sampling.forbidden = sequence.request.stop_token_ids;
    plan_.outputs.push_back({row_end - 1 - num_draft_tokens + k, &sampling});
  }
}

// A draft token is right exactly when it was sampled after the token before it, and as long as all before it were.
void StepBuilder::accept_drafts(const StepOutput& output) {
  for (Wanted& wanted : wanted_) {
    if (wanted.num_draft_tokens == 0) continue;
    LiveSequence& sequence = *wanted.sequence;
    const int32_t* drafts = sequence.tokens.data() + sequence.num_tokens();
    int64_t& accepted = wanted.num_accepted_tokens;
    while (accepted < wanted.num_draft_tokens) {
      const SampledToken& token = output.tokens[wanted.output_begin + static_cast<std::size_t>(accepted)];
      if (!token.finite || token.id != drafts[accepted]) break;
      ++accepted;
    }
    sequence.num_accepted_tokens = accepted;
  }
}

}  // namespace millrace
