#pragma once

#include <array>

#include "millrace/engine/output_history.h"
#include "millrace/engine/prompt_lookup.h"

namespace millrace {

// How often what comes most frequently after a text in past output is what comes, by how long the text is and how sure the counts are.
class SuffixAcceptance {
 public:
  explicit SuffixAcceptance(double kept) : kept_(kept) {}

  void observe(int64_t match_length, const SuffixForest::Next& guess, bool accepted);
  double probability(int64_t match_length, const SuffixForest::Next& guess, const SuffixAcceptance* prior = nullptr) const;

 private:
  static constexpr int64_t kSupports = 6;  // seen once; always; in 3/4, in 1/2, in 1/4 of the cases; rarer
  static std::size_t class_of(int64_t match_length, const SuffixForest::Next& guess);

  std::array<AcceptanceRate, static_cast<std::size_t>(DraftAcceptance::kClasses* kSupports)> seen_;
  double kept_;
};

// Drafts from what the same owner was answered before, and from the sequence's own tokens, whichever is likely to bring more: the longest
// text that ends the sequence and stands in a past completion, and what came after it most often. (SuffixDecoding, Oliaro et al. 2024,
// arXiv:2411.04975. Here frequencies are corrected by how often such guesses were right, and how many tokens pay is the DraftPlanner's.)
class SuffixSource : public DraftSource {
 public:
  // `ngram_min` is that of the sequence's own tokens.
  SuffixSource(const OutputHistory::Options& history, int64_t ngram_min) : history_(history), own_(ngram_min) {}
  std::unique_ptr<Drafter> follow(const DraftOwner& owner) override;
  int64_t num_past_tokens() const override { return history_.num_tokens(); }

 private:
  class Follower;
  OutputHistory history_;
  PromptLookupSource own_;
  SuffixAcceptance acceptance_{.995};  // of all sequences
};

}  // namespace millrace
