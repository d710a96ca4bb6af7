#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "millrace/engine/engine.h"
#include "millrace/engine/token_words.h"
#include "millrace/server/api_error.h"
#include "millrace/server/api_request.h"
#include "millrace/server/http.h"
#include "millrace/server/openai_response.h"
#include "millrace/server/output_mailbox.h"
#include "millrace/server/prompt_builder.h"
#include "millrace/server/served_model.h"

namespace millrace {

// A parsed request and its prompts, ready for the engine: what helper threads make.
struct PreparedCall {
  Endpoint endpoint = Endpoint::kChat;
  int32_t client = 0;  // GenerationRequest::client
  ApiRequest request;
  std::vector<BuiltPrompt> prompts;
  std::vector<std::vector<int32_t>> bad_words;  // SamplingParams::bad_words
  DryBreakers::Ids dry_breakers;                // SamplingParams::dry_breakers; only where they matter
};

// The request's words as tokens.
std::optional<ApiError> read_token_words(const ServedModel& model, DryBreakers& dry_breakers, PreparedCall& call);

// Checks what needs the model: ids within the vocabulary, and prompt + completion within `max_model_len`.
std::optional<ApiError> check_against_model(const ServedModel& model, int64_t max_model_len, const PreparedCall& call);

// One HTTP request for completions: starts an engine request per prompt, and turns their deltas into the answer. I/O thread only.
class GenerationCall {
 public:
  GenerationCall(const ServedModel& model, uint64_t call_id, PreparedCall prepared, std::shared_ptr<HttpExchange> exchange);

  // Adds the requests to the engine; their deltas come to `mailbox` under this call's id. With an error nothing is left behind.
  // `seed` serves when the request has none.
  std::optional<ApiError> start(const std::shared_ptr<OutputMailbox>& mailbox, uint64_t seed);

  // True: the answer is complete.
  bool on_delta(int32_t prompt, OutputDelta& delta);

  void cancel();

 private:
  struct Choice {
    std::string text;                    // all of it when not streaming, else what has not been sent
    std::vector<TokenLogprob> logprobs;  // likewise
    int64_t text_offset = 0;
    double logprob_sum = 0;  // of its tokens, with chooses_best()
    int64_t num_tokens = 0;
    bool started = false, echoed = false;
    std::optional<FinishReason> finish_reason;
    std::variant<std::monostate, int32_t, std::string> stop_reason;
  };

  bool scores_prompt() const { return prepared_.request.prompt_logprobs || (prepared_.request.echo && prepared_.request.num_logprobs); }
  bool chooses_best() const { return prepared_.request.num_sequences() > prepared_.request.n && !prepared_.request.use_beam_search; }
  std::vector<int32_t> shown_choices(std::size_t prompt) const;
  bool wants_logprobs() const { return prepared_.request.logprobs || prepared_.request.num_logprobs.has_value(); }
  GenerationRequest make_request(std::size_t prompt);  // takes the prompt's tokens
  std::optional<ApiError> add_request(std::size_t prompt);
  Usage total_usage() const;
  ChoiceOutput output_of(int32_t index) const;
  void take_prompt_logprobs(std::size_t prompt, OutputDelta& delta);
  void echo_logprobs(std::size_t prompt, Choice& choice);
  void stream(int32_t index);
  // Batch prompting: the prompts of `pack_size_` questions each come first, then each question's own.
  std::size_t num_packs() const { return prepared_.prompts.size() - num_questions_; }
  std::size_t questions_of_pack(std::size_t pack) const { return std::min(pack_size_, num_questions_ - pack * pack_size_); }
  void split_packs();  // and asks again, alone, what has no answer
  std::string batch_prompting_json() const;

  void complete();
  void fail(const ApiError& error);

  const ServedModel& model_;
  const uint64_t call_id_;
  PreparedCall prepared_;
  std::shared_ptr<HttpExchange> exchange_;
  OpenAiResponse response_;
  std::shared_ptr<OutputMailbox> mailbox_;
  std::chrono::steady_clock::time_point started_;
  uint64_t seed_ = 0;
  std::vector<RequestId> request_ids_;                      // in the order in which they were added
  std::vector<Usage> usages_;                               // by prompt
  std::vector<std::vector<TokenLogprob>> prompt_logprobs_;  // by prompt; from the first token on, with scores_prompt()
  std::vector<Choice> choices_;                             // prompt-major: prompt * num_sequences + sequence
  int64_t num_unfinished_requests_ = 0;
  std::size_t num_questions_ = 0, pack_size_ = 1;    // 0: no batch prompting
  std::vector<std::optional<std::string>> answers_;  // by question: out of a pack's answer
  std::vector<std::size_t> asked_again_;             // questions
  int64_t num_prompt_tokens_alone_ = 0;              // of all questions, each in a prompt of its own
  bool split_ = false, complete_ = false;
};

}  // namespace millrace
