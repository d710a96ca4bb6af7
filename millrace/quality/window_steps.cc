#include "millrace/quality/window_steps.h"

#include <fmt/format.h>

#include <algorithm>

namespace millrace {

WindowSteps::WindowSteps(const TextWindows& text, int64_t rows_max, int64_t outputs_max, bool as_generated)
    : text_(text), as_generated_(as_generated) {
  MR_CHECK(rows_max > 0 && outputs_max > 0, "a step has rows");
  int64_t rows_left = 0, outputs_left = 0;
  const auto close = [&] {
    if (!steps_.empty()) {
      steps_.back().piece_end = pieces_.size();
      steps_.back().row_end = rows_.size();
    }
  };
  for (std::size_t w = 0; w < text.windows.size(); ++w) {
    const auto& window = text.windows[w];
    blocks_each_ = std::max(blocks_each_, (window.count + kKvBlockTokens - 1) / kKvBlockTokens);
    // The last token is only ever predicted.
    for (int64_t begin = 0; begin < window.count - 1;) {
      const int64_t end = std::min({begin + rows_left, std::max(begin, window.first_row) + outputs_left, window.count - 1});
      if (end <= begin) {
        close();
        steps_.push_back({pieces_.size(), 0, rows_.size(), 0});
        rows_left = rows_max;
        outputs_left = outputs_max;
        continue;
      }
      pieces_.push_back({static_cast<int64_t>(w), begin, end});
      for (int64_t row = std::max(begin, window.first_row); row < end; ++row) {
        rows_.push_back({static_cast<int64_t>(w), row});
        --outputs_left;
      }
      rows_left -= end - begin;
      num_rows_ += end - begin;
      begin = end;
    }
  }
  close();
  for (const Step& step : steps_)
    num_slots_ = std::max(num_slots_, pieces_[step.piece_end - 1].window - pieces_[step.piece_begin].window + 1);
}

std::span<const WindowSteps::Row> WindowSteps::rows(int64_t step) const {
  const Step& s = steps_[static_cast<std::size_t>(step)];
  return std::span(rows_).subspan(s.row_begin, s.row_end - s.row_begin);
}

Status WindowSteps::check(const ExecutorInfo& info) const {
  for (const auto& window : text_.windows) {
    if (window.count > info.max_positions)
      return Status::invalid_argument(
          fmt::format("windows of {} tokens are longer than the model's context of {}", window.count, info.max_positions));
  }
  const auto outside = [&](int32_t id) { return id < 0 || id >= info.vocab_size; };
  const auto bad = std::find_if(text_.tokens.begin(), text_.tokens.end(), outside);
  if (bad != text_.tokens.end())
    return Status::invalid_argument(fmt::format("token id {} is outside the vocabulary [0, {})", *bad, info.vocab_size));
  if (text_.bos && outside(*text_.bos))
    return Status::invalid_argument(fmt::format("the BOS token's id {} is outside the vocabulary [0, {})", *text_.bos, info.vocab_size));
  return Status::ok();
}

void WindowSteps::plan(int64_t step, const ExecutorInfo& info, StepPlan& plan) const {
  const Step& s = steps_[static_cast<std::size_t>(step)];
  const auto pieces = std::span(pieces_).subspan(s.piece_begin, s.piece_end - s.piece_begin);
  plan.clear();
  for (const Piece& piece : pieces) {
    const auto& window = text_.windows[static_cast<std::size_t>(piece.window)];
    const auto row_begin = static_cast<int32_t>(plan.tokens.size());
    for (int64_t row = piece.begin; row < piece.end; ++row) {
      if (row >= window.first_row) plan.outputs.push_back({static_cast<int32_t>(plan.tokens.size()), nullptr});
      plan.tokens.push_back(text_.input(window, row));
    }
    // The rope variant of length-dependent scalings is that of a request as long as the window.
    const bool rope_long = info.rope_short_length > 0 && window.count > info.rope_short_length;
    plan.sequences.push_back({row_begin, static_cast<int32_t>(plan.tokens.size()), static_cast<int32_t>(piece.begin), rope_long});
    if (as_generated_) plan.sequences.back().num_prompt_tokens = 0;
  }
  plan.table_begin.push_back(0);
  for (std::size_t group = 0; group < info.kv_groups.size(); ++group) {
    for (const Piece& piece : pieces) {
      const int64_t first_block = piece.window % num_slots_ * blocks_each_;
      for (int64_t block = 0; block * kKvBlockTokens < piece.end; ++block)
        plan.block_ids.push_back(static_cast<int32_t>(first_block + block));
      plan.table_begin.push_back(static_cast<int32_t>(plan.block_ids.size()));
    }
  }
}

}  // namespace millrace
