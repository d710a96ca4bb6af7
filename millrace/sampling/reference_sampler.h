#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "millrace/sampling/philox.h"
#include "millrace/sampling/sampling.h"

// For tests, the judge of sampling: everything in double, everything sorted, one plain step after the other.
namespace millrace {

struct ReferenceToken {
  int32_t id;
  double logit;   // after bias, penalties and masks
  double weight;  // exp((logit - best) / temperature); at the end a probability
};

struct Survivors {
  std::vector<ReferenceToken> tokens;  // in the order the draw walks
  bool near_boundary = false;          // a cut so close that rounding may decide it
};

class ReferenceSampler {
 public:
  ReferenceSampler(const std::vector<float>& logits, const SamplingInput& input)
      : input_(input), params_(*input.params), vocab_size_(static_cast<int32_t>(logits.size())) {
    changed_.assign(logits.begin(), logits.end());
    for (const auto& [id, bias] : params_.logit_bias) changed_[id] += bias;
    penalize();
    penalize_repetitions();
    for (int32_t id = 0; id < vocab_size_; ++id) {
      if (may_be_drawn(id)) result_.tokens.push_back({id, changed_[id], 0});
    }
    if (result_.tokens.empty()) return;
    by_likelihood();
    if (params_.temperature == 0) {
      result_.tokens.resize(1);
      result_.tokens[0].weight = 1;
      return;
    }
    const double best = result_.tokens[0].logit;
    for (ReferenceToken& token : result_.tokens) token.weight = std::exp((token.logit - best) / static_cast<double>(params_.temperature));
    const bool top_k = params_.top_k > 0 && params_.top_k < vocab_size_ && params_.mirostat == 0;
    if (params_.mirostat == 2) {
      keep_unsurprising();
    } else {
      keep_within_sigma();
      keep_above_min_p();
      if (top_k && static_cast<std::size_t>(params_.top_k) < result_.tokens.size())
        result_.tokens.resize(static_cast<std::size_t>(params_.top_k));
      keep_typical();
      keep_top_p();
      exclude_top_choices();
    }
    if (!top_k) std::sort(result_.tokens.begin(), result_.tokens.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    const double total = sum();
    for (ReferenceToken& token : result_.tokens) token.weight /= total;
  }

  const Survivors& survivors() const { return result_; }

  // Where the walk ends; absent where rounding may decide.
  std::optional<ReferenceToken> drawn() const {
    if (result_.near_boundary || result_.tokens.empty()) return std::nullopt;
    const double u = uniform_at(input_.seed, input_.sequence, input_.position);
    double running = 0;
    for (const ReferenceToken& token : result_.tokens) {
      running += token.weight;
      if (std::abs(running - u) < 1e-5) return std::nullopt;
      if (running > u) return token;
    }
    return std::nullopt;
  }

  double mu() const { return input_.mirostat_mu ? *input_.mirostat_mu : 2 * static_cast<double>(params_.mirostat_tau); }
  double next_mu(const ReferenceToken& token) const {
    return mu() - static_cast<double>(params_.mirostat_eta) * (-std::log2(token.weight) - static_cast<double>(params_.mirostat_tau));
  }

 private:
  double sum() const {
    double total = 0;
    for (const ReferenceToken& token : result_.tokens) total += token.weight;
    return total;
  }
  void by_likelihood() {
    std::sort(result_.tokens.begin(), result_.tokens.end(),
              [](const auto& a, const auto& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; });
  }
  template <class Drop>
  void drop_if(const Drop& drop) {
    result_.tokens.erase(std::remove_if(result_.tokens.begin(), result_.tokens.end(), drop), result_.tokens.end());
  }
  // Notes when a and b are so near that rounding may order them either way. Equal means equal in both.
  void compare_near(double a, double b, double tolerance) {
    if (a != b && std::abs(a - b) < tolerance) result_.near_boundary = true;
  }

  void penalize() {
    std::map<int32_t, int> completion;
    for (const int32_t id : input_.completion_tokens) ++completion[id];
    std::set<int32_t> seen(input_.prompt_tokens.begin(), input_.prompt_tokens.end());
    for (const auto& [id, count] : completion) seen.insert(id);
    for (const int32_t id : seen)
      changed_[id] = changed_[id] > 0 ? changed_[id] / params_.repetition_penalty : changed_[id] * params_.repetition_penalty;
    for (const auto& [id, count] : completion) changed_[id] -= params_.frequency_penalty * count + params_.presence_penalty;
  }

  // DRY, for each token by trying every place at which it stands in the text.
  void penalize_repetitions() {
    if (params_.dry_multiplier == 0) return;
    std::vector<int32_t> text(input_.prompt_tokens.begin(), input_.prompt_tokens.end());
    text.insert(text.end(), input_.completion_tokens.begin(), input_.completion_tokens.end());
    const int64_t last_n = params_.dry_penalty_last_n < 0 ? static_cast<int64_t>(text.size()) : params_.dry_penalty_last_n;
    if (last_n < static_cast<int64_t>(text.size())) text.erase(text.begin(), text.end() - last_n);
    const auto breaks = [&](int32_t id) {
      return params_.dry_breakers &&
             std::find(params_.dry_breakers->begin(), params_.dry_breakers->end(), id) != params_.dry_breakers->end();
    };
    std::map<int32_t, int> longest;
    const int size = static_cast<int>(text.size());
    for (int place = 0; place < size; ++place) {
      if (breaks(text[place])) continue;
      int length = 0;  // of what stands before `place` and also at the end
      while (length < place && text[place - 1 - length] == text[size - 1 - length] && !breaks(text[place - 1 - length])) ++length;
      if (length >= params_.dry_allowed_length) longest[text[place]] = std::max(longest[text[place]], length);
    }
    for (const auto& [id, length] : longest) {
      changed_[id] -=
          std::min(1e30, params_.dry_multiplier * std::pow(static_cast<double>(params_.dry_base), length - params_.dry_allowed_length));
      changed_[id] = std::max(changed_[id], -1e30);
    }
  }

  bool may_be_drawn(int32_t id) const {
    if (!input_.allowed.empty() && (input_.allowed[id / 32] >> (id % 32) & 1) == 0) return false;
    const auto holds = [id](const auto& ids) { return std::find(ids.begin(), ids.end(), id) != ids.end(); };
    if (holds(input_.forbidden)) return false;
    if (!params_.allowed_token_ids.empty() && !holds(params_.allowed_token_ids)) return false;
    std::vector<int32_t> text(input_.completion_tokens.begin(), input_.completion_tokens.end());
    text.push_back(id);
    for (const std::vector<int32_t>& word : params_.bad_words) {
      if (word.size() <= text.size() && std::equal(word.begin(), word.end(), text.end() - static_cast<std::ptrdiff_t>(word.size())))
        return false;
    }
    return true;
  }

  void keep_unsurprising() {
    const double total = sum();
    std::size_t kept = 0;
    for (; kept < result_.tokens.size(); ++kept) {
      const double surprise = -std::log2(result_.tokens[kept].weight / total);
      if (std::abs(surprise - mu()) < 1e-5) result_.near_boundary = true;
      if (surprise > mu()) break;
    }
    result_.tokens.resize(std::max<std::size_t>(1, kept));
  }

  void keep_within_sigma() {
    if (params_.top_n_sigma <= 0) return;
    double mean = 0, variance = 0;
    const double count = static_cast<double>(result_.tokens.size());
    for (const ReferenceToken& token : result_.tokens) mean += token.logit / count;
    for (const ReferenceToken& token : result_.tokens) variance += (token.logit - mean) * (token.logit - mean) / count;
    const double lowest = result_.tokens[0].logit - params_.top_n_sigma * std::sqrt(variance);
    for (const ReferenceToken& token : result_.tokens) compare_near(token.logit, lowest, 1e-5 * (1 + std::abs(lowest)));
    drop_if([&](const auto& token) { return token.logit < lowest; });
  }

  void keep_above_min_p() {
    for (const ReferenceToken& token : result_.tokens) {
      if (std::abs(token.weight - params_.min_p) < 1e-6 * params_.min_p && params_.min_p < 1) result_.near_boundary = true;
    }
    drop_if([&](const auto& token) { return token.weight < params_.min_p; });
  }

  void keep_typical() {
    if (params_.typical_p >= 1) return;
    const double total = sum();
    double entropy = 0;
    for (const ReferenceToken& token : result_.tokens) {
      if (token.weight > 0) entropy -= token.weight / total * std::log(token.weight / total);
    }
    const auto distance = [&](const ReferenceToken& token) { return std::abs(-std::log(token.weight / total) - entropy); };
    // Among equal logits the order stays. Weights that are 0 in single precision take part in nothing.
    drop_if([](const auto& token) { return token.weight < 1.7e-38; });
    std::sort(result_.tokens.begin(), result_.tokens.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    std::stable_sort(result_.tokens.begin(), result_.tokens.end(),
                     [&](const auto& a, const auto& b) { return a.logit != b.logit && distance(a) < distance(b); });
    double taken = 0;
    std::size_t kept = 0;
    while (kept < result_.tokens.size() && (kept == 0 || taken < params_.typical_p * total)) {
      taken += result_.tokens[kept++].weight;
      if (std::abs(taken / total - params_.typical_p) < 1e-5) result_.near_boundary = true;
    }
    for (std::size_t i = kept; i < result_.tokens.size(); ++i) {
      if (result_.tokens[i].logit != result_.tokens[kept - 1].logit)
        compare_near(distance(result_.tokens[i]), distance(result_.tokens[kept - 1]), 1e-5);
      if (distance(result_.tokens[i]) == distance(result_.tokens[kept - 1]) && result_.tokens[i].logit != result_.tokens[kept - 1].logit)
        result_.near_boundary = true;
    }
    result_.tokens.resize(kept);
    by_likelihood();
  }

  void keep_top_p() {
    if (params_.top_p >= 1) return;
    const double total = sum();
    double taken = 0;
    std::size_t kept = 0;
    while (kept < result_.tokens.size() && (kept == 0 || taken < params_.top_p * total)) {
      taken += result_.tokens[kept++].weight;
      if (std::abs(taken / total - params_.top_p) < 1e-5) result_.near_boundary = true;
    }
    result_.tokens.resize(kept);
  }

  void exclude_top_choices() {
    if (!(uniform_at(input_.seed, input_.sequence, input_.position, 1) < static_cast<double>(params_.xtc_probability)) ||
        params_.xtc_threshold > 0.5f)
      return;
    const double total = sum();
    std::size_t num_top = 0;
    for (const ReferenceToken& token : result_.tokens) {
      if (std::abs(token.weight / total - params_.xtc_threshold) < 1e-6) result_.near_boundary = true;
      if (token.weight / total >= params_.xtc_threshold) ++num_top;
    }
    if (num_top >= 2) result_.tokens.erase(result_.tokens.begin(), result_.tokens.begin() + static_cast<std::ptrdiff_t>(num_top) - 1);
  }

  const SamplingInput& input_;
  const SamplingParams& params_;
  const int32_t vocab_size_;
  std::vector<double> changed_;
  Survivors result_;
};

}  // namespace millrace
