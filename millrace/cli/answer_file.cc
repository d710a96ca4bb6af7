#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>

#include "millrace/cli/generation_run.h"
#include "millrace/cli/progress_bar.h"
#include "millrace/server/generation_call.h"
#include "millrace/server/request_table.h"

namespace millrace::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// What a batch's request is answered into: the server's own code makes the answer.
class CapturedExchange final : public HttpExchange {
 public:
  const HttpRequest& request() const override { return request_; }
  std::string take_body() override { return {}; }
  void respond(HttpResponse answer) override { response = std::move(answer); }
  void start_stream(HttpResponse) override {}
  void write(std::string_view) override {}
  void finish() override {}
  void on_gone(std::function<void()>) override {}

  HttpResponse response;

 private:
  HttpRequest request_;
};

// Wakes whoever waits for news of the engine. Its thread may hold this longer than the run lasts: shared.
struct News {
  std::mutex mutex;
  std::condition_variable changed;
  bool any = false;
  void tell() {
    const std::lock_guard lock(mutex);
    any = true;
    changed.notify_one();
  }
};

// Conversations that differ in the user's last message only can share a prompt.
struct Question {
  json::array shared;
  json::value last;
};

Result<Question> question_of(const FileLine& line) {
  const json::value* role =
      line.messages.empty() || !line.messages.back().is_object() ? nullptr : line.messages.back().as_object().if_contains("role");
  if (role == nullptr || *role != "user")
    return Status::invalid_argument(R"(--batch-prompting takes lines {"messages": [...]} of which the last is the user's)");
  Question question{line.messages, line.messages.back()};
  question.shared.pop_back();
  // A user's message before the last would count as a question, too.
  const json::value* before =
      question.shared.empty() || !question.shared.back().is_object() ? nullptr : question.shared.back().as_object().if_contains("role");
  if (before != nullptr && *before == "user")
    return Status::invalid_argument("--batch-prompting: the last two messages are the user's, expected one question a line");
  return question;
}

// What a run over a file took.
struct Cost {
  int64_t prompt_tokens = 0, completion_tokens = 0;
  std::size_t num_prompts = 0, num_asked_again = 0;  // of --batch-prompting
  double seconds = 0;
  std::map<std::size_t, std::string> texts;  // by line, with --compare-alone
};

class FileRun {
 public:
  // `pack_size`: conversations in one prompt, 0 for each alone. `output` null: nothing is printed.
  FileRun(const Run& run, const std::vector<FileLine>& lines, const FinishedLines& finished, ServedModel served, std::FILE* output,
          std::size_t pack_size)
      : run_(run),
        lines_(lines),
        finished_(finished),
        served_(std::move(served)),
        dry_breakers_(run.tokenizer),
        output_(output),
        pack_size_(pack_size),
        mailbox_(std::make_shared<OutputMailbox>([news = news_] { news->tell(); })) {}

