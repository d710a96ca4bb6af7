#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "millrace/base/cache_folder.h"
#include "millrace/cli/command.h"
#include "millrace/measure/probe_cache.h"

namespace millrace::cli {
namespace {

struct ProbeCommandOptions {
  int threads = 0;
  bool json = false, refresh = false;
};

void print_threads(const ThreadProfile& t) {
  fmt::print("\n{} thread{}\n", t.num_threads, t.num_threads == 1 ? "" : "s");
  const auto gigabytes = [](const char* what, const std::string& where, const MeasuredRate& rate) {
    fmt::print("  {:<10}{:<26}{:>9.1f} GB/s  (median {:.1f})\n", what, where, rate.best * 1e-9, rate.median * 1e-9);
  };
  gigabytes("memory", "4 KB pages", t.read_small_pages);
  gigabytes("memory", "2 MB pages", t.read_huge_pages);
  for (const auto& cache : t.caches)
    gigabytes("cache", fmt::format("L{}, {} a thread", cache.level, format_bytes(cache.buffer_bytes)), cache.read);
  for (const auto& level : t.compute) {
    fmt::print("  {:<10}{:<18}", "compute", isa_name(level.isa));
    for (std::size_t a = 0; a < kNumArithmetics; ++a) {
      const double best = level.rates[a].best;
      fmt::print("  {:<5}{}", arithmetic_name(static_cast<Arithmetic>(a)),
                 best > 0 ? fmt::format("{:>7.1f}", best * 1e-9) : fmt::format("{:>7}", "-"));
    }
    fmt::print("  Gop/s\n");
  }
  if (t.num_threads > 1) fmt::print("  {:<36}{:>9.2f} us\n", "barrier", t.barrier_seconds * 1e6);
  fmt::print("  {:<36}{:>9.2f} us\n", "a step's stage with nothing in it", t.stage_seconds * 1e6);
}

Status run_probe(const ProbeCommandOptions& options) {
  const std::vector<int> counts = options.threads > 0 ? std::vector<int>{options.threads} : probe_thread_counts(usable_cpus());
  const std::string folder = cache_folder();
  MR_ASSIGN_OR_RETURN(const ProbedMachine probed, probe_machine_cached(counts, folder, options.refresh));
  MachineProfile shown = probed.profile;
  std::erase_if(shown.threads,
                [&](const ThreadProfile& t) { return std::find(counts.begin(), counts.end(), t.num_threads) == counts.end(); });
  if (!probed.cache_error.is_ok()) fmt::print(stderr, "millrace: the measurement is not kept: {}\n", probed.cache_error.message());
  if (options.json) {
    json::object object = to_json(shown);
    object["measured_now"] = probed.measured;
    object["cache_file"] = probed.file;
    fmt::print("{}\n", json_text(object));
    return Status::ok();
  }
  fmt::print("{}, {} CPU{}, up to {}\n", shown.cpu, shown.num_cpus, shown.num_cpus == 1 ? "" : "s", shown.isa);
  fmt::print("memory was read through {}, {:.1f} times the last-level cache of {} that the CPU reports{}\n",
             format_bytes(shown.memory_buffer_bytes),
             shown.last_level_cache_bytes > 0
                 ? static_cast<double>(shown.memory_buffer_bytes) / static_cast<double>(shown.last_level_cache_bytes)
                 : 0.0,
             format_bytes(shown.last_level_cache_bytes),
             shown.memory_buffer_bytes < 2 * shown.last_level_cache_bytes ? "; part of it may come from there" : "");
  fmt::print("2 MB pages: asked for, given to {:.0f} % of the buffer\n",
             100.0 * static_cast<double>(shown.huge_page_bytes) / static_cast<double>(shown.memory_buffer_bytes));
  fmt::print("all rates are the best of short rounds, all threads together; a multiplication and an addition count as two operations\n");
  for (const ThreadProfile& t : shown.threads) print_threads(t);
  if (!probed.file.empty()) fmt::print("\n{} {}\n", probed.measured ? "kept in" : "from", probed.file);
  return Status::ok();
}

}  // namespace

void register_probe(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("probe", "What this machine can do: read bandwidth, compute peaks, barrier latency");
  auto options = std::make_shared<ProbeCommandOptions>();
  command
      ->add_option("--threads", options->threads,
                   "Measure with this number of threads; default: 1 to 4, powers of two, and every usable CPU")
      ->check(CLI::Range(1, 1024));
  command->add_flag("--refresh", options->refresh, "Measure again, though a measurement was kept");
  command->add_flag("--json", options->json, "Answer in JSON");
  command->footer("Example:\n  millrace probe --threads 2 --refresh");
  command->callback([options, &exit_status] {
    if (const Status status = run_probe(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
