#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "millrace/base/check.h"
#include "millrace/model/step_plan.h"
#include "millrace/sampling/sampling.h"

// For tests: an executor with a hash in the network's place. What a row writes to KV depends on its token, its position, the rope variant,
// whether it is a prompt's and on everything it reads through its block tables, in every group; the logits depend on that. So a wrong
// table, a block handed out twice or a stale block changes tokens, as it would with a network.
namespace millrace {

class FakeNetwork {
 public:
  explicit FakeNetwork(std::vector<std::optional<int64_t>> windows, int64_t vocab_size = 61)
      : windows_(std::move(windows)), vocab_size_(vocab_size) {}

  static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t x = (a ^ (b + 0x9E3779B97F4A7C15ULL + (a << 6) + (a >> 2))) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
  }

  // The hidden state of a row. read(group, position) gives what was written there.
  template <class Read>
  uint64_t row(int32_t token, int64_t position, bool rope_long, bool of_prompt, Read read) const {
    uint64_t hidden = mix(mix(static_cast<uint64_t>(token), static_cast<uint64_t>(position)), (rope_long ? 1 : 0) + (of_prompt ? 2 : 0));
    for (std::size_t g = 0; g < windows_.size(); ++g) {
      const int64_t first = windows_[g] ? std::max<int64_t>(0, position - *windows_[g]) : 0;
      for (int64_t p = first; p < position; ++p) hidden = mix(hidden, read(g, p));
    }
    return hidden;
  }

  void logits(uint64_t hidden, std::span<float> out) const {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(mix(hidden, i) >> 40) * 0x1p-24f * 8 - 4;
  }

  const std::vector<std::optional<int64_t>>& windows() const { return windows_; }
  int64_t vocab_size() const { return vocab_size_; }

 private:
  std::vector<std::optional<int64_t>> windows_;
  int64_t vocab_size_;
};

class FakeExecutor : public Executor {
 public:
  explicit FakeExecutor(FakeNetwork network, int64_t max_positions = 4096, int64_t rope_short_length = 0) : network_(std::move(network)) {
    info_.vocab_size = info_.sampled_vocab_size = network_.vocab_size();
    info_.max_positions = max_positions;
    info_.rope_short_length = rope_short_length;
    info_.prompt_differs = true;
    for (const auto& window : network_.windows()) info_.kv_groups.push_back({1, 1, 1, window, kKvBlockTokens * int64_t{sizeof(uint64_t)}});
  }

  // Rows with this token give logits that are not finite.
  std::optional<int32_t> poison_token;

  const ExecutorInfo& info() const override { return info_; }
  int64_t num_steps() const { return num_steps_; }
  int64_t max_rows_seen() const { return max_rows_seen_; }
  int64_t max_outputs_seen() const { return max_outputs_seen_; }
  int64_t num_block_copies() const { return num_block_copies_; }
  int64_t num_rows_computed() const { return num_rows_computed_; }           // of all steps
  int64_t num_rows() const { return static_cast<int64_t>(hidden_.size()); }  // of the last step

  Status allocate_kv(std::span<const int64_t> num_blocks) override {
    for (const int64_t blocks : num_blocks) kv_.emplace_back(static_cast<std::size_t>(blocks * kKvBlockTokens), 0);
    return Status::ok();
  }

