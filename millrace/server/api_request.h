#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/engine/beam_search.h"

namespace millrace {

enum class Endpoint : unsigned {
  kChat = 1,
  kCompletions = 2,
  kTokenize = 4,
  kDetokenize = 8,
  kEmbeddings = 16,
  kClassify = 32,
  kScore = 64,
  kRerank = 128
};

// One prompt of /v1/completions or /tokenize: text, or ids that a client made itself.
using Prompt = std::variant<std::string, std::vector<int32_t>>;

// A request as its endpoint's fields say it (request_table.cc), checked field by field. Absent fields keep what is here; sampling
// fields that are absent take the model's own defaults.
struct ApiRequest {
  std::string model;            // empty: the served one
  json::array messages;         // chat, tokenize: objects with a role and a string as content
  std::vector<Prompt> prompts;  // completions, tokenize
  std::vector<int32_t> tokens;  // detokenize

  bool stream = false;
  bool include_usage = false;           // stream_options
  bool continuous_usage_stats = false;  // stream_options

  std::optional<int64_t> max_tokens;
  std::optional<int64_t> max_completion_tokens;
  int64_t min_tokens = 0;
  int64_t n = 1;
  std::optional<int64_t> best_of;
  bool use_beam_search = false;  // of as many beams as num_sequences()
  std::optional<double> length_penalty;
  std::optional<EarlyStopping> early_stopping;
  std::optional<double> temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty;
  std::optional<int64_t> top_k;
  std::optional<double> typical_p, top_n_sigma, xtc_probability, xtc_threshold, dry_multiplier, dry_base, mirostat_tau, mirostat_eta;
  std::optional<int64_t> dry_allowed_length, dry_penalty_last_n, mirostat;
  std::optional<std::vector<std::string>> dry_sequence_breakers;
  std::optional<int64_t> seed;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> allowed_token_ids;  // empty: all
  std::vector<std::string> bad_words;
  bool logprobs = false;                // chat
  std::optional<int64_t> top_logprobs;  // chat
  std::optional<int64_t> num_logprobs;  // completions' "logprobs"
  std::optional<int64_t> prompt_logprobs;

  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;
  bool echo = false;

  std::optional<json::array> tools;
  std::optional<json::array> documents;
  json::object chat_template_kwargs;
  std::optional<bool> add_generation_prompt;
  bool continue_final_message = false;
  std::optional<bool> add_special_tokens;  // absent: as the endpoint does by default
  bool return_token_strs = false;          // tokenize

  // Of encoders. Inputs of embeddings and classify are `prompts`.
  bool base64 = false;                // embeddings: encoding_format
  std::optional<int64_t> dimensions;  // embeddings
  // score: pairs, one text on the left with each on the right or as many; rerank: the query, the documents
  std::vector<std::string> texts_1, texts_2;
  std::optional<int64_t> top_n;                   // rerank
  bool return_documents = true;                   // rerank
  std::optional<bool> use_activation;             // classify, score, rerank: false gives logits
  std::optional<int64_t> truncate_prompt_tokens;  // -1: to what the model reads

  std::optional<int64_t> batch_prompting;  // chat: the user's messages at the end are questions, and so many share a prompt

  int64_t priority = 0;
  std::optional<double> timeout;  // seconds
  std::string cache_salt;

  bool has_messages = false;  // tokenize takes either messages or a prompt
  bool has_prompt = false;

  // Completions made of each prompt; `n` of them are shown.
  int64_t num_sequences() const { return best_of.value_or(n); }
  std::optional<int64_t> completion_tokens_max() const { return max_completion_tokens ? max_completion_tokens : max_tokens; }
};

}  // namespace millrace
