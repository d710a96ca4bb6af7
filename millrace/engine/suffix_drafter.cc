#include "millrace/engine/suffix_drafter.h"

#include <algorithm>

#include "millrace/base/check.h"

namespace millrace {

std::size_t SuffixAcceptance::class_of(int64_t match_length, const SuffixForest::Next& guess) {
  const int64_t count = guess.count, of = guess.of;
  const int64_t support = of == 1 ? 0 : count == of ? 1 : 4 * count >= 3 * of ? 2 : 2 * count >= of ? 3 : 4 * count >= of ? 4 : 5;
  return static_cast<std::size_t>(DraftAcceptance::class_of(match_length) * kSupports + support);
}

void SuffixAcceptance::observe(int64_t match_length, const SuffixForest::Next& guess, bool accepted) {
  seen_[class_of(match_length, guess)].observe(accepted, kept_);
}

double SuffixAcceptance::probability(int64_t match_length, const SuffixForest::Next& guess, const SuffixAcceptance* prior) const {
  // The frequency, as if the text had stood there once more with something else after it.
  const double expected =
      prior != nullptr ? prior->probability(match_length, guess) : static_cast<double>(guess.count) / static_cast<double>(guess.of + 1);
  return seen_[class_of(match_length, guess)].probability(expected);
}

class SuffixSource::Follower : public Drafter {
 public:
  Follower(SuffixSource& source, const DraftOwner& owner) : source_(source), owner_(owner), own_(source.own_.follow(owner)) {}

  void extend(std::span<const int32_t> tokens, int64_t num_prompt_tokens) override {
    const auto num_tokens = static_cast<int64_t>(tokens.size());
    MR_CHECK(num_tokens >= num_seen_, "a sequence only grows");
    own_->extend(tokens, num_prompt_tokens);
    const std::optional<int32_t> root = source_.history_.tree_of(owner_);
    guess_.reset();
    for (num_seen_ = std::max(num_seen_, num_prompt_tokens); num_seen_ < num_tokens; ++num_seen_) {
      match(root, tokens.first(static_cast<std::size_t>(num_seen_)));
      if (!guess_) continue;
      const bool accepted = guess_->token == tokens[static_cast<std::size_t>(num_seen_)];
      acceptance_.observe(match_length_, *guess_, accepted);
      source_.acceptance_.observe(match_length_, *guess_, accepted);
    }
    match(root, tokens);
  }

  void predict(int64_t most, std::vector<double>& probabilities) override {
    own_->predict(most, probabilities);
    draft_.clear();
    if (!guess_) return;
    own_probabilities_.swap(probabilities);
    probabilities.clear();
    std::optional<SuffixForest::Next> next = guess_;
    for (int64_t k = 0; k < most && next; ++k, next = source_.history_.forest().next(next->place)) {
      draft_.push_back(next->token);
      probabilities.push_back(acceptance_.probability(match_length_ + k, *next, &source_.acceptance_));
    }
    if (expected_tokens(probabilities) >= expected_tokens(own_probabilities_)) return;
    draft_.clear();
    probabilities.swap(own_probabilities_);
  }

  void draft(std::vector<int32_t>& tokens, int64_t count) override {
    if (draft_.empty()) {
      own_->draft(tokens, count);
    } else {
      tokens.insert(tokens.end(), draft_.begin(), draft_.begin() + count);
    }
  }

  // With a little of the prompt, so that the beginning of an answer is found, too.
  void finish(std::span<const int32_t> tokens, int64_t num_prompt_tokens) override {
    constexpr int64_t kPromptTokens = 8;
    source_.history_.add(owner_, tokens.subspan(static_cast<std::size_t>(std::max<int64_t>(0, num_prompt_tokens - kPromptTokens))));
  }

 private:
  static constexpr int64_t kMatchMax = 32;

  static double expected_tokens(const std::vector<double>& probabilities) {
    double sum = 0, product = 1;
    for (const double probability : probabilities) sum += product *= probability;
    return sum;
  }

  // The longest text that ends the tokens and stands in the tree, with something after it. With each token it grows by one at most.
  void match(std::optional<int32_t> root, std::span<const int32_t> tokens) {
    const int64_t longest =
        std::min({match_length_ + 1, kMatchMax, static_cast<int64_t>(tokens.size()), source_.history_.options().depth_max / 2});
    guess_.reset();
    match_length_ = root ? longest : 0;
    for (; match_length_ > 0; --match_length_) {
      const auto place = source_.history_.forest().find(*root, tokens.last(static_cast<std::size_t>(match_length_)));
      if (place && (guess_ = source_.history_.forest().next(*place))) return;
    }
  }

  SuffixSource& source_;
  const DraftOwner owner_;
  std::unique_ptr<Drafter> own_;
  SuffixAcceptance acceptance_{.95};  // of this sequence
  int64_t num_seen_ = 0;
  int64_t match_length_ = kMatchMax;         // of the text that guess_ comes after
  std::optional<SuffixForest::Next> guess_;  // of the next token; with the tree as it was when extend() was called last
  std::vector<int32_t> draft_;               // empty: the sequence's own tokens are to go on with
  std::vector<double> own_probabilities_;
};

std::unique_ptr<Drafter> SuffixSource::follow(const DraftOwner& owner) { return std::make_unique<Follower>(*this, owner); }

}  // namespace millrace
