#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

// Where draft tokens come from. Whatever is guessed, the text stays the same (docs/speculation.md): a drafter can only cost time.
namespace millrace {

// Guesses how one sequence goes on.
class Drafter {
 public:
  virtual ~Drafter() = default;
  // Before each step that may have drafts. `tokens` is the whole sequence, of which everything that was there at the last call is
  // unchanged; those after the first `num_prompt_tokens` came since, and are compared with what was guessed, drafted or not.
  virtual void extend(std::span<const int32_t> tokens, int64_t num_prompt_tokens) = 0;
  // How likely the next tokens can be guessed, at most `most` of them: the first, the second given that the first was, and so on.
  // `probabilities` is empty before, and stays so where there is no guess.
  virtual void predict(int64_t most, std::vector<double>& probabilities) = 0;
  // The first `count` of the tokens that predict() spoke of, appended to what extend() was given.
  virtual void draft(std::vector<int32_t>& tokens, int64_t count) = 0;
  // The sequence has ended; the last call.
  virtual void finish(std::span<const int32_t> tokens, int64_t num_prompt_tokens) = 0;
};

// On whose account a sequence runs. Nothing that one owner was answered may show in the speed of what another one is.
struct DraftOwner {
  int32_t client = 0;  // GenerationRequest::client
  std::string cache_salt;
  auto operator<=>(const DraftOwner&) const = default;
};

// A way of guessing, for all the sequences of an engine.
class DraftSource {
 public:
  virtual ~DraftSource() = default;
  // For a sequence that begins to decode; the source outlives it.
  virtual std::unique_ptr<Drafter> follow(const DraftOwner& owner) = 0;
  virtual int64_t num_past_tokens() const { return 0; }  // of sequences that have ended, kept to guess from
};

}  // namespace millrace
