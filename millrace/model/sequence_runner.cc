#include "millrace/model/sequence_runner.h"

#include <fmt/format.h>

#include <algorithm>

namespace millrace {

namespace {

Status check_ids(std::span<const int32_t> tokens, int64_t vocab_size) {
  for (const int32_t id : tokens) {
    if (id < 0 || id >= vocab_size)
      return Status::invalid_argument(fmt::format("token id {} is outside the vocabulary [0, {})", id, vocab_size));
  }
  return Status::ok();
}

}  // namespace

Result<SequenceRunner> SequenceRunner::create(Executor& executor, int64_t max_tokens) {
  SequenceRunner runner(executor, max_tokens);
  const std::vector<int64_t> num_blocks(executor.info().kv_groups.size(), (max_tokens + kKvBlockTokens - 1) / kKvBlockTokens);
  MR_RETURN_IF_ERROR(executor.allocate_kv(num_blocks));
  return runner;
}

void SequenceRunner::reset(int64_t expected_tokens, int64_t num_prompt_tokens) {
  num_tokens_ = 0;
  source_.clear();
  num_prompt_tokens_ = num_prompt_tokens;
  rope_long_ = executor_->info().rope_short_length > 0 && expected_tokens > executor_->info().rope_short_length;
}

Status SequenceRunner::reset_with_source(std::span<const int32_t> source, int64_t expected_tokens, int64_t num_prompt_tokens) {
  const ExecutorInfo& info = executor_->info();
  const auto count = static_cast<int64_t>(source.size()), most = std::min(max_tokens_, info.max_source_tokens);
  if (count < 1 || count > most)
    return Status::invalid_argument(fmt::format("the source text has {} tokens, expected 1 to {}", count, most));
  MR_RETURN_IF_ERROR(check_ids(source, info.vocab_size));
  reset(expected_tokens, num_prompt_tokens);
  source_.assign(source.begin(), source.end());
  return Status::ok();
}

Status SequenceRunner::append(std::span<const int32_t> tokens, int64_t chunk, bool all_positions, const OnLogits& on_logits) {
  const ExecutorInfo& info = executor_->info();
  if (num_tokens_ + static_cast<int64_t>(tokens.size()) > max_tokens_) {
    return Status::invalid_argument(
        fmt::format("{} tokens do not fit: at most {}", num_tokens_ + static_cast<int64_t>(tokens.size()), max_tokens_));
  }
  if (num_tokens_ + static_cast<int64_t>(tokens.size()) > info.max_positions) {
    return Status::invalid_argument(fmt::format("{} tokens are more than the model's context of {}",
                                                num_tokens_ + static_cast<int64_t>(tokens.size()), info.max_positions));
  }
  MR_RETURN_IF_ERROR(check_ids(tokens, info.vocab_size));
  if (!info.start_tokens.empty() && source_.empty())
    return Status::invalid_argument("an encoder-decoder answers a source text, and has none");
  for (std::size_t begin = 0; begin < tokens.size();) {
    const std::size_t count = std::min(tokens.size() - begin, static_cast<std::size_t>(chunk)), end = begin + count;
    plan_.clear();
    plan_.tokens.assign(tokens.begin() + static_cast<std::ptrdiff_t>(begin), tokens.begin() + static_cast<std::ptrdiff_t>(end));
    plan_.sequences.push_back({0, static_cast<int32_t>(count), static_cast<int32_t>(num_tokens_), rope_long_,
                               static_cast<int32_t>(num_prompt_tokens_), static_cast<int32_t>(source_.size())});
    if (num_tokens_ == 0 && !source_.empty()) plan_.sources.push_back({0, source_});
    const int64_t num_tokens = num_tokens_ + static_cast<int64_t>(count);
    plan_.table_begin.push_back(0);
    for (std::size_t g = 0; g < info.kv_groups.size(); ++g) {
      const int64_t kept = info.kv_groups[g].cross ? static_cast<int64_t>(source_.size()) : num_tokens;
      for (int32_t block = 0; block * kKvBlockTokens < kept; ++block) plan_.block_ids.push_back(block);
      plan_.table_begin.push_back(static_cast<int32_t>(plan_.block_ids.size()));
    }
    for (std::size_t row = 0; row < count; ++row) {
      if (all_positions || begin + row + 1 == tokens.size()) plan_.outputs.push_back({static_cast<int32_t>(row), nullptr});
    }
    executor_->enqueue(plan_);
    const StepOutput& output = executor_->wait();
    for (std::size_t i = 0; i < plan_.outputs.size(); ++i) {
      on_logits(num_tokens_ + plan_.outputs[i].row, output.logits_of(static_cast<int64_t>(i), info.vocab_size));
    }
    num_tokens_ += static_cast<int64_t>(count);
    begin = end;
  }
  return Status::ok();
}

}  // namespace millrace
