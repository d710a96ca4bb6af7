#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "millrace/engine/step_seconds.h"
#include "millrace/sampling/sampling.h"

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
  // What must be computed once before the first draft can be; 0: nothing that counts.
  virtual double overhead_seconds() const { return 0; }
  // The first `count` of the tokens that predict() spoke of, appended to what extend() was given. Fewer, where they could not be computed.
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

// One sequence that is to have a draft.
struct DraftWork {
  Drafter* drafter = nullptr;
  std::vector<int32_t>* tokens = nullptr;  // what extend() was given; the same again when compute() returns
  int64_t num_prompt_tokens = 0;
  int64_t num_tokens_expected = 0;  // prompt and the longest completion
  int64_t count = 0;                // draft tokens wanted, at least 1
  SamplingInput sampling;           // parameters, seed and sequence with which the target draws
  int64_t min_tokens = 0;           // completion tokens before which `stop_token_ids` are not drawn
  std::span<const int32_t> stop_token_ids = {};
};

// A way of guessing, for all the sequences of an engine.
class DraftSource {
 public:
  virtual ~DraftSource() = default;
  // For a sequence that begins to decode; the source outlives it.
  virtual std::unique_ptr<Drafter> follow(const DraftOwner& owner) = 0;
  // Once in every step, after extend() of all that decode and before draft(): guesses that take a computation are made for all together.
  virtual void compute(std::span<const DraftWork> work) { static_cast<void>(work); }
  // What drafting one token for so many sequences takes ("rows" are sequences); null: guesses are free.
  virtual const StepSeconds* draft_seconds() const { return nullptr; }
  virtual int64_t num_used_blocks() const { return 0; }  // of a KV cache of the source's own
  virtual int64_t num_past_tokens() const { return 0; }  // of sequences that have ended, kept to guess from
};

}  // namespace millrace
