#include "millrace/server/generation_call.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <limits>
#include <numeric>
#include <random>

#include "millrace/server/batch_prompting.h"
#include "millrace/server/json_writer.h"

namespace millrace {
namespace {

std::string make_id(Endpoint endpoint) {
  static std::mt19937_64 random{std::random_device{}()};  // I/O thread only
  return fmt::format("{}-{:016x}{:016x}", endpoint == Endpoint::kChat ? "chatcmpl" : "cmpl", random(), random());
}

template <class T, class U>
void override(T& target, const std::optional<U>& value) {
  if (value) target = static_cast<T>(*value);
}

// OpenAI's and vLLM's default for completions; a chat answer may fill the context.
std::optional<int64_t> completion_tokens_max(const PreparedCall& call) {
  constexpr int64_t kCompletionsDefault = 16;
  if (const auto max = call.request.completion_tokens_max()) return max;
  return call.endpoint == Endpoint::kCompletions ? std::optional(kCompletionsDefault) : std::nullopt;
}

// Numbers that a request may ask for about its prompts' tokens: an answer of some 60 MB.
constexpr int64_t kPromptLogprobsMax = 1 << 20;

// The likeliest tokens that the engine is to name for each of the prompt's.
std::optional<int64_t> prompt_logprobs_max(const ApiRequest& request) {
  std::optional<int64_t> most = request.prompt_logprobs;
  if (request.echo && request.num_logprobs) most = std::max(most.value_or(0), *request.num_logprobs);
  return most;
}

// Of an encoder-decoder: prompt and answer each have a context of their own.
std::optional<ApiError> check_source(const Engine& engine, const ApiRequest& request, int64_t num_prompt_tokens, int64_t room) {
  if (num_prompt_tokens > engine.max_prompt_tokens()) {
    return invalid_field(
        "prompt", fmt::format("the prompt has {} tokens; the model reads at most {}", num_prompt_tokens, engine.max_prompt_tokens()));
  }
  const std::optional<int64_t> max_tokens = request.completion_tokens_max();
  if (!max_tokens || *max_tokens <= room) return std::nullopt;
  const std::string_view field = request.max_completion_tokens ? "max_completion_tokens" : "max_tokens";
  return invalid_field(field, fmt::format("\"{}\" is {}; the model's answers have at most {} tokens", field, *max_tokens, room));
}

}  // namespace

std::optional<ApiError> check_against_model(const ServedModel& model, int64_t max_model_len, const PreparedCall& call) {
  const ApiRequest& request = call.request;
  const int64_t vocab_size = model.tokenizer->vocab_size();
  for (const int32_t id : request.stop_token_ids) {
    if (id >= vocab_size)
      return invalid_field("stop_token_ids", fmt::format("\"stop_token_ids\" has {}, expected token ids below {}", id, vocab_size));
  }
  for (const int32_t id : request.allowed_token_ids) {
    if (id >= vocab_size)
      return invalid_field("allowed_token_ids", fmt::format("\"allowed_token_ids\" has {}, expected token ids below {}", id, vocab_size));
  }
  for (const auto& [id, bias] : request.logit_bias) {
    if (id >= vocab_size)
      return invalid_field("logit_bias", fmt::format("\"logit_bias\" has the key {}, expected token ids below {}", id, vocab_size));
  }
  if (request.echo && model.engine->answers_sources())
    return invalid_field("echo", "\"echo\" is not supported: this model's answers do not continue their prompts");
  const std::optional<int64_t> max_tokens = request.completion_tokens_max();
  int64_t num_numbers = 0;
  const std::optional<int64_t> max_or_default = completion_tokens_max(call);
  for (const BuiltPrompt& prompt : call.prompts) {
    const auto num_prompt_tokens = static_cast<int64_t>(prompt.tokens.size());
    const int64_t room = model.engine->max_completion_tokens(num_prompt_tokens);
    std::optional<ApiError> error;
    if (model.engine->answers_sources()) {
      error = check_source(*model.engine, request, num_prompt_tokens, room);
    } else if (num_prompt_tokens >= max_model_len + (max_tokens == 0 ? 1 : 0)) {
      error = invalid_field(call.endpoint == Endpoint::kChat ? "messages" : "prompt",
                            fmt::format("the prompt has {} tokens; the model's context is {} tokens, prompt and completion together",
                                        num_prompt_tokens, max_model_len));
    } else if (max_tokens && num_prompt_tokens + *max_tokens > max_model_len) {
      const std::string_view field = request.max_completion_tokens ? "max_completion_tokens" : "max_tokens";
      error = invalid_field(field, fmt::format("the prompt has {} tokens and \"{}\" is {}, {} together; the model's context is {} tokens",
                                               num_prompt_tokens, field, *max_tokens, num_prompt_tokens + *max_tokens, max_model_len));
    }
    if (error) {
      error->code = "context_length_exceeded";
      return error;
    }
    num_numbers += num_prompt_tokens * request.num_sequences() * (1 + prompt_logprobs_max(request).value_or(-1));
    if (num_numbers > kPromptLogprobsMax) {
      return invalid_field(request.prompt_logprobs ? "prompt_logprobs" : "logprobs",
                           fmt::format("the prompt tokens' log probabilities would be more than {}: ask with fewer or shorter prompts, a "
                                       "smaller \"n\" or fewer of them for each token",
                                       kPromptLogprobsMax));
    }
    // The default does not fit beside a long prompt: then it is what fits.
    const int64_t most = std::min(max_or_default.value_or(max_model_len), room);
    if (max_or_default && request.min_tokens > most) {
      return invalid_field("min_tokens",
                           fmt::format("\"min_tokens\" is {}, more than the {} completion tokens of a request without \"max_tokens\"",
                                       request.min_tokens, most));
    }
  }
  return std::nullopt;
}

std::optional<ApiError> read_token_words(const ServedModel& model, DryBreakers& dry_breakers, PreparedCall& call) {
  const ApiRequest& request = call.request;
  auto bad_words = bad_word_tokens(*model.tokenizer, request.bad_words);
  if (!bad_words.is_ok()) return invalid_field("bad_words", bad_words.status().message());
  call.bad_words = std::move(bad_words).value();
  call.dry_breakers = model.default_sampling.dry_breakers;
  const double multiplier = request.dry_multiplier.value_or(static_cast<double>(model.default_sampling.dry_multiplier));
  if (multiplier == 0 || (call.dry_breakers && !request.dry_sequence_breakers)) return std::nullopt;
  auto ids = dry_breakers.ids_of(request.dry_sequence_breakers.value_or(DryBreakers::default_texts()));
  if (!ids.is_ok()) return invalid_field("dry_sequence_breakers", fmt::format("\"dry_sequence_breakers\": {}", ids.status().message()));
  call.dry_breakers = std::move(ids).value();
  return std::nullopt;
}

GenerationCall::GenerationCall(const ServedModel& model, uint64_t call_id, PreparedCall prepared, std::shared_ptr<HttpExchange> exchange)
    : model_(model),
      call_id_(call_id),
      prepared_(std::move(prepared)),
      exchange_(std::move(exchange)),
      response_(prepared_.endpoint, make_id(prepared_.endpoint), static_cast<int64_t>(std::time(nullptr)), model.name, *model.tokenizer),
      usages_(prepared_.prompts.size()),
      prompt_logprobs_(prepared_.prompts.size()),
      choices_(prepared_.prompts.size() * static_cast<std::size_t>(prepared_.request.num_sequences())) {
  if (prepared_.request.batch_prompting) {
    num_questions_ = count_questions(prepared_.request.messages);
    pack_size_ = static_cast<std::size_t>(*prepared_.request.batch_prompting);
    answers_.resize(num_questions_);
    for (std::size_t i = num_packs(); i < prepared_.prompts.size(); ++i)
      num_prompt_tokens_alone_ += static_cast<int64_t>(prepared_.prompts[i].tokens.size());
  }
  if (!prepared_.request.echo) return;
  for (std::size_t i = 0; i < choices_.size(); ++i)
    choices_[i].text = prepared_.prompts[i / static_cast<std::size_t>(prepared_.request.num_sequences())].text;
}

GenerationRequest GenerationCall::make_request(std::size_t prompt) {
  const ApiRequest& api = prepared_.request;
  GenerationRequest request;
  if (scores_prompt()) {
    prompt_logprobs_[prompt] = {{prepared_.prompts[prompt].tokens.front(), std::numeric_limits<float>::quiet_NaN(), {}}};
    request.num_prompt_logprobs = static_cast<int32_t>(*prompt_logprobs_max(api));
  }
  request.prompt_tokens = std::move(prepared_.prompts[prompt].tokens);
  request.sampling = model_.default_sampling;
  override(request.sampling.temperature, api.temperature);
  override(request.sampling.top_p, api.top_p);
  override(request.sampling.top_k, api.top_k);
  override(request.sampling.min_p, api.min_p);
  override(request.sampling.presence_penalty, api.presence_penalty);
  override(request.sampling.frequency_penalty, api.frequency_penalty);
  override(request.sampling.repetition_penalty, api.repetition_penalty);
  override(request.sampling.typical_p, api.typical_p);
  override(request.sampling.top_n_sigma, api.top_n_sigma);
  override(request.sampling.xtc_probability, api.xtc_probability);
  override(request.sampling.xtc_threshold, api.xtc_threshold);
  override(request.sampling.dry_multiplier, api.dry_multiplier);
  override(request.sampling.dry_base, api.dry_base);
  override(request.sampling.dry_allowed_length, api.dry_allowed_length);
  override(request.sampling.dry_penalty_last_n, api.dry_penalty_last_n);
  request.sampling.dry_breakers = prepared_.dry_breakers;
  override(request.sampling.mirostat, api.mirostat);
  override(request.sampling.mirostat_tau, api.mirostat_tau);
  override(request.sampling.mirostat_eta, api.mirostat_eta);
  request.sampling.logit_bias = api.logit_bias;
  request.sampling.allowed_token_ids = api.allowed_token_ids;
  auto& bad_words = request.sampling.bad_words;  // the model's own stay
  bad_words.insert(bad_words.end(), prepared_.bad_words.begin(), prepared_.bad_words.end());
  if (api.logprobs) request.sampling.num_logprobs = static_cast<int32_t>(api.top_logprobs.value_or(0));
  if (api.num_logprobs) request.sampling.num_logprobs = static_cast<int32_t>(*api.num_logprobs);
  request.seed = api.seed ? static_cast<uint64_t>(*api.seed) : seed_ + prompt;
  request.n = static_cast<int32_t>(api.num_sequences());
  if (chooses_best()) request.sampling.num_logprobs = std::max(request.sampling.num_logprobs, 0);
  request.max_tokens = completion_tokens_max(prepared_);
  request.min_tokens = api.min_tokens;
  request.stop = api.stop;
  request.stop_token_ids = api.stop_token_ids;
  request.ignore_eos = api.ignore_eos;
  request.include_stop_str_in_output = api.include_stop_str_in_output;
  request.skip_special_tokens = api.skip_special_tokens;
  request.cache_salt = api.cache_salt;
  request.priority = static_cast<int32_t>(api.priority);
  request.client = prepared_.client;
  if (api.timeout) {  // of the whole call, also of what is asked again
    const double passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
    request.timeout = split_ ? std::max(*api.timeout - passed, 1e-3) : *api.timeout;
  }
  if (api.use_beam_search) {
    request.beams = BeamParams{api.length_penalty.value_or(1), api.early_stopping.value_or(EarlyStopping::kNo)};
    request.sampling = {};  // not the model's defaults, either
  }
  if (num_questions_ > 0 && prompt < num_packs() && questions_of_pack(prompt) > 1 && request.max_tokens) {
    const auto count = static_cast<int64_t>(questions_of_pack(prompt));
    const int64_t room = model_.engine->max_completion_tokens(static_cast<int64_t>(request.prompt_tokens.size()));
    request.max_tokens = std::min(room, count * (*request.max_tokens + kMarkTokens));
  }
  if (!api.max_tokens && !api.max_completion_tokens && request.max_tokens) {
    // The default must not refuse a prompt that leaves less room than it.
    const int64_t room = model_.engine->max_completion_tokens(static_cast<int64_t>(request.prompt_tokens.size()));
    request.max_tokens = std::max<int64_t>(1, std::min(*request.max_tokens, room));
  }
  return request;
}

std::optional<ApiError> GenerationCall::add_request(std::size_t prompt) {
  // The callback runs, and is destroyed, on the engine's thread: it holds the call's number, not the call.
  Result<RequestId> id =
      model_.engine->add(make_request(prompt), [mailbox = mailbox_, call_id = call_id_, index = static_cast<int32_t>(prompt)](
                                                   OutputDelta& delta) { mailbox->push({call_id, index, std::move(delta)}); });
  if (!id.is_ok()) {
    cancel();
    return to_api_error(id.status());
  }
  request_ids_.push_back(*id);
  ++num_unfinished_requests_;
  return std::nullopt;
}

std::optional<ApiError> GenerationCall::start(const std::shared_ptr<OutputMailbox>& mailbox, uint64_t seed) {
  started_ = std::chrono::steady_clock::now();
  mailbox_ = mailbox;
  seed_ = seed;
  const std::size_t num_first = num_questions_ > 0 ? num_packs() : prepared_.prompts.size();
  for (std::size_t prompt = 0; prompt < num_first; ++prompt) {
    if (auto error = add_request(prompt)) return error;
  }
  prepared_.request.messages = {};  // large, and not needed while the answer is made
  if (prepared_.request.stream) {
    HttpResponse head;
    head.content_type = "text/event-stream; charset=utf-8";
    head.headers.emplace_back("Cache-Control", "no-cache");
    head.headers.emplace_back("X-Accel-Buffering", "no");  // asks nginx to pass pieces on as they come
    exchange_->start_stream(std::move(head));
  }
  return std::nullopt;
}

void GenerationCall::cancel() {
  complete_ = true;
  for (const RequestId id : request_ids_) model_.engine->cancel(id);
}

Usage GenerationCall::total_usage() const {
  Usage total;
  for (const Usage& usage : usages_) {
    total.prompt_tokens += usage.prompt_tokens;
    total.completion_tokens += usage.completion_tokens;
    total.cached_tokens += usage.cached_tokens;
  }
  return total;
}

ChoiceOutput GenerationCall::output_of(int32_t index) const {
  const Choice& choice = choices_[static_cast<std::size_t>(index)];
  ChoiceOutput output;
  output.index = index;
  output.text = choice.text;
  output.logprobs = choice.logprobs;
  output.wants_logprobs = wants_logprobs();
  output.text_offset = choice.text_offset;
  if (prepared_.request.prompt_logprobs) {
    output.prompt_logprobs = prompt_logprobs_[static_cast<std::size_t>(index / prepared_.request.num_sequences())];
    output.num_prompt_logprobs = static_cast<std::size_t>(*prepared_.request.prompt_logprobs);
  }
  output.finish_reason = choice.finish_reason;
  output.stop_reason = &choice.stop_reason;
  return output;
}

// Sends what the choice has gained. Tokens whose text is still uncertain wait, and their log probabilities with them.
void GenerationCall::stream(int32_t index) {
  Choice& choice = choices_[static_cast<std::size_t>(index)];
  const Usage usage = total_usage();
  const OpenAiResponse::ChunkUsage chunk_usage{prepared_.request.include_usage,
                                               prepared_.request.continuous_usage_stats ? &usage : nullptr};
  if (!choice.started) {
    choice.started = true;
    if (prepared_.endpoint == Endpoint::kChat) exchange_->write(response_.role_chunk(index, chunk_usage));
  }
  if (choice.text.empty() && !choice.finish_reason) return;
  ChoiceOutput output = output_of(index);
  output.wants_logprobs = output.wants_logprobs && !output.logprobs.empty();
  exchange_->write(response_.chunk(output, chunk_usage));
  choice.text_offset += count_characters(choice.text);
  choice.text.clear();
  choice.logprobs.clear();
}

// They come with the first delta of the prompt's first choice, which is the first delta of all its choices.
void GenerationCall::take_prompt_logprobs(std::size_t prompt, OutputDelta& delta) {
  std::vector<TokenLogprob>& all = prompt_logprobs_[prompt];
  all.insert(all.end(), std::make_move_iterator(delta.prompt_logprobs.begin()), std::make_move_iterator(delta.prompt_logprobs.end()));
}

void GenerationCall::echo_logprobs(std::size_t prompt, Choice& choice) {
  if (choice.echoed || !prepared_.request.echo || !prepared_.request.num_logprobs) return;
  choice.echoed = true;
  choice.logprobs = prompt_logprobs_[prompt];
  const auto count = static_cast<std::size_t>(*prepared_.request.num_logprobs);
  for (TokenLogprob& token : choice.logprobs) token.top_logprobs.resize(std::min(token.top_logprobs.size(), count));
}

bool GenerationCall::on_delta(int32_t prompt, OutputDelta& delta) {
  if (complete_) return true;
  if (delta.finish_reason == FinishReason::kError) {
    fail(to_api_error(delta.error));
    return true;
  }
  usages_[static_cast<std::size_t>(prompt)] = delta.usage;
  const auto index = static_cast<int32_t>(prompt * prepared_.request.num_sequences() + delta.sequence);
  Choice& choice = choices_[static_cast<std::size_t>(index)];
  if (!prepared_.request.stream && choice.text.empty()) {
    choice.text = std::move(delta.text);
  } else {
    choice.text += delta.text;
  }
  take_prompt_logprobs(static_cast<std::size_t>(prompt), delta);
  echo_logprobs(static_cast<std::size_t>(prompt), choice);
  if (chooses_best()) {
    for (const TokenLogprob& token : delta.logprobs) choice.logprob_sum += static_cast<double>(token.logprob);
    choice.num_tokens += static_cast<int64_t>(delta.logprobs.size());
    if (!wants_logprobs()) delta.logprobs.clear();
  }
  choice.logprobs.insert(choice.logprobs.end(), std::make_move_iterator(delta.logprobs.begin()),
                         std::make_move_iterator(delta.logprobs.end()));
  choice.finish_reason = delta.finish_reason;
  choice.stop_reason = std::move(delta.stop_reason);
  if (prepared_.request.stream) stream(index);
  if (!delta.request_finished || --num_unfinished_requests_ > 0) return complete_;
  if (num_questions_ > 0 && !split_) split_packs();
  if (num_unfinished_requests_ == 0 && !complete_) complete();
  return complete_;
}

// The prompt's choices with the highest log probability per token, the best first; without best_of all of them in their order.
std::vector<int32_t> GenerationCall::shown_choices(std::size_t prompt) const {
  std::vector<int32_t> shown(static_cast<std::size_t>(prepared_.request.num_sequences()));
  std::iota(shown.begin(), shown.end(), static_cast<int32_t>(prompt * shown.size()));
  if (!chooses_best()) {
    shown.resize(static_cast<std::size_t>(prepared_.request.n));  // beams come the best first
    return shown;
  }
  const auto mean = [&](int32_t index) {
    const Choice& choice = choices_[static_cast<std::size_t>(index)];
    return choice.num_tokens == 0 ? 0 : choice.logprob_sum / static_cast<double>(choice.num_tokens);
  };
  std::stable_sort(shown.begin(), shown.end(), [&](int32_t a, int32_t b) { return mean(a) > mean(b); });
  shown.resize(static_cast<std::size_t>(prepared_.request.n));
  return shown;
}

void GenerationCall::split_packs() {
  split_ = true;
  const std::optional<int64_t> max_tokens = completion_tokens_max(prepared_);
  for (std::size_t pack = 0; pack < num_packs(); ++pack) {
    const std::size_t first = pack * pack_size_, count = questions_of_pack(pack);
    const Choice& choice = choices_[pack];
    if (choice.finish_reason == FinishReason::kTimeout) continue;  // and there is no time to ask again
    if (count == 1) {
      choices_[num_packs() + first] = choice;  // the question's own prompt
      continue;
    }
    auto answers = split_answers(choice.text, count, choice.finish_reason == FinishReason::kStop);
    for (std::size_t i = 0; i < count; ++i) {
      if (answers[i] && max_tokens) {
        const auto tokens = model_.tokenizer->encode(*answers[i]);
        if (!tokens.is_ok() || static_cast<int64_t>(tokens->size()) > *max_tokens) answers[i].reset();
      }
      if (!answers[i]) asked_again_.push_back(first + i);
      answers_[first + i] = std::move(answers[i]);
    }
  }
  for (const std::size_t question : asked_again_) {
    if (const auto error = add_request(num_packs() + question)) return fail(*error);
  }
}

std::string GenerationCall::batch_prompting_json() const {
  JsonWriter json;
  json.begin_object().field("prompts", static_cast<int64_t>(num_packs())).key("asked_again").begin_array();
  for (const std::size_t question : asked_again_) json.value(static_cast<int64_t>(question));
  return json.end_array().field("prompt_tokens_alone", num_prompt_tokens_alone_).end_object().take();
}

void GenerationCall::complete() {
  complete_ = true;
  if (prepared_.request.stream) {
    if (prepared_.request.include_usage) exchange_->write(response_.usage_chunk(total_usage()));
    exchange_->write(OpenAiResponse::kDone);
    exchange_->finish();
    return;
  }
  std::vector<ChoiceOutput> outputs;
  for (std::size_t question = 0; question < num_questions_; ++question) {
    const bool timed_out = choices_[question / pack_size_].finish_reason == FinishReason::kTimeout;
    ChoiceOutput& output =
        outputs.emplace_back(output_of(static_cast<int32_t>(timed_out ? question / pack_size_ : num_packs() + question)));
    output.index = static_cast<int32_t>(question);
    if (timed_out && questions_of_pack(question / pack_size_) > 1) output.text = {};
    if (!answers_[question]) continue;
    output.text = *answers_[question];
    output.finish_reason = FinishReason::kStop;
  }
  for (std::size_t prompt = 0; num_questions_ == 0 && prompt < prepared_.prompts.size(); ++prompt) {
    for (const int32_t index : shown_choices(prompt)) {
      outputs.push_back(output_of(index));
      outputs.back().index = static_cast<int32_t>(outputs.size()) - 1;
    }
  }
  HttpResponse response;
  if (num_questions_ > 0) {
    response.body = response_.whole(outputs, total_usage(), std::pair{"batch_prompting", batch_prompting_json()});
  } else {
    response.body = response_.whole(outputs, total_usage());
  }
  exchange_->respond(std::move(response));
}

void GenerationCall::fail(const ApiError& error) {
  cancel();
  if (prepared_.request.stream) {
    exchange_->write("data: " + error_json(error) + "\n\n");
    exchange_->write(OpenAiResponse::kDone);
    exchange_->finish();
  } else {
    exchange_->respond(error_response(error));
  }
}

}  // namespace millrace
