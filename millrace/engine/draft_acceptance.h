#pragma once

#include <array>
#include <cstdint>

namespace millrace {

// How often guesses of one kind are right. Older ones count less.
struct AcceptanceRate {
  double accepted = 0, all = 0;

  // A share of `kept` of what was seen is kept.
  void observe(bool was_accepted, double kept) {
    accepted = accepted * kept + (was_accepted ? 1 : 0);
    all = all * kept + 1;
  }
  // [0, 1]; what is expected, counting for as much as kPriorGuesses, has its say where little was seen.
  double probability(double expected) const {
    constexpr double kPriorGuesses = 4;
    return (accepted + kPriorGuesses * expected) / (all + kPriorGuesses);
  }
};

// How often the token that a match predicts is the one that comes, by how long the match was. Older observations count less.
class DraftAcceptance {
 public:
  static constexpr int64_t kClasses = 6;  // lengths 1, 2, 3, 4, 5 to 8, and above
  static int64_t class_of(int64_t match_length);

  // A share of `kept` of what was seen is kept at each observation of a match of that length.
  explicit DraftAcceptance(double kept) : kept_(kept) {}

  void observe(int64_t match_length, bool accepted);
  // [0, 1]; where little was seen, `prior` has its say, and without it what is usual.
  double probability(int64_t match_length, const DraftAcceptance* prior = nullptr) const;

 private:
  std::array<AcceptanceRate, kClasses> seen_;
  double kept_;
};

}  // namespace millrace
