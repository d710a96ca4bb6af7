#include "millrace/server/prometheus_text.h"

#include <fmt/format.h>

#include <cmath>

#include "millrace/engine/request.h"

namespace millrace {
namespace {

std::string escape_label(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

class Page {
 public:
  explicit Page(std::string_view model_name) : model_(fmt::format("model_name=\"{}\"", escape_label(model_name))) {}

  void help(std::string_view name, std::string_view type, std::string_view text) {
    fmt::format_to(std::back_inserter(text_), "# HELP {} {}\n# TYPE {} {}\n", name, text, name, type);
  }
  template <class T>
  void sample(std::string_view name, T value, std::string_view labels = {}) {
    fmt::format_to(std::back_inserter(text_), "{}{{{}{}{}}} {}\n", name, model_, labels.empty() ? "" : ",", labels, value);
  }
  // The series under its own name and, where vLLM has it, under vLLM's.
  template <class T>
  void single(std::string_view type, std::string_view name, std::string_view vllm_name, std::string_view text, T value) {
    help(name, type, text);
    sample(name, value);
    if (vllm_name.empty()) return;
    help(vllm_name, type, text);
    sample(vllm_name, value);
  }
  void histogram(std::string_view name, std::string_view vllm_name, std::string_view text, const Histogram& values) {
    for (const std::string_view n : {name, vllm_name}) {
      if (n.empty()) continue;
      help(n, "histogram", text);
      int64_t cumulated = 0;
      for (std::size_t i = 0; i < values.upper_bounds().size(); ++i) {
        cumulated += values.counts()[i];
        sample(fmt::format("{}_bucket", n), cumulated, fmt::format("le=\"{}\"", values.upper_bounds()[i]));
      }
      sample(fmt::format("{}_bucket", n), values.count(), "le=\"+Inf\"");
      sample(fmt::format("{}_sum", n), values.sum());
      sample(fmt::format("{}_count", n), values.count());
    }
  }
  std::string take() { return std::move(text_); }

 private:
  std::string model_, text_;
};

}  // namespace

std::string prometheus_text(const EngineMetrics& engine, const HttpMetrics& http, std::string_view model_name) {
  Page page(model_name);
  page.single("gauge", "millrace_num_requests_running", "vllm:num_requests_running", "Sequences in the running batch.",
              engine.num_running_sequences);
  page.single("gauge", "millrace_num_requests_waiting", "vllm:num_requests_waiting", "Sequences waiting for admission, or preempted.",
              engine.num_waiting_sequences);
  page.single("gauge", "millrace_num_requests_live", "", "Requests accepted and not finished.", engine.num_live_requests);
  page.single("gauge", "millrace_kv_cache_usage_perc", "vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", engine.kv_usage);

  page.help("millrace_kv_blocks", "gauge", "KV blocks by group and state; the states add up to the total.");
  for (std::size_t i = 0; i < engine.kv_groups.size(); ++i) {
    const EngineMetrics::KvGroup& group = engine.kv_groups[i];
    page.sample("millrace_kv_blocks", group.num_used_blocks, fmt::format("group=\"{}\",state=\"used\"", i));
    page.sample("millrace_kv_blocks", group.num_cached_blocks, fmt::format("group=\"{}\",state=\"cached\"", i));
    page.sample("millrace_kv_blocks", group.num_free_blocks, fmt::format("group=\"{}\",state=\"free\"", i));
  }

  page.single("counter", "millrace_prompt_tokens_total", "vllm:prompt_tokens_total", "Prompt tokens of admitted requests.",
              engine.prompt_tokens);
  page.single("counter", "millrace_generation_tokens_total", "vllm:generation_tokens_total", "Completion tokens made.",
              engine.generation_tokens);
  page.single("counter", "millrace_prefill_tokens_computed_total", "", "Prompt tokens computed, recomputation included.",
              engine.prefill_tokens_computed);
  page.single("counter", "millrace_preemptions_total", "vllm:num_preemptions_total", "Sequences that had to give their KV blocks back.",
              engine.num_preemptions);
  page.single("counter", "millrace_prefix_cache_queries_total", "vllm:prefix_cache_queries_total",
              "Prompt tokens looked up in the prefix cache.", engine.prefix_cache_queries);
  page.single("counter", "millrace_prefix_cache_hits_total", "vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.",
              engine.prefix_cache_hits);
  if (engine.kv_disk) {
    const KvDiskMetrics& disk = *engine.kv_disk;
    page.single("counter", "millrace_kv_disk_blocks_written_total", "", "KV blocks written to the disk tier.", disk.num_written);
    page.single("counter", "millrace_kv_disk_blocks_read_total", "", "KV blocks brought back from the disk tier.", disk.num_read);
    page.single("counter", "millrace_kv_disk_blocks_rejected_total", "", "Files of the disk tier that were damaged or foreign.",
                disk.num_rejected);
    page.single("counter", "millrace_kv_disk_blocks_dropped_total", "", "KV blocks not written because too many were waiting.",
                disk.num_dropped);
    page.single("gauge", "millrace_kv_disk_bytes", "", "Bytes of the files in the disk tier.", disk.held_bytes);
    page.single("gauge", "millrace_kv_disk_writing", "", "1: blocks are written; 0: the disk is full or cannot be written.",
                disk.is_writing ? 1 : 0);
    page.single("gauge", "millrace_kv_disk_reading", "", "1: blocks are read; 0: computing them takes less.", disk.is_reading ? 1 : 0);
  }
  page.single("counter", "millrace_steps_total", "", "Forward passes.", engine.num_steps);
  page.single("counter", "millrace_spec_decode_num_drafts_total", "vllm:spec_decode_num_drafts_total",
              "Steps of a sequence that had draft tokens.", engine.num_drafts);
  page.single("counter", "millrace_spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_draft_tokens_total", "Draft tokens computed.",
              engine.num_draft_tokens);
  page.single("counter", "millrace_spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_total",
              "Draft tokens accepted.", engine.num_accepted_tokens);
  page.single("gauge", "millrace_spec_decode_past_output_tokens", "", "Tokens of past answers kept to draft from (suffix).",
              engine.num_past_output_tokens);
  page.single("gauge", "millrace_spec_decode_used_draft_blocks", "", "KV blocks that sequences hold in the draft model.",
              engine.num_used_draft_blocks);
  if (!engine.num_accepted_tokens_per_position.empty()) {
    for (const std::string_view name :
         {"millrace_spec_decode_num_accepted_tokens_per_pos_total", "vllm:spec_decode_num_accepted_tokens_per_pos_total"}) {
      page.help(name, "counter", "Draft tokens accepted, by their place in the draft.");
      for (std::size_t i = 0; i < engine.num_accepted_tokens_per_position.size(); ++i) {
        page.sample(name, engine.num_accepted_tokens_per_position[i], fmt::format("position=\"{}\"", i));
      }
    }
  }
  page.single("counter", "millrace_requests_rejected_total", "", "Requests refused because of a limit.", engine.num_rejected);

  for (const std::string_view name : {"millrace_request_success_total", "vllm:request_success_total"}) {
    page.help(name, "counter", "Finished sequences by reason.");
    for (std::size_t i = 0; i < engine.finished.size(); ++i) {
      page.sample(name, engine.finished[i], fmt::format("finished_reason=\"{}\"", finish_reason_name(static_cast<FinishReason>(i))));
    }
  }

  page.single("gauge", "millrace_generation_tokens_per_second", "", "Completion tokens a second, moving average.",
              engine.generation_tokens_per_second);
  page.single("gauge", "millrace_prompt_tokens_per_second", "", "Prompt tokens a second, moving average.", engine.prompt_tokens_per_second);
  page.histogram("millrace_time_to_first_token_seconds", "vllm:time_to_first_token_seconds", "From arrival to the first token.",
                 engine.time_to_first_token);
  page.histogram("millrace_inter_token_latency_seconds", "vllm:inter_token_latency_seconds", "Between tokens of a sequence.",
                 engine.inter_token_latency);
  page.histogram("millrace_e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds", "From arrival to the last token.",
                 engine.request_latency);
  page.histogram("millrace_request_queue_time_seconds", "vllm:request_queue_time_seconds", "From arrival to admission.", engine.queue_time);

  page.help("millrace_http_responses_total", "counter", "HTTP responses by route and status.");
  for (const auto& [key, count] : http.responses) {
    page.sample("millrace_http_responses_total", count, fmt::format("route=\"{}\",status=\"{}\"", key.first, key.second));
  }
  page.single("gauge", "millrace_http_connections", "", "Open connections.", http.num_connections);
  page.single("counter", "millrace_http_connections_total", "", "Connections accepted.", http.num_connections_total);
  page.single("counter", "millrace_http_connections_refused_total", "", "Connections refused because too many were open.",
              http.num_connections_refused);
  return page.take();
}

}  // namespace millrace
