#include "millrace/measure/sequence_batch.h"

#include <fmt/format.h>

#include <algorithm>

namespace millrace {

Result<SequenceBatch> SequenceBatch::create(Executor& executor, int64_t num_sequences, int64_t tokens_max) {
  if (tokens_max > executor.info().max_positions) {
    return Status::invalid_argument(
        fmt::format("depth and tokens come to {}, the model's context is {}", tokens_max, executor.info().max_positions));
  }
  SequenceBatch batch(executor, num_sequences, tokens_max);
  const std::vector<int64_t> num_blocks(executor.info().kv_groups.size(), batch.blocks_each_ * num_sequences);
  MR_RETURN_IF_ERROR(executor.allocate_kv(num_blocks));
  return batch;
}

SequenceBatch::SequenceBatch(Executor& executor, int64_t num_sequences, int64_t tokens_max)
    : executor_(&executor),
      num_sequences_(num_sequences),
      blocks_each_((tokens_max + kKvBlockTokens - 1) / kKvBlockTokens),
      rope_long_(executor.info().rope_short_length > 0 && tokens_max > executor.info().rope_short_length) {}

void SequenceBatch::append(int64_t count, int64_t rows_max, bool as_prompt, const OnStep& on_step) {
  num_prompt_tokens_ = as_prompt ? num_tokens_ + count : std::min(num_prompt_tokens_, num_tokens_);
  plan_.clear();
  plan_sequences_.clear();
  for (int64_t s = 0; s < num_sequences_; ++s) {
    for (int64_t done = 0; done < count;) {
      const auto row = static_cast<int64_t>(plan_.tokens.size()), part = std::min(count - done, rows_max - row), first = num_tokens_ + done;
      for (int64_t i = 0; i < part; ++i)
        plan_.tokens.push_back(static_cast<int32_t>(((first + i + s) * 7919 + 13) % executor_->info().vocab_size));
      plan_.sequences.push_back({static_cast<int32_t>(row), static_cast<int32_t>(row + part), static_cast<int32_t>(first), rope_long_,
                                 static_cast<int32_t>(num_prompt_tokens_)});
      plan_sequences_.push_back(static_cast<int32_t>(s));
      done += part;
      if (done == count) plan_.outputs.push_back({static_cast<int32_t>(row + part - 1), nullptr});
      if (row + part == rows_max) run_step(on_step);
    }
  }
  if (!plan_.tokens.empty()) run_step(on_step);
  num_tokens_ += count;
}

void SequenceBatch::run_step(const OnStep& on_step) {
  plan_.table_begin.push_back(0);
  for (std::size_t group = 0; group < executor_->info().kv_groups.size(); ++group) {
    for (std::size_t i = 0; i < plan_.sequences.size(); ++i) {
      const auto& sequence = plan_.sequences[i];
      const int64_t tokens = sequence.first_position + sequence.row_end - sequence.row_begin;
      for (int64_t block = 0; block * kKvBlockTokens < tokens; ++block)
        plan_.block_ids.push_back(static_cast<int32_t>(plan_sequences_[i] * blocks_each_ + block));
      plan_.table_begin.push_back(static_cast<int32_t>(plan_.block_ids.size()));
    }
  }
  executor_->enqueue(plan_);
  executor_->wait();
  on_step(plan_);
  plan_.clear();
  plan_sequences_.clear();
}

}  // namespace millrace