  Status answer_all() {
    const Clock::time_point start_of_run = Clock::now();
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      if (finished_.holds(lines_[i], i)) {
        ++num_finished_;
        continue;
      }
      while (live_.size() >= kLiveMax) wait();
      start(i);
      take_news();
    }
    for (auto& [shared, lines] : packs_) start_pack(std::move(lines));
    while (!live_.empty()) wait();
    print_ready();
    bar_.clear();
    cost_.seconds = seconds_since(start_of_run);
    if (output_ != nullptr && std::fflush(output_) != 0) return Status::unavailable("the answers could not be written");
    if (num_failed_ == 0) return Status::ok();
    return Status::unavailable(fmt::format("{}: {} of {} prompts have no answer", run_.options.file, num_failed_, lines_.size()));
  }

  const Cost& cost() const { return cost_; }

 private:
  // Lines in the engine at once: enough to keep it busy, and fewer than its queue holds.
  static constexpr std::size_t kLiveMax = 512;

  struct Live {
    Clock::time_point start;
    Completion completion;
    Status error;
    std::shared_ptr<CapturedExchange> exchange;  // of a batch's request
    std::shared_ptr<GenerationCall> call;
    std::vector<std::size_t> lines;  // of --batch-prompting: whose questions the call asks
  };

  void start(std::size_t index) {
    const FileLine& line = lines_[index];
    if (!line.error.is_ok()) {
      finish_with_error(index, 400, line.error.message());
    } else if (line.is_batch) {
      start_batch(index);
    } else if (pack_size_ > 0) {
      pack(index);
    } else {
      start_prompt(index);
    }
  }

  // Waits for others that its question can share a prompt with.
  void pack(std::size_t index) {
    const auto question = question_of(lines_[index]);
    if (!question.is_ok()) return finish_with_error(index, 400, question.status().message());
    std::vector<std::size_t>& lines = packs_[json::serialize(question->shared)];
    lines.push_back(index);
    if (lines.size() == pack_size_) start_pack(std::exchange(lines, {}));
  }

  // One request with the field "batch_prompting" for them all, as the server would answer it.
  void start_pack(std::vector<std::size_t> lines) {
    if (lines.empty()) return;
    json::array messages = question_of(lines_[lines[0]])->shared;
    for (const std::size_t line : lines) messages.push_back(lines_[line].messages.back());
    json::object body{{"messages", std::move(messages)},
                      {"batch_prompting", pack_size_},
                      {"min_tokens", run_.options.min_tokens},
                      {"ignore_eos", run_.options.ignore_eos}};
    if (run_.options.max_tokens) body["max_tokens"] = *run_.options.max_tokens;
    for (const std::string& stop : run_.options.stop) {
      if (!body.contains("stop")) body["stop"].emplace_array();
      body["stop"].as_array().emplace_back(stop);
    }
    FileLine request;
    request.body = json::serialize(body);
    start_call(lines[0], request, lines);
  }

  void start_prompt(std::size_t index) {
    auto request = make_request(run_, lines_[index].text, lines_[index].messages, index);
    if (request.is_ok() && output_ == nullptr) request->cache_salt = "alone";  // what the packs computed does not count as its own
    Status refused = request.status();
    while (request.is_ok()) {
      Live live;
      live.start = Clock::now();
      const auto id = run_.engine.add(*request, [mailbox = mailbox_, index](OutputDelta& delta) {
        mailbox->push({static_cast<uint64_t>(index), 0, std::move(delta)});
      });
      if (id.is_ok()) {
        live_.emplace(index, std::move(live));
        return;
      }
      refused = id.status();
      if (!wait_for_room(refused.code() == StatusCode::kResourceExhausted)) break;
    }
    finish_with_error(index, 400, refused.message());
  }

  void start_batch(std::size_t index) { start_call(index, lines_[index], {}); }

  // A request that the server's own code answers, for the line or for several.
  void start_call(std::size_t index, const FileLine& line, std::vector<std::size_t> lines) {
    const auto refuse = [&](const ApiError& error) {
      if (lines.empty()) return finish_with_error(index, error.status, error.message, error_json(error));
      for (const std::size_t one : lines) finish_with_error(one, error.status, error.message);
    };
    while (true) {
      PreparedCall prepared;
      prepared.endpoint = line.endpoint;
      std::optional<ApiError> error = prepare(line, prepared);
      if (error) return refuse(*error);
      Live live;
      live.start = Clock::now();
      live.exchange = std::make_shared<CapturedExchange>();
      live.lines = lines;
      live.call = std::make_shared<GenerationCall>(served_, index, std::move(prepared), live.exchange);
      error = live.call->start(mailbox_, run_.seed + index);
      if (!error) {
        live_.emplace(index, std::move(live));
        return;
      }
      if (wait_for_room(error->status == 429)) continue;  // what was added of it has been cancelled
      return refuse(*error);
    }
  }

  std::optional<ApiError> prepare(const FileLine& line, PreparedCall& prepared) {
    if (auto error = parse_request(line.endpoint, line.body, prepared.request)) return error;
    if (prepared.request.stream) return invalid_field("stream", "\"stream\" is true, expected false: a batch is answered in whole");
    if (auto error = build_prompts(served_, line.endpoint, prepared.request, prepared.prompts)) return error;
    if (auto error = check_against_model(served_, run_.engine.max_request_tokens(), prepared)) return error;
    return read_token_words(served_, dry_breakers_, prepared);
  }

  // True: the queue was full, and a line has ended since.
  bool wait_for_room(bool queue_full) {
    if (!queue_full || live_.empty()) return false;
    for (const std::size_t before = live_.size(); live_.size() >= before;) wait();
    return true;
  }

  void wait() {
    {
      std::unique_lock lock(news_->mutex);
      news_->changed.wait_for(lock, std::chrono::milliseconds(200), [&] { return news_->any; });
    }
    take_news();
  }

  void take_news() {
    {
      const std::lock_guard lock(news_->mutex);
      news_->any = false;
    }
    for (OutputMailbox::Item& item : mailbox_->take()) {
      const auto found = live_.find(static_cast<std::size_t>(item.call_id));
      if (found != live_.end()) take_delta(found->first, found->second, item);
    }
    print_ready();
    show_progress();
  }

  void take_delta(std::size_t index, Live& live, OutputMailbox::Item& item) {
    if (live.call) {
      if (live.call->on_delta(item.prompt, item.delta)) finish_batch(index, live);
      return;
    }
    Completion& completion = live.completion;
    if (completion.text.empty() && !item.delta.text.empty()) completion.ttft_seconds = seconds_since(live.start);
    completion.text += item.delta.text;
    completion.usage = item.delta.usage;
    if (!item.delta.prompt_logprobs.empty()) completion.prompt_logprobs = std::move(item.delta.prompt_logprobs);
    if (item.delta.finish_reason) completion.finish_reason = *item.delta.finish_reason;
    if (!item.delta.error.is_ok()) live.error = item.delta.error;
    if (!item.delta.request_finished) return;
    completion.seconds = seconds_since(live.start);
    if (live.error.is_ok()) keep_weights(run_.model);
    cost_.prompt_tokens += completion.usage.prompt_tokens;
    cost_.completion_tokens += completion.usage.completion_tokens;
    if (run_.options.compare_alone) cost_.texts.emplace(index, completion.text);
    if (!live.error.is_ok()) {
      finish_with_error(index, 500, live.error.message());
    } else if (is_json()) {
      finish(index, json_text(answer_json(run_, index, completion)) + "\n");
    } else {
      finish(index, fmt::format("[{}] {}\n", index, completion.text));
      if (run_.options.prompt_logprobs >= 0) logprobs_.emplace(index, std::move(completion.prompt_logprobs));
    }
    live_.erase(index);
  }

  void finish_batch(std::size_t index, Live& live) {
    const HttpResponse response = std::move(live.exchange->response);
    if (response.status == 200) {
      keep_weights(run_.model);
      if (live.lines.empty()) {
        finish(index, batch_answer(index, response.status, response.body));
      } else {
        finish_pack(live.lines, response.body);
      }
    } else {
      const auto body = parse_json(response.body);
      const json::value* error = body.is_ok() && body->is_object() ? body->as_object().if_contains("error") : nullptr;
      const json::value* message = error != nullptr && error->is_object() ? error->as_object().if_contains("message") : nullptr;
      const std::string text = message != nullptr && message->is_string() ? std::string(message->as_string()) : "it failed";
      if (live.lines.empty()) finish_with_error(index, response.status, text, response.body);
      for (const std::size_t line : live.lines) finish_with_error(line, response.status, text);
    }
    live_.erase(index);
  }

  // `body`: our own server's answer, of which choice i is the answer of lines[i].
  void finish_pack(const std::vector<std::size_t>& lines, const std::string& body) {
    const json::value answer = parse_json(body).value();
    const json::object& packed = answer.at("batch_prompting").as_object();
    std::set<int64_t> asked_again;
    for (const json::value& question : packed.at("asked_again").as_array()) asked_again.insert(question.to_number<int64_t>());
    cost_.num_prompts += packed.at("prompts").to_number<std::size_t>();
    cost_.num_asked_again += asked_again.size();
    cost_.prompt_tokens += answer.at("usage").at("prompt_tokens").to_number<int64_t>();
    cost_.completion_tokens += answer.at("usage").at("completion_tokens").to_number<int64_t>();
    for (std::size_t i = 0; i < lines.size(); ++i) {
      const json::object& choice = answer.at("choices").as_array().at(i).as_object();
      const std::string text(choice.at("message").at("content").as_string());
      if (run_.options.compare_alone) cost_.texts.emplace(lines[i], text);
      finish(lines[i], is_json()
                           ? json_text(json::object{{"index", lines[i]},
                                                    {"text", text},
                                                    {"finish_reason", choice.at("finish_reason")},
                                                    {"asked_alone", asked_again.contains(static_cast<int64_t>(i)) || lines.size() == 1}}) +
                                 "\n"
                           : fmt::format("[{}] {}\n", lines[i], text));
    }
  }

  std::string batch_answer(std::size_t index, int status, std::string_view body) {
    return fmt::format(
        R"({{"id":"batch_req_{:016x}{:08x}","custom_id":{},"response":{{"status_code":{},"request_id":"req_{:016x}{:08x}","body":{}}},)"
        R"("error":null}})"
        "\n",
        random_(), index, json_text(json::value(lines_[index].custom_id)), status, random_(), index, body);
  }

  // `body`: of the answer that the server would give, where the line got so far.
  void finish_with_error(std::size_t index, int status, std::string_view message, std::string_view body = {}) {
    const FileLine& line = lines_[index];
    ++num_failed_;
    bar_.clear();
    fail(Status::unavailable(std::string(message)).with_context(line.place));
    if (output_ == nullptr) {
      finish(index, "");
    } else if (line.is_batch && !body.empty()) {
      finish(index, batch_answer(index, status, body));
    } else if (line.is_batch) {
      finish(index, json_text(json::object{{"id", nullptr},
                                           {"custom_id", line.custom_id.empty() ? json::value() : json::value(line.custom_id)},
                                           {"response", nullptr},
                                           {"error", json::object{{"code", "invalid_line"}, {"message", message}}}}) +
                        "\n");
    } else {
      finish(index, is_json() ? json_text(json::object{{"index", index}, {"error", message}}) + "\n" : "");
    }
  }

  bool is_json() const { return run_.options.json || !run_.options.output.empty(); }

  void finish(std::size_t index, std::string text) {
    ++num_finished_;
    if (output_ == nullptr) return;
    if (!run_.options.output.empty()) {
      write(text);
    } else {
      ready_.emplace(index, std::move(text));
    }
  }

  // In the order of the file, as far as no earlier answer is missing.
  void print_ready() {
    for (auto first = ready_.begin(); first != ready_.end() && first->first == num_printed_; first = ready_.begin()) {
      write(first->second);
      if (const auto logprobs = logprobs_.extract(first->first)) print_prompt_logprobs(run_.tokenizer, logprobs.mapped());
      ready_.erase(first);
      ++num_printed_;
    }
  }

  void write(const std::string& text) {
    if (output_ == stdout) bar_.clear();
    std::fwrite(text.data(), 1, text.size(), output_);
    std::fflush(output_);
  }

  void show_progress() {
    const double share = static_cast<double>(num_finished_) / static_cast<double>(lines_.size());
    bar_.update(share, [&] {
      return fmt::format("{} of {}, {:.0f} tokens/s", num_finished_, lines_.size(), run_.engine.metrics().generation_tokens_per_second);
    });
  }

  const Run& run_;
  const std::vector<FileLine>& lines_;
  const FinishedLines& finished_;
  const ServedModel served_;
  DryBreakers dry_breakers_;
  std::FILE* output_;
  const std::size_t pack_size_;
  const std::shared_ptr<News> news_ = std::make_shared<News>();
  const std::shared_ptr<OutputMailbox> mailbox_;
  std::map<std::size_t, Live> live_;                       // by line; of a pack by its first
  std::map<std::string, std::vector<std::size_t>> packs_;  // by what the lines share: those that wait for more
  Cost cost_;
  std::map<std::size_t, std::string> ready_;  // without --output: made, and to be printed when those before are
  std::map<std::size_t, std::vector<TokenLogprob>> logprobs_;
  std::size_t num_printed_ = 0, num_finished_ = 0, num_failed_ = 0;
  std::mt19937_64 random_{std::random_device{}()};
  ProgressBar bar_{"generate"};
};

