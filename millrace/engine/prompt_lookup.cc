#include "millrace/engine/prompt_lookup.h"

#include <algorithm>
#include <bit>

#include "millrace/base/check.h"

namespace millrace {

PromptLookup::PromptLookup(int64_t ngram_min) : ngram_min_(ngram_min) {
  MR_CHECK(ngram_min >= 1 && ngram_min <= kMatchMax, "a match of some tokens");
}

uint32_t PromptLookup::hash_ending_at(std::span<const int32_t> tokens, int64_t end) const {
  uint64_t hash = 0;
  for (int64_t i = end - ngram_min_ + 1; i <= end; ++i)
    hash = (hash + static_cast<uint32_t>(tokens[static_cast<std::size_t>(i)]) + 1) * 0x9E3779B97F4A7C15ULL;
  return static_cast<uint32_t>(hash >> 32) & static_cast<uint32_t>(heads_.size() - 1);
}

void PromptLookup::insert(std::span<const int32_t> tokens, int64_t end) {
  previous_.push_back(kNone);
  if (end + 1 < ngram_min_) return;
  int32_t& head = heads_[hash_ending_at(tokens, end)];
  previous_.back() = head;
  head = static_cast<int32_t>(end);
}

// Twice as many heads as tokens. What was inserted is inserted again, which amortizes.
void PromptLookup::grow_heads(std::span<const int32_t> tokens) {
  const std::size_t wanted = std::bit_ceil(std::max<std::size_t>(64, 2 * tokens.size()));
  if (heads_.size() >= tokens.size()) return;
  heads_.assign(wanted, kNone);
  previous_.clear();
  for (int64_t end = 0; end < num_seen_; ++end) insert(tokens, end);
}

void PromptLookup::extend(std::span<const int32_t> tokens, int64_t num_prompt_tokens, DraftAcceptance& own, DraftAcceptance& all) {
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  MR_CHECK(num_tokens >= num_seen_, "a sequence only grows");
  grow_heads(tokens);
  for (; num_seen_ < num_tokens; ++num_seen_) {
    const bool of_completion = num_seen_ >= num_prompt_tokens;
    if (!of_completion) match_length_ = 0;
    if (of_completion && match_length_ == 0 && num_seen_ > 0) find(tokens.first(static_cast<std::size_t>(num_seen_)));
    if (of_completion && match_length_ > 0) {
      const bool accepted = tokens[static_cast<std::size_t>(source_)] == tokens[static_cast<std::size_t>(num_seen_)];
      own.observe(match_length_, accepted);
      all.observe(match_length_, accepted);
      match_length_ = accepted ? match_length_ + 1 : 0;
      ++source_;
    }
    insert(tokens, num_seen_);
  }
  if (match_length_ == 0) find(tokens);
}

void PromptLookup::find(std::span<const int32_t> tokens) {
  const auto last = static_cast<int64_t>(tokens.size()) - 1;
  if (last + 1 < ngram_min_) return;
  int64_t longest = ngram_min_ - 1;
  int32_t place = previous_[static_cast<std::size_t>(last)];
  for (int64_t looked_at = 0; place != kNone && looked_at < kChainMax && longest < kMatchMax;
       ++looked_at, place = previous_[static_cast<std::size_t>(place)]) {
    int64_t length = 0;
    const int64_t longest_here = std::min<int64_t>(kMatchMax, place + 1);
    while (length < longest_here && tokens[static_cast<std::size_t>(place - length)] == tokens[static_cast<std::size_t>(last - length)])
      ++length;
    if (length <= longest) continue;  // also of other tokens with the same hash
    longest = length;
    match_length_ = length;
    source_ = place + 1;
  }
}

void PromptLookup::draft(std::vector<int32_t>& tokens, int64_t count) const {
  MR_CHECK(match_length_ > 0 && static_cast<int64_t>(tokens.size()) == num_seen_, "a draft of the tokens that were seen");
  for (int64_t i = 0; i < count; ++i) {
    const int32_t token = tokens[static_cast<std::size_t>(source_ + i)];
    tokens.push_back(token);
  }
}

class PromptLookupSource::Follower : public Drafter {
 public:
  explicit Follower(PromptLookupSource& source) : source_(source), lookup_(source.ngram_min_) {}

  void extend(std::span<const int32_t> tokens, int64_t num_prompt_tokens) override {
    lookup_.extend(tokens, num_prompt_tokens, acceptance_, source_.acceptance_);
  }
  void predict(int64_t most, std::vector<double>& probabilities) override {
    if (lookup_.match_length() == 0) return;
    for (int64_t k = 0; k < most; ++k) probabilities.push_back(acceptance_.probability(lookup_.match_length() + k, &source_.acceptance_));
  }
  void draft(std::vector<int32_t>& tokens, int64_t count) override { lookup_.draft(tokens, count); }
  void finish(std::span<const int32_t>, int64_t) override {}

 private:
  PromptLookupSource& source_;
  PromptLookup lookup_;
  DraftAcceptance acceptance_{.95};  // of this sequence
};

std::unique_ptr<Drafter> PromptLookupSource::follow(const DraftOwner&) { return std::make_unique<Follower>(*this); }

}  // namespace millrace
