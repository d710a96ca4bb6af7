// The encoder of an encoder-decoder: reads the source texts of a step before the decoder computes its rows.
#include <algorithm>

#include "millrace/base/check.h"
#include "millrace/model/cpu_executor.h"

namespace millrace {

void CpuExecutor::take_encoder(std::unique_ptr<CpuExecutor> encoder) {
  MR_CHECK(encoder->info_.is_encoder && !info_.is_encoder, "an encoder for a decoder");
  encoder_ = std::move(encoder);
  // Both programs come by their cross groups in the order of the decoder's layers.
  int32_t next = 0;
  const auto& own = program_.kv_groups;
  for (const KvGroupSpec& group : encoder_->program_.kv_groups) {
    if (!group.cross) {
      group_read_.push_back(-1);
      continue;
    }
    while (next < static_cast<int32_t>(own.size()) && !own[static_cast<std::size_t>(next)].cross) ++next;
    MR_CHECK(next < static_cast<int32_t>(own.size()) && own[static_cast<std::size_t>(next)].block_bytes == group.block_bytes,
             "what the encoder writes is what the decoder reads");
    group_read_.push_back(next++);
  }
  info_.start_tokens = network_.start_tokens;
  info_.max_source_tokens = std::min<int64_t>(encoder_->info_.max_positions, encoder_->options_.max_rows);
  activation_bytes_ += encoder_->activation_bytes_;
}

// Whole texts, as many together as the encoder's rows hold. What a text gives does not depend on the others.
void CpuExecutor::read_sources() {
  MR_CHECK(encoder_ != nullptr, "source texts without an encoder");
  const auto& sources = plan_->sources;
  for (std::size_t first = 0; first < sources.size();) {
    source_plan_.clear();
    std::size_t end = first;
    for (; end < sources.size(); ++end) {
      const auto& tokens = sources[end].tokens;
      const auto begin = static_cast<int32_t>(source_plan_.tokens.size()), count = static_cast<int32_t>(tokens.size());
      MR_CHECK(count > 0 && count <= info_.max_source_tokens, "a source text has between 1 and max_source_tokens tokens");
      MR_CHECK(count == plan_->sequences[static_cast<std::size_t>(sources[end].sequence)].num_source_tokens, "the text of its sequence");
      if (end > first && begin + count > encoder_->options_.max_rows) break;
      source_plan_.tokens.insert(source_plan_.tokens.end(), tokens.begin(), tokens.end());
      source_plan_.sequences.push_back({.row_begin = begin, .row_end = begin + count});
    }
    source_plan_.table_begin.push_back(0);
    for (const int32_t group : group_read_) {
      for (std::size_t i = first; i < end; ++i) {
        if (group >= 0) {
          const auto blocks = block_table(group, sources[i].sequence);
          source_plan_.block_ids.insert(source_plan_.block_ids.end(), blocks.begin(), blocks.end());
        }
        source_plan_.table_begin.push_back(static_cast<int32_t>(source_plan_.block_ids.size()));
      }
    }
    encoder_->enqueue(source_plan_);
    first = end;
  }
  output_.hidden = encoder_->output_.hidden;
  output_.hidden_stride = encoder_->output_.hidden_stride;
}

}  // namespace millrace