// Letters and digits only, in one case: "Paris." is "paris".
std::string bare(std::string_view text) {
  std::string letters;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80 || std::isalnum(byte)) letters += static_cast<char>(std::tolower(byte));
  }
  return letters;
}

void report_packing(const Cost& packed, const Cost* alone) {
  fmt::print(stderr, "[{} prompts, {} questions asked again alone; {} prompt tokens, {} new, {:.2f} s]\n", packed.num_prompts,
             packed.num_asked_again, packed.prompt_tokens, packed.completion_tokens, packed.seconds);
  if (alone == nullptr) return;
  std::size_t num_equal = 0;
  for (const auto& [line, text] : packed.texts) num_equal += alone->texts.contains(line) && bare(alone->texts.at(line)) == bare(text);
  fmt::print(
      stderr,
      "[alone: {} prompt tokens, {} new, {:.2f} s; together {:.2f} times the prompt tokens, {:.2f} times the new ones, {:.2f} times the "
      "time; {} of {} answers agree]\n",
      alone->prompt_tokens, alone->completion_tokens, alone->seconds,
      static_cast<double>(packed.prompt_tokens) / static_cast<double>(std::max<int64_t>(1, alone->prompt_tokens)),
      static_cast<double>(packed.completion_tokens) / static_cast<double>(std::max<int64_t>(1, alone->completion_tokens)),
      packed.seconds / alone->seconds, num_equal, packed.texts.size());
}

}  // namespace