  void enqueue(const StepPlan& plan) override {
    ++num_steps_;
    num_rows_computed_ += static_cast<int64_t>(plan.tokens.size());
    max_rows_seen_ = std::max(max_rows_seen_, static_cast<int64_t>(plan.tokens.size()));
    max_outputs_seen_ = std::max(max_outputs_seen_, static_cast<int64_t>(plan.outputs.size()));
    const std::size_t num_sequences = plan.sequences.size();
    MR_CHECK(plan.table_begin.size() == kv_.size() * num_sequences + 1, "a table for each group and sequence");
    for (const StepPlan::BlockCopy& copy : plan.block_copies) {
      std::vector<uint64_t>& kv = kv_[static_cast<std::size_t>(copy.group)];
      std::copy_n(kv.begin() + copy.from * kKvBlockTokens, kKvBlockTokens, kv.begin() + copy.to * kKvBlockTokens);
      ++num_block_copies_;
    }
    std::set<std::pair<std::size_t, int32_t>> written;  // blocks, each by one sequence only
    hidden_.resize(plan.tokens.size());
    int32_t next_row = 0;
    for (std::size_t s = 0; s < num_sequences; ++s) {
      const StepPlan::Sequence& sequence = plan.sequences[s];
      MR_CHECK(sequence.row_begin == next_row && sequence.row_end > next_row, "sequences in row order, covering every row");
      next_row = sequence.row_end;
      const auto table = [&](std::size_t g) {
        const int32_t begin = plan.table_begin[g * num_sequences + s], end = plan.table_begin[g * num_sequences + s + 1];
        return std::span<const int32_t>(plan.block_ids).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
      };
      const auto slot = [&](std::size_t g, int64_t position) -> uint64_t& {
        const int32_t block = table(g)[static_cast<std::size_t>(position / kKvBlockTokens)];
        MR_CHECK(block >= 0, "a row needs a block that its window has passed");
        return kv_[g][static_cast<std::size_t>(block) * kKvBlockTokens + static_cast<std::size_t>(position % kKvBlockTokens)];
      };
      const int64_t last_position = sequence.first_position + (sequence.row_end - sequence.row_begin) - 1;
      for (std::size_t g = 0; g < kv_.size(); ++g) {
        MR_CHECK(static_cast<int64_t>(table(g).size()) == last_position / kKvBlockTokens + 1, "a table as long as the sequence");
        for (int64_t block = sequence.first_position / kKvBlockTokens; block <= last_position / kKvBlockTokens; ++block) {
          MR_CHECK(written.insert({g, table(g)[static_cast<std::size_t>(block)]}).second, "two sequences write one block");
        }
      }
      for (int32_t row = sequence.row_begin; row < sequence.row_end; ++row) {
        const int64_t position = sequence.first_position + (row - sequence.row_begin);
        const int32_t token = plan.tokens[static_cast<std::size_t>(row)];
        const uint64_t hidden = network_.row(token, position, sequence.rope_long, position < sequence.num_prompt_tokens, slot);
        for (std::size_t g = 0; g < kv_.size(); ++g) slot(g, position) = FakeNetwork::mix(hidden, g);
        hidden_[static_cast<std::size_t>(row)] = hidden;
      }
    }
    MR_CHECK(next_row == static_cast<int32_t>(plan.tokens.size()), "every row belongs to a sequence");
    output_.tokens.resize(plan.outputs.size());
    logits_.resize(static_cast<std::size_t>(network_.vocab_size()));
    for (std::size_t k = 0; k < plan.outputs.size(); ++k) {
      const std::size_t row = static_cast<std::size_t>(plan.outputs[k].row);
      network_.logits(hidden_[row], logits_);
      if (poison_token && plan.tokens[row] == *poison_token) logits_[3] = std::numeric_limits<float>::quiet_NaN();
      sample(logits_, *plan.outputs[k].sampling, scratch_, output_.tokens[k]);
    }
  }
  const StepOutput& wait() override { return output_; }
  void save_block(int64_t group, int32_t block_id, std::span<std::byte> to) const override {
    std::memcpy(to.data(), kv_[static_cast<std::size_t>(group)].data() + int64_t{block_id} * kKvBlockTokens, to.size());
  }
  void load_block(int64_t group, int32_t block_id, std::span<const std::byte> from) override {
    std::memcpy(kv_[static_cast<std::size_t>(group)].data() + int64_t{block_id} * kKvBlockTokens, from.data(), from.size());
  }

 private:
  FakeNetwork network_;
  ExecutorInfo info_;
  std::vector<std::vector<uint64_t>> kv_;  // [num_groups][num_blocks * block size]
  std::vector<uint64_t> hidden_;
  std::vector<float> logits_;
  SamplingScratch scratch_;
  StepOutput output_;
  int64_t num_steps_ = 0, max_rows_seen_ = 0, max_outputs_seen_ = 0, num_block_copies_ = 0, num_rows_computed_ = 0;
};

// The judge: the same network without blocks, batches or an engine.
inline std::vector<int32_t> reference_completion(const FakeNetwork& network, const std::vector<int32_t>& prompt,
                                                 const SamplingParams& params, uint64_t seed, int32_t sequence, int64_t num_tokens,
                                                 bool rope_long = false) {
  std::vector<int32_t> tokens = prompt;
  std::vector<std::vector<uint64_t>> kv(network.windows().size());
  std::vector<float> logits(static_cast<std::size_t>(network.vocab_size()));
  SamplingScratch scratch;
  std::optional<double> mirostat_mu;
  uint64_t hidden = 0;
  for (std::size_t p = 0; static_cast<int64_t>(tokens.size() - prompt.size()) < num_tokens; ++p) {
    hidden = network.row(tokens[p], static_cast<int64_t>(p), rope_long, p < prompt.size(),
                         [&](std::size_t g, int64_t position) { return kv[g][static_cast<std::size_t>(position)]; });
    for (std::size_t g = 0; g < kv.size(); ++g) kv[g].push_back(FakeNetwork::mix(hidden, g));
    if (p + 1 < tokens.size()) continue;
    network.logits(hidden, logits);
    SampledToken token;
    SamplingInput input;
    input.params = &params;
    input.seed = seed;
    input.sequence = static_cast<uint64_t>(sequence);
    input.position = tokens.size() - prompt.size();
    input.prompt_tokens = std::span(tokens).first(prompt.size());
    input.completion_tokens = std::span(tokens).subspan(prompt.size());
    input.mirostat_mu = mirostat_mu;
    sample(logits, input, scratch, token);
    mirostat_mu = token.mirostat_mu;
    tokens.push_back(token.id);
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt.size()), tokens.end()};
}

}  // namespace millrace
