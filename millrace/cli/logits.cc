#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "millrace/cli/command.h"
#include "millrace/model/sequence_runner.h"

namespace millrace::cli {
namespace {

struct LogitsOptions : ModelOptions {
  std::string ids;
  bool all_positions = false, exact = false;
  std::string kv_cache_dtype = "auto";
};

Result<std::vector<int32_t>> parse_ids(const std::string& text) {
  std::string spaced = text;
  std::replace(spaced.begin(), spaced.end(), ',', ' ');
  std::istringstream stream(spaced);
  std::vector<int32_t> ids;
  for (std::string word; stream >> word;) {
    std::size_t used = 0;
    long long id = -1;
    try {
      id = std::stoll(word, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used != word.size() || id < 0 || id > INT32_MAX) return Status::invalid_argument(fmt::format("--ids: \"{}\" is no token id", word));
    ids.push_back(static_cast<int32_t>(id));
  }
  if (ids.empty()) return Status::invalid_argument("--ids: names no token");
  return ids;
}

json::object describe(int64_t position, std::span<const float> logits) {
  std::vector<int32_t> order(logits.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  const std::size_t top_count = std::min<std::size_t>(20, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top_count), order.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  });
  double squares = 0;
  for (float logit : logits) squares += static_cast<double>(logit) * logit;
  json::array top, first;
  for (std::size_t i = 0; i < top_count; ++i) top.push_back(json::array{order[i], logits[static_cast<std::size_t>(order[i])]});
  for (std::size_t i = 0; i < std::min<std::size_t>(16, logits.size()); ++i) first.push_back(logits[i]);
  return {{"position", position}, {"top20", std::move(top)}, {"l2", std::sqrt(squares)}, {"first16", std::move(first)}};
}

void print_text(const json::object& position) {
  fmt::print("position {}   L2 norm {:.6f}\n  top 20 (id: logit):", position.at("position").as_int64(), position.at("l2").as_double());
  for (const json::value& pair : position.at("top20").as_array())
    fmt::print(" {}:{:.4f}", pair.as_array()[0].as_int64(), pair.as_array()[1].as_double());
  fmt::print("\n  first 16:");
  for (const json::value& logit : position.at("first16").as_array()) fmt::print(" {:.4f}", logit.as_double());
  fmt::print("\n");
}

Status run_logits(const LogitsOptions& options) {
  MR_ASSIGN_OR_RETURN(const auto ids, parse_ids(options.ids));
  MR_ASSIGN_OR_RETURN(const KvDType kv_dtype, parse_kv_dtype(options.kv_cache_dtype, options.exact));
  MR_ASSIGN_OR_RETURN(auto model, load_decoder(options));
  constexpr int32_t kChunk = 64;
  MR_ASSIGN_OR_RETURN(auto executor, model->make_executor(options.exact ? GemmPath::kExact : GemmPath::kFast, kv_dtype, kChunk));
  MR_ASSIGN_OR_RETURN(auto runner, SequenceRunner::create(*executor, static_cast<int64_t>(ids.size())));
  runner.reset(static_cast<int64_t>(ids.size()));
  json::array positions;
  MR_RETURN_IF_ERROR(runner.append(ids, kChunk, options.all_positions, [&](int64_t position, std::span<const float> logits) {
    json::object described = describe(position, logits);
    if (options.json) {
      positions.push_back(std::move(described));
    } else {
      print_text(described);
    }
  }));
  if (options.json) fmt::print("{}\n", json_text(json::object{{"positions", std::move(positions)}}));
  return Status::ok();
}

}  // namespace

void register_logits(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("logits", "Logits after given token ids: top 20, L2 norm, first 16 values");
  auto options = std::make_shared<LogitsOptions>();
  add_model_options(*command, *options);
  add_quantization_options(*command, *options);
  command->add_option("--ids", options->ids, "Token ids, separated by spaces or commas; taken as they are, no BOS is added")->required();
  command->add_flag("--all-positions", options->all_positions, "After every token, not only the last");
  command->add_flag("--exact", options->exact, "The exact path: weights and KV in f32");
  add_kv_dtype_option(*command, options->kv_cache_dtype);
  command->footer("Example:\n  millrace logits model.gguf --ids \"1 2 3\" --json");
  command->callback([options, &exit_status] {
    if (const Status status = run_logits(*options); !status.is_ok()) exit_status = fail(status);
  });
}

}  // namespace millrace::cli