Status answer_file(const Run& run, const std::vector<FileLine>& lines, const FinishedLines& finished) {
  ServedModel served;
  served.name = model_name(run.options.model);
  served.engine = &run.engine;
  served.tokenizer = &run.tokenizer;
  if (const auto chat_template = run.model.chat_template(); chat_template.is_ok()) {
    served.chat_template = *chat_template;
  } else {
    served.chat_template_error = chat_template.status().message();
  }
  served.bos_token = run.model.bos_token();
  served.eos_token = run.model.eos_token();
  served.default_sampling = run.sampling;
  const bool to_file = !run.options.output.empty();
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(to_file ? std::fopen(run.options.output.c_str(), "a") : nullptr,
                                                             [](std::FILE* f) { return f != nullptr ? std::fclose(f) : 0; });
  if (to_file && !file) return Status::unavailable(fmt::format("--output: {} cannot be written", run.options.output));
  const auto pack_size = static_cast<std::size_t>(run.options.batch_prompting);
  FileRun answers(run, lines, finished, served, to_file ? file.get() : stdout, pack_size);
  const Status status = answers.answer_all();
  if (pack_size == 0) return status;
  if (!run.options.compare_alone || !status.is_ok()) {
    report_packing(answers.cost(), nullptr);
    return status;
  }
  FileRun alone(run, lines, finished, served, nullptr, 0);
  MR_RETURN_IF_ERROR(alone.answer_all());
  report_packing(answers.cost(), &alone.cost());
  return status;
}

}  // namespace millrace::cli
