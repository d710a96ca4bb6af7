#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "millrace/engine/engine_metrics.h"

namespace millrace {

// What the HTTP side counts. Route names are the table's, so that no client can invent labels.
struct HttpMetrics {
  std::map<std::pair<std::string_view, int>, int64_t> responses;  // (route, status)
  int64_t num_connections = 0;
  uint64_t num_connections_total = 0;
  uint64_t num_connections_refused = 0;
};

// The Prometheus text exposition: millrace_* series, and the ones that vLLM's dashboards and autoscalers read under vLLM's names.
std::string prometheus_text(const EngineMetrics& engine, const HttpMetrics& http, std::string_view model_name);

}  // namespace millrace
