#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace millrace {

enum class EarlyStopping {
  kNo,     // until no running beam is likely to beat the finished ones: the heuristic that supposes it would end now
  kYes,    // as soon as there are `width` finished ones
  kNever,  // until no running beam can beat the finished ones, at whatever length
};

// The choices of beam search, token for token those of Hugging Face's `generate` (transformers 5.23, GenerationMixin._beam_search, without
// sampling). Pure: which tokens are likely comes in, which sequences to go on with comes out. Equal scores go to the earlier beam, and then
// to the lower token id.
class BeamSearch {
 public:
  struct Options {
    int32_t width = 1;
    int64_t max_tokens = 1;
    double length_penalty = 1;  // a finished sequence's score is its log probability over its length to this power
    EarlyStopping early_stopping = EarlyStopping::kNo;
    std::vector<int32_t> stop_token_ids;  // what finishes a sequence, and is its last token
  };
  struct Beam {
    int32_t parent = 0;           // of the beams of the step before
    std::vector<int32_t> tokens;  // of the completion
    double score = 0;             // log probability; of finished ones with the length penalty
  };

  explicit BeamSearch(Options options);

  // The likeliest tokens after each running beam that advance() needs to know.
  int32_t num_candidates() const { return (1 + static_cast<int32_t>(options_.stop_token_ids.size())) * options_.width; }
  // What to compute next; at first one beam without tokens.
  const std::vector<Beam>& running() const { return running_; }
  // candidates[b]: token ids with log probabilities after running()[b], the most likely first.
  void advance(std::span<const std::vector<std::pair<int32_t, float>>> candidates);
  bool is_done() const { return done_; }
  // At most `width`, the best first.
  const std::vector<Beam>& finished() const { return finished_; }

 private:
  bool may_improve() const;

  Options options_;
  std::vector<Beam> running_, finished_;
  int64_t num_tokens_ = 0;
  bool done_ = false;
};

}  // namespace millrace
