#include "millrace/sampling/truncation.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace millrace {
namespace {

bool more_likely(const Candidate& a, const Candidate& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; }

// Keeps the candidates with the largest keys whose weights together reach `needed`, the first among equal keys. Keys are below 2^30. A
// radix selection finds the key at which the set ends, in three passes and without a sort.
template <class KeyAt>
void keep_largest_keys(std::vector<Candidate>& candidates, const KeyAt& key_at, double needed, std::vector<double>& sums) {
  constexpr int kShifts[] = {20, 10, 0};
  double taken = 0;  // of keys above everything with the current prefix
  uint32_t prefix = 0;
  for (const int shift : kShifts) {
    sums.assign(1024, 0.0);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const uint32_t key = key_at(i);
      if (shift == 20 || key >> (shift + 10) == prefix) sums[key >> shift & 1023] += static_cast<double>(candidates[i].first);
    }
    uint32_t digit = 1023;
    while (digit > 0 && taken + sums[digit] < needed) taken += sums[digit--];
    // Rounding may leave `needed` beyond the sum: then the set ends at the smallest key there is.
    if (sums[digit] == 0) {
      while (digit < 1023 && sums[digit] == 0) ++digit;
      taken -= sums[digit];
    }
    prefix = prefix << 10 | digit;
  }
  std::size_t kept = 0;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const uint32_t key = key_at(i);
    if (key < prefix || (key == prefix && taken >= needed)) continue;
    if (key == prefix) taken += static_cast<double>(candidates[i].first);
    candidates[kept++] = candidates[i];
  }
  candidates.resize(kept);
}

}  // namespace

// One comparison for almost every logit: the buffer holds up to 2k candidates, and whenever it is full its lower half goes and the bar
// rises.
void select_top_k(std::span<const float> logits, int64_t k, float lowest, std::vector<Candidate>& best) {
  best.clear();
  const std::size_t keep = static_cast<std::size_t>(k);
  const std::size_t capacity = std::max<std::size_t>(2 * keep, 64);
  float bar = std::nextafter(lowest, -std::numeric_limits<float>::infinity());
  const auto cut = [&] {
    std::nth_element(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(keep) - 1, best.end(), more_likely);
    best.resize(keep);
    bar = best.back().first;
  };
  for (std::size_t id = 0; id < logits.size(); ++id) {
    // Ids ascend, so a logit equal to the bar ranks behind all that are kept.
    if (logits[id] > bar) {
      best.emplace_back(logits[id], static_cast<int32_t>(id));
      if (best.size() == capacity) cut();
    }
  }
  if (best.size() > keep) cut();
  std::sort(best.begin(), best.end(), more_likely);
}

double sum_of_weights(std::span<const Candidate> candidates) {
  double sum = 0;
  for (const Candidate& candidate : candidates) sum += static_cast<double>(candidate.first);
  return sum;
}

void keep_top_p(std::vector<Candidate>& candidates, double needed, std::vector<double>& sums) {
  // Of positive floats the order of bits is the order of values.
  keep_largest_keys(candidates, [&](std::size_t i) { return std::bit_cast<uint32_t>(candidates[i].first); }, needed, sums);
}

void keep_typical(std::vector<Candidate>& candidates, double typical_p, std::span<const float> logits, float max_logit,
                  float inverse_temperature, std::vector<uint32_t>& keys, std::vector<double>& sums) {
  // With x = ln weight, -ln p = ln(sum) - x and the entropy is ln(sum) - mean(x): the distance between them is |x - mean(x)|.
  const auto log_weight = [&](const Candidate& candidate) {
    return (static_cast<double>(logits[static_cast<std::size_t>(candidate.second)]) - static_cast<double>(max_logit)) *
           static_cast<double>(inverse_temperature);
  };
  double total = 0, mean = 0;
  for (const Candidate& candidate : candidates) {
    total += static_cast<double>(candidate.first);
    mean += static_cast<double>(candidate.first) * log_weight(candidate);
  }
  mean /= total;
  keys.resize(candidates.size());
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    // A weight above 0 is above exp(-88), so that a distance of 256 is never reached and the scaled one's bits stay below 2^30.
    const float distance = static_cast<float>(std::abs(log_weight(candidates[i]) - mean)) * 0x1p-8f;
    keys[i] = 0x3fffffffu - std::bit_cast<uint32_t>(std::min(distance, 1.0f));
  }
  // What is written moves forward only, so keys not yet read stay in place.
  keep_largest_keys(candidates, [&](std::size_t i) { return keys[i]; }, typical_p * total, sums);
}

void exclude_top_choices(std::vector<Candidate>& candidates, double threshold) {
  const double bar = threshold * sum_of_weights(candidates);
  const auto is_top = [&](const Candidate& candidate) { return static_cast<double>(candidate.first) >= bar; };
  const Candidate* least = nullptr;
  for (const Candidate& candidate : candidates) {
    if (is_top(candidate) && (least == nullptr || candidate.first <= least->first)) least = &candidate;
  }
  if (least == nullptr) return;
  const int32_t stays = least->second;
  std::erase_if(candidates, [&](const Candidate& candidate) { return is_top(candidate) && candidate.second != stays; });
}

}  // namespace millrace
