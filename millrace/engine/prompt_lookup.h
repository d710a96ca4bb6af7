#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "millrace/engine/draft_acceptance.h"
#include "millrace/engine/drafter.h"

namespace millrace {

// Predicts how a sequence goes on from how it went on before: answers that summarize, extract or edit repeat long runs of their prompt.
// Finds where the last tokens stood before, longest match first, the most recent of equal ones, and follows it for as long as it is right.
// (Prompt lookup decoding: Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding. The chains of earlier places are those of
// LZ77's implementations, RFC 1951 section 4.)
//
// Every token that comes is compared with the prediction, whether drafts were computed or not: acceptance is known before anything is spent
// on it. A token costs one insertion, and after a wrong prediction a look at kChainMax places of at most kMatchMax tokens each.
class PromptLookup {
 public:
  // Predicts after matches of at least `ngram_min` tokens.
  explicit PromptLookup(int64_t ngram_min);

  // `tokens` is the whole sequence, of which everything that was there at the last call is unchanged. Tokens after the first
  // `num_prompt_tokens` are compared with what was predicted, and observed in both.
  void extend(std::span<const int32_t> tokens, int64_t num_prompt_tokens, DraftAcceptance& own, DraftAcceptance& all);

  // Of the match that predicts the next token; 0: there is none.
  int64_t match_length() const { return match_length_; }
  // The next `count` tokens as predicted, appended to `tokens`, which is what extend() was last given. A match that reaches the end goes on
  // with the prediction itself: a loop is predicted for ever.
  void draft(std::vector<int32_t>& tokens, int64_t count) const;

 private:
  static constexpr int64_t kChainMax = 32, kMatchMax = 16;
  static constexpr int32_t kNone = -1;

  uint32_t hash_ending_at(std::span<const int32_t> tokens, int64_t end) const;
  void insert(std::span<const int32_t> tokens, int64_t end);
  void find(std::span<const int32_t> tokens);
  void grow_heads(std::span<const int32_t> tokens);

  int64_t ngram_min_;
  int64_t num_seen_ = 0;
  int64_t source_ = 0, match_length_ = 0;  // of the predicted token; meaningless without a match
  std::vector<int32_t> heads_;             // [power of two] by hash: the last place where such tokens ended
  std::vector<int32_t> previous_;          // [num_seen_] the place before it in the chain
};

// Drafts from the sequence's own tokens.
class PromptLookupSource : public DraftSource {
 public:
  explicit PromptLookupSource(int64_t ngram_min) : ngram_min_(ngram_min) {}
  std::unique_ptr<Drafter> follow(const DraftOwner& owner) override;

 private:
  class Follower;
  int64_t ngram_min_;
  DraftAcceptance acceptance_{.995};  // of all sequences
};

}  // namespace millrace
