#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "millrace/base/check.h"
#include "millrace/model/step_plan.h"

namespace millrace {

// For tests: an executor whose logits are a hash of the tokens that a row can see through its block tables. A wrong table, a stale block
// or a missing token changes them, as it would with a network.
class HashExecutor final : public Executor {
 public:
  explicit HashExecutor(int64_t vocab_size, uint64_t seed = 1, std::size_t num_groups = 2) : seed_(seed) {
    info_.vocab_size = vocab_size;
    info_.max_positions = 4096;
    info_.kv_groups.resize(num_groups);
  }

  std::optional<int32_t> num_prompt_tokens_seen;  // of the last sequence
  std::optional<int32_t> poison_token;            // rows with it give logits that are not finite

  const ExecutorInfo& info() const override { return info_; }
  Status allocate_kv(std::span<const int64_t> num_blocks) override {
    for (const int64_t blocks : num_blocks) kv_.emplace_back(static_cast<std::size_t>(blocks * kKvBlockTokens), -1);
    return Status::ok();
  }

  // Logits after these tokens, without any of the machinery.
  std::vector<float> logits_after(std::span<const int32_t> tokens) const {
    uint64_t hash = seed_;
    for (const int32_t token : tokens) hash = mix(hash, static_cast<uint64_t>(token));
    std::vector<float> logits(static_cast<std::size_t>(info_.vocab_size));
    for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(mix(hash, i) >> 40) * 0x1p-24f * 8 - 4;
    return logits;
  }

  void enqueue(const StepPlan& plan) override {
    const std::size_t num_sequences = plan.sequences.size();
    MR_CHECK(plan.table_begin.size() == kv_.size() * num_sequences + 1, "a table for each group and sequence");
    std::vector<std::vector<int32_t>> seen(plan.tokens.size());
    int32_t next_row = 0;
    for (std::size_t s = 0; s < num_sequences; ++s) {
      const StepPlan::Sequence& sequence = plan.sequences[s];
      MR_CHECK(sequence.row_begin == next_row && sequence.row_end > next_row, "sequences in row order, covering every row");
      next_row = sequence.row_end;
      num_prompt_tokens_seen = sequence.num_prompt_tokens;
      for (std::size_t g = 0; g < kv_.size(); ++g) {
        const auto slot = [&](int64_t position) -> int32_t& {
          const auto at = static_cast<std::size_t>(plan.table_begin[g * num_sequences + s] + position / kKvBlockTokens);
          MR_CHECK(static_cast<int32_t>(at) < plan.table_begin[g * num_sequences + s + 1], "a block for each position");
          return kv_[g].at(static_cast<std::size_t>(plan.block_ids[at] * kKvBlockTokens + position % kKvBlockTokens));
        };
        for (int32_t row = sequence.row_begin; row < sequence.row_end; ++row) {
          const int64_t position = sequence.first_position + row - sequence.row_begin;
          slot(position) = plan.tokens[static_cast<std::size_t>(row)];
          if (g + 1 < kv_.size()) continue;
          for (int64_t p = 0; p <= position; ++p) seen[static_cast<std::size_t>(row)].push_back(slot(p));
        }
      }
    }
    logits_.clear();
    for (const StepPlan::Output& output : plan.outputs) {
      const auto row = static_cast<std::size_t>(output.row);
      std::vector<float> logits = logits_after(seen[row]);
      if (poison_token && plan.tokens[row] == *poison_token) logits[1] = std::numeric_limits<float>::quiet_NaN();
      logits_.insert(logits_.end(), logits.begin(), logits.end());
      logits_.push_back(1e30f);  // padding, which nobody may read
    }
    output_.logits = logits_;
    output_.logits_stride = info_.vocab_size + 1;
  }
  const StepOutput& wait() override { return output_; }

 private:
  static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t x = (a ^ (b + 0x9E3779B97F4A7C15ULL + (a << 6) + (a >> 2))) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
  }

  ExecutorInfo info_;
  uint64_t seed_;
  std::vector<std::vector<int32_t>> kv_;  // [groups][positions] the token there
  std::vector<float> logits_;
  StepOutput output_;
};

// Tokens of a text that repeats nothing soon.
inline std::vector<int32_t> some_tokens(int64_t count, int64_t vocab_size) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>((i * i * 31 + i * 7 + 3) % vocab_size));
  return tokens;
}

}  // namespace millrace
