#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "millrace/base/json.h"
#include "millrace/base/json_text.h"
#include "millrace/cli/command.h"
#include "millrace/cli/null_server.h"
#include "millrace/cli/option_values.h"
#include "millrace/cli/progress_bar.h"
#include "millrace/load/load_generator.h"

namespace millrace::cli {
namespace {

struct ServeBenchOptions {
  std::string url = "http://127.0.0.1:8000", endpoint = "/v1/completions", model, dataset = "random", prompt_file, extra_body;
  WorkloadOptions workload;
  std::vector<int64_t> concurrency;
  std::vector<double> request_rates;
  int64_t num_prompts = 100, num_warmups = 0;
  double duration_s = 0, timeout_s = 600;
  std::optional<double> temperature = 0;
  bool ignore_eos = true, null = false, json = false;
  int64_t null_token_ms = 0;
  int server_pid = 0;
  std::vector<std::string> goodput;
};

// A request of many needs a descriptor each.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);  // where it is refused, the limit stays
}

// The first model that the server lists. Also tells whether there is a server at all.
Result<std::string> served_model(LoadGenerator& generator, const ServerUrl& url) {
  const Answer answer = generator.get("/v1/models");
  const std::string where = url.text() + "/v1/models";
  if (answer.failure == Failure::kConnect)
    return Status::unavailable(fmt::format("{}: {}: is the server running?", url.text(), answer.message));
  if (answer.failure == Failure::kStatus) {
    return Status::unavailable(fmt::format("{}: status {}: {}{}", where, answer.status, answer.message,
                                           answer.status == 401 ? " (the key is taken from OPENAI_API_KEY)" : ""));
  }
  if (answer.failure != Failure::kNone)
    return Status::unavailable(fmt::format("{}: {}: {}", where, failure_name(answer.failure), answer.message));
  const auto parsed = parse_json(answer.body);
  const json::value* data = parsed.is_ok() && parsed->is_object() ? parsed->get_object().if_contains("data") : nullptr;
  if (data != nullptr && data->is_array() && !data->get_array().empty() && data->get_array().front().is_object()) {
    const json::value* id = data->get_array().front().get_object().if_contains("id");
    if (id != nullptr && id->is_string()) return std::string(id->get_string());
  }
  return Status::unavailable(fmt::format("{}: the answer names no model; give its name by --model", where));
}

std::string heading_of(const LoadPoint& point) {
  return point.concurrency > 0 ? fmt::format("{} client{}", point.concurrency, point.concurrency == 1 ? "" : "s")
                               : fmt::format("{:g} requests/s", point.request_rate);
}

std::vector<LoadPoint> points_of(const ServeBenchOptions& options) {
  std::vector<LoadPoint> points;
  LoadPoint point{.num_requests = options.num_prompts, .duration_s = options.duration_s, .server_pid = options.server_pid};
  for (const int64_t concurrency : options.concurrency) {
    point.concurrency = concurrency;
    points.push_back(point);
    ++point.number;
  }
  point.concurrency = 0;
  for (const double rate : options.request_rates) {
    point.request_rate = rate;
    points.push_back(point);
    ++point.number;
  }
  return points;
}

void print_table(const std::vector<LoadPoint>& points, const std::vector<LoadSummary>& summaries) {
  fmt::print("\n{:<18}{:>10}{:>8}{:>12}{:>10}{:>12}{:>10}{:>10}{:>11}{:>12}\n", "milliseconds", "completed", "failed", "tokens/s",
             "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "ITL p99", "E2E p99");
  for (std::size_t i = 0; i < points.size(); ++i) {
    const LoadSummary& summary = summaries[i];
    fmt::print("{:<18}{:>10}{:>8}{:>12.1f}{:>10.1f}{:>12.1f}{:>10.1f}{:>10.1f}{:>11.1f}{:>12.1f}\n", heading_of(points[i]),
               summary.num_completed, summary.num_failed, summary.output_throughput, summary.ttft.p50, summary.ttft.p99, summary.tpot.p50,
               summary.tpot.p99, summary.itl.p99, summary.e2el.p99);
  }
}

Result<LoadTarget> target_of(const ServeBenchOptions& options, const std::optional<NullServer>& null_server) {
  LoadTarget target{.endpoint = options.endpoint,
                    .model = options.model,
                    .temperature = options.temperature,
                    .ignore_eos = options.ignore_eos,
                    .timeout_s = options.timeout_s};
  if (null_server) {
    target.url = null_server->url();
    return target;
  }
  MR_ASSIGN_OR_RETURN(target.url, parse_server_url(options.url));
  if (const char* key = std::getenv("OPENAI_API_KEY"); key != nullptr) target.api_key = key;
  if (std::any_of(target.api_key.begin(), target.api_key.end(), [](char c) { return static_cast<unsigned char>(c) <= ' ' || c == 127; }))
    return Status::invalid_argument("OPENAI_API_KEY has a space or control character in it");
  if (!options.extra_body.empty()) {
    MR_ASSIGN_OR_RETURN(const json::value body, parse_json(options.extra_body));
    if (!body.is_object()) return Status::invalid_argument("--extra-body: found no object, expected one such as {\"top_k\": 40}");
    target.extra_body = body.get_object();
  }
  return target;
}

Status run_bench_serve(const ServeBenchOptions& options) {
  MR_ASSIGN_OR_RETURN(const GoodputLimits limits, parse_goodput(options.goodput));
  std::optional<NullServer> null_server;
  if (options.null) {
    MR_ASSIGN_OR_RETURN(NullServer started, NullServer::start(options.null_token_ms));
    null_server.emplace(std::move(started));
  }
  raise_descriptor_limit();
  WorkloadOptions workload_options = options.workload;
  workload_options.lengths = options.dataset == "sharegpt" ? Lengths::kShareGpt : Lengths::kFixed;
  if (!options.prompt_file.empty()) {
    MR_ASSIGN_OR_RETURN(workload_options.words, read_words(options.prompt_file));
  }
  Workload workload(workload_options);
  MR_ASSIGN_OR_RETURN(const LoadTarget target, target_of(options, null_server));
  MR_ASSIGN_OR_RETURN(auto generator, LoadGenerator::create(target));
  std::string model = options.model;
  if (model.empty()) {
    MR_ASSIGN_OR_RETURN(model, served_model(*generator, target.url));
    generator->set_model(model);
  }
  MR_ASSIGN_OR_RETURN(const auto scale, measure_token_scale(*generator, workload));
  if (scale) {
    workload.set_scale(*scale);
  } else {
    fmt::print(stderr, "millrace: warning: {} reports no usable counts of tokens; prompts have so many words, and events count as tokens\n",
               target.url.text());
  }
  std::vector<LoadPoint> points = points_of(options);
  if (points.empty())
    points.push_back(
        {.concurrency = 1, .num_requests = options.num_prompts, .duration_s = options.duration_s, .server_pid = options.server_pid});
  if (null_server) {
    for (LoadPoint& point : points) point.server_pid = null_server->pid();
  }
  if (options.num_warmups > 0) {
    const int64_t num_clients = std::clamp<int64_t>(points.front().concurrency, 1, options.num_warmups);
    const LoadPoint warmup{.number = -1, .concurrency = num_clients, .num_requests = options.num_warmups};
    MR_RETURN_IF_ERROR(generator->run(warmup, workload, {}).status());
  }
  std::vector<LoadSummary> summaries;
  json::array results;
  bool any_completed = false;
  for (const LoadPoint& point : points) {
    ProgressBar bar(heading_of(point));
    MR_ASSIGN_OR_RETURN(const LoadResult result, generator->run(point, workload, [&](const LoadProgress& now) {
      bar.update(now.share, [&] {
        return fmt::format("{} requests, {:.0f} tokens/s", now.num_done,
                           static_cast<double>(now.num_output_events) / std::max(now.seconds, 1e-3));
      });
    }));
    bar.clear();
    summaries.push_back(summarize(result, limits));
    const LoadSummary& summary = summaries.back();
    any_completed = any_completed || summary.num_completed > 0;
    if (options.json) {
      json::object object =
          point.concurrency > 0 ? json::object{{"concurrency", point.concurrency}} : json::object{{"request_rate", point.request_rate}};
      for (auto& field : to_json(summary)) object[field.key()] = field.value();
      results.push_back(std::move(object));
    } else {
      fmt::print("{}", summary_text(summary, heading_of(point)));
      std::fflush(stdout);
    }
  }
  if (options.json) {
    fmt::print("{}\n", json_text(json::object{{"url", null_server ? "null" : target.url.text()},
                                              {"endpoint", target.endpoint},
                                              {"model", model},
                                              {"dataset_name", options.dataset},
                                              {"seed", options.workload.seed},
                                              {"tokens_per_word", scale ? scale->per_word : 1.0},
                                              {"results", std::move(results)}}));
  } else if (points.size() > 1) {
    print_table(points, summaries);
  }
  if (any_completed) return Status::ok();
  const std::string where = target.url.text() + target.endpoint;
  for (const LoadSummary& summary : summaries) {
    if (summary.first_message.empty()) continue;
    const auto& [kind, message] = *summary.first_message.begin();
    return Status::unavailable(fmt::format("{}: no request was answered; the first: {}: {}", where, kind, message));
  }
  return Status::invalid_argument(fmt::format("{}: no request was sent within --duration {:g} s", where, options.duration_s));
}

}  // namespace

void add_bench_serve(CLI::App& bench, int& exit_status) {
  auto* command = bench.add_subcommand("serve", "Load on a running OpenAI-compatible server: throughput, latencies and goodput");
  auto options = std::make_shared<ServeBenchOptions>();
  command->add_option("--url,--base-url", options->url, "Where the server is")->capture_default_str();
  command->add_option("--model", options->model, "Name of the model; default: the first that the server lists");
  command->add_option("--endpoint", options->endpoint)
      ->check(CLI::IsMember({"/v1/completions", "/v1/chat/completions"}))
      ->capture_default_str();
  command
      ->add_option("--concurrency,--max-concurrency", options->concurrency,
                   "Closed loop: numbers of clients, each of which waits for its answer, for example 1,4,16,64; default: 1")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 10000));
  command
      ->add_option("--request-rate", options->request_rates,
                   "Open loop: requests a second, which arrive as a Poisson process; several as for --concurrency")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(number_within(0.001, 1e6));
  command->add_option("--num-prompts", options->num_prompts, "Requests of each load")->check(whole_number(1))->capture_default_str();
  command->add_option("--duration", options->duration_s, "Seconds after which a load sends no more requests")
      ->check(number_within(0.001, 1e6));
  command->add_option("--num-warmups", options->num_warmups, "Requests before, which are not counted")
      ->check(whole_number(0))
      ->capture_default_str();
  command
      ->add_option("--dataset-name", options->dataset,
                   "random: all of the lengths below; sharegpt: lengths drawn as those of ShareGPT's conversations are distributed")
      ->check(CLI::IsMember({"random", "sharegpt"}))
      ->capture_default_str();
  command->add_option("--random-input-len", options->workload.prompt_tokens, "Tokens of a prompt")
      ->check(whole_number(1))
      ->capture_default_str();
  command->add_option("--random-output-len", options->workload.output_tokens, "Tokens of an answer")
      ->check(whole_number(1))
      ->capture_default_str();
  command
      ->add_option("--shared-prefix-tokens,--random-prefix-len", options->workload.shared_prefix_tokens,
                   "Tokens before each prompt, the same in all")
      ->check(whole_number(0))
      ->capture_default_str();
  command->add_option("--prompt-file", options->prompt_file, "Text whose words prompts are made of; default: English words at random")
      ->check(CLI::ExistingFile);
  command
      ->add_option("--seed", options->workload.seed, "Of prompts, lengths and arrivals; another one asks for what no prefix cache has seen")
      ->capture_default_str();
  command->add_option("--temperature", options->temperature, "0: greedy")->check(number_within(0, 100));
  command->add_flag("!--no-ignore-eos", options->ignore_eos,
                    "Answers end where the model ends them; also for servers that do not know the field ignore_eos");
  command->add_option("--extra-body", options->extra_body, "JSON object of further fields of every request");
  command
      ->add_option("--goodput", options->goodput,
                   "Milliseconds within which a request counts as good, for example ttft:500 tpot:50; also e2el")
      ->expected(1, 3);
  command->add_option("--timeout", options->timeout_s, "Seconds for a whole answer")
      ->check(number_within(0.001, 1e6))
      ->capture_default_str();
  auto* pid =
      command->add_option("--server-pid", options->server_pid, "Process of the server, on this machine: its CPU seconds are reported")
          ->check(CLI::Range(1, 1 << 30));
  auto* null =
      command->add_flag("--null", options->null, "Instead of a server: one that computes nothing, to see what the load generator costs");
  command->add_option("--null-token-ms", options->null_token_ms, "Milliseconds between its tokens")
      ->check(CLI::Range(0, 10000))
      ->needs(null);
  null->excludes(pid);
  command->add_flag("--json", options->json, "Answer in JSON");
  command->footer(
      "Examples:\n"
      "  millrace bench serve --concurrency 1,4,16,64 --random-input-len 256 --random-output-len 128\n"
      "  millrace bench serve --dataset-name sharegpt --request-rate 2 --duration 60 --goodput ttft:1000 tpot:100\n"
      "  millrace bench serve --null --concurrency 64 --num-prompts 1000\n"
      "The key is taken from OPENAI_API_KEY. docs/load-generator.md says what the figures mean.");
  command->callback([options, &exit_status] {
    if (const Status status = run_bench_serve(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
