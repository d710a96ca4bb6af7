#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "millrace/cli/command.h"
#include "millrace/cli/option_values.h"
#include "millrace/measure/step_cost.h"

namespace millrace::cli {
namespace {

struct InspectOptions : ModelOptions {
  bool explain = false;
  int64_t context = 0;
  std::string kv_cache_dtype = "auto";
};

struct ClassTotal {
  int64_t num_matrices = 0, weights = 0, bytes = 0;
};

json::object describe_network(const Network& network) {
  json::object shapes{{"vocab_size", network.vocab_size},
                      {"hidden_size", network.hidden_size},
                      {"num_layers", network.layers.size()},
                      {"max_positions", network.max_positions}};
  if (!network.layers.empty()) {
    const auto with =
        std::find_if(network.layers.begin(), network.layers.end(), [](const DecoderLayer& layer) { return layer.has_attention(); });
    const AttentionLayer& attention = (with == network.layers.end() ? network.layers.front() : *with).attention;
    const auto states =
        std::count_if(network.layers.begin(), network.layers.end(), [](const DecoderLayer& layer) { return !layer.has_attention(); });
    if (states > 0) shapes["num_layers_with_state"] = states;
    shapes["num_heads"] = attention.num_heads;
    shapes["num_kv_heads"] = attention.num_kv_heads;
    shapes["head_dim"] = attention.head_dim;
    const MlpLayer& mlp = network.layers.back().mlp;  // the first layers of some mixtures of experts are dense
    shapes["intermediate_size"] = mlp.mixture ? mlp.mixture->experts[0].up.weight.rows() : mlp.up.weight.rows();
    if (mlp.mixture) {
      shapes["num_experts"] = mlp.mixture->rule.num_experts;
      shapes["experts_per_token"] = mlp.mixture->rule.experts_per_token;
    }
    shapes["position"] = attention.rope                    ? "rope"
                         : !attention.alibi_slopes.empty() ? "alibi"
                         : attention.relative_bias         ? "relative"
                         : network.positions               ? "learned"
                         : !network.sinusoids.empty()      ? "sinusoidal"
                                                           : "none";
  }
  if (network.encoder != nullptr) shapes["num_encoder_layers"] = network.encoder->layers.size();
  if (network.pooled) {
    constexpr std::string_view kPoolings[] = {"cls", "mean", "last"};
    shapes["pooling"] = kPoolings[static_cast<std::size_t>(network.pooled->pooling)];
    shapes[network.pooled->classes ? "num_classes" : "embedding_size"] = network.pooled->size;
    shapes["normalized"] = network.pooled->unit_norm.has_value();
    return shapes;
  }
  shapes["tied_head"] = network.tied_head;
  return shapes;
}

// Computed together at most, as serve's defaults have it.
constexpr int64_t kSequences = 64;

// What one sequence's next token reads: weights, and keys and values at the beginning of a context.
int64_t decode_step_bytes(const CpuExecutor& executor) {
  StepPlan plan;
  plan.tokens = {0};
  plan.sequences = {{0, 1, 0}};
  plan.outputs = {{0, nullptr}};
  OpCost sum;
  for (const OpCost& cost : step_cost(executor, plan)) sum += cost;
  return sum.bytes();
}

Result<json::object> describe(const InspectOptions& options) {
  MR_ASSIGN_OR_RETURN(auto model, load_model(options, LoadWeights::kPlan));
  MR_ASSIGN_OR_RETURN(const KvDType kv_dtype, parse_kv_dtype(options.kv_cache_dtype));
  MR_ASSIGN_OR_RETURN(auto executor, model->make_executor(GemmPath::kFast, kv_dtype, 512));
  const Network& network = model->network();

  std::map<std::string, ClassTotal> totals;
  for (std::size_t i = 0; i < model->weights().size(); ++i) {
    const PackedMatrix& matrix = model->weights()[static_cast<WeightId>(i)];
    ClassTotal& total = totals[std::string(weight_class_name(matrix.weight_class()))];
    ++total.num_matrices;
    total.weights += matrix.rows() * matrix.k();
    total.bytes += matrix.bytes();
  }
  json::array classes;
  for (const auto& [name, total] : totals) {
    classes.push_back(json::object{{"class", name},
                                   {"matrices", total.num_matrices},
                                   {"weights", total.weights},
                                   {"bytes", total.bytes},
                                   {"bits_per_weight", 8.0 * static_cast<double>(total.bytes) / static_cast<double>(total.weights)}});
  }
  int64_t kv_token_bytes = 0, state_bytes = 0;
  json::array groups;
  for (const KvGroupSpec& group : executor->info().kv_groups) {
    if (group.state_floats > 0) {
      // A sequence has one, and two while a step goes on to its next block.
      state_bytes = 2 * group.block_bytes;
      groups.push_back(json::object{{"layers", group.num_layers}, {"state_bytes", group.block_bytes}});
      continue;
    }
    kv_token_bytes += group.block_bytes / kKvBlockTokens;
    json::object described{{"layers", group.num_layers},
                           {"num_kv_heads", group.num_kv_heads},
                           {"head_dim", group.head_dim},
                           {"bytes_per_token", group.block_bytes / kKvBlockTokens}};
    if (group.window) described["window"] = *group.window;
    if (group.cross) described["of_source"] = true;
    groups.push_back(std::move(described));
  }
  const int64_t context = options.context > 0 ? options.context : network.max_positions;
  const auto tokenizer = model->tokenizer();
  const auto chat_template = model->chat_template();
  const MemoryPlan memory = model->memory_plan(*executor, kv_token_bytes * context + state_bytes, kSequences);
  json::object out{
      {"model", options.model},
      {"source", model->checkpoint().kind() == Checkpoint::Kind::kGguf ? "gguf" : "huggingface"},
      {"file_bytes", model->checkpoint().file_bytes()},
      {"family", network.family},
      {"isa", isa_name(model->isa())},
      {"shapes", describe_network(network)},
      {"quantization", std::move(classes)},
      {"load_time_quantization", model->quantization().empty() ? json::value(nullptr) : json::value(model->quantization())},
      {"kv_groups", std::move(groups)},
      {"memory", json::object{{"weights_bytes", model->weights().bytes()},
                              {"activations_bytes", memory.activation_bytes},
                              {"kv_cache_dtype", kv_dtype_name(kv_dtype)},
                              {"kv_bytes_per_token", kv_token_bytes},
                              {"kv_context", context},
                              {"kv_bytes", memory.kv_bytes},
                              {"tables_bytes", memory.tables_bytes},
                              {"program_bytes", MemoryPlan::kProgramBytes},
                              {"total_bytes", memory.total_bytes()}}},
      {"tokenizer", tokenizer.is_ok() ? (*tokenizer)->description() : "none: " + tokenizer.status().message()},
      {"chat_template", chat_template.is_ok() ? fmt::format("{} characters", (*chat_template)->source().size())
                                              : "none: " + chat_template.status().message()},
      {"operations", json::object{{"total", executor->program().ops.size()}, {"unfused", executor->program().unfused.size()}}}};
  if (options.explain) {
    json::array bindings, unfused;
    for (const Network::Binding& binding : network.bindings) {
      bindings.push_back(json::object{{"tensor", binding.tensor},
                                      {"dtype", binding.dtype},
                                      {"shape", binding.shape},
                                      {"role", binding.role},
                                      {"transforms", binding.transforms}});
    }
    const double step_bytes = static_cast<double>(decode_step_bytes(*executor));
    for (const Program::Unfused& op : executor->program().unfused) {
      unfused.push_back(json::object{{"operation", op.description},
                                     {"bytes_per_token", op.bytes_per_token},
                                     {"share_of_step_bytes", static_cast<double>(op.bytes_per_token) / step_bytes}});
    }
    json::array matrices;
    for (std::size_t i = 0; i < model->weights().size(); ++i) {
      const auto id = static_cast<WeightId>(i);
      const PackedMatrix& matrix = model->weights()[id];
      matrices.push_back(
          json::object{{"tensor", model->weights().linear(id).weight.tensor->name},
                       {"rows", matrix.rows()},
                       {"k", matrix.k()},
                       {"class", weight_class_name(matrix.weight_class())},
                       {"bits_per_weight", 8.0 * static_cast<double>(matrix.bytes()) / static_cast<double>(matrix.rows() * matrix.k())}});
    }
    out["bindings"] = std::move(bindings);
    out["matrices"] = std::move(matrices);
    out["unfused"] = std::move(unfused);
  }
  return out;
}

void print_text(const json::object& d) {
  const auto text = [](const json::value& value) { return value.is_string() ? std::string(value.as_string()) : json_text(value); };
  const auto line = [](std::string_view name, const std::string& value) { fmt::print("{:<15} {}\n", name, value); };
  line("model", fmt::format("{} ({}, {})", text(d.at("model")), text(d.at("source")), format_bytes(d.at("file_bytes").as_int64())));
  line("family", text(d.at("family")));
  std::string shapes;
  for (const auto& [key, value] : d.at("shapes").as_object())
    shapes += fmt::format("{}{} {}", shapes.empty() ? "" : ", ", std::string_view(key), text(value));
  line("shapes", shapes);
  for (const json::value& value : d.at("quantization").as_array()) {
    const json::object& c = value.as_object();
    line("weights",
         fmt::format("{:<5} {:>4} matrices, {:>12} weights, {:>9}, {:.2f} bits a weight", text(c.at("class")), text(c.at("matrices")),
                     text(c.at("weights")), format_bytes(c.at("bytes").as_int64()), c.at("bits_per_weight").as_double()));
  }
  if (const json::value& made = d.at("load_time_quantization"); made.is_string())
    line("", fmt::format("quantized while loading: {}", text(made)));
  const json::object& memory = d.at("memory").as_object();
  line("memory", fmt::format("weights {}, activations {}, KV cache ({}) {} a token: {} for {} tokens",
                             format_bytes(memory.at("weights_bytes").as_int64()), format_bytes(memory.at("activations_bytes").as_int64()),
                             text(memory.at("kv_cache_dtype")), format_bytes(memory.at("kv_bytes_per_token").as_int64()),
                             format_bytes(memory.at("kv_bytes").as_int64()), text(memory.at("kv_context"))));
  line("",
       fmt::format("with tokenizer and tables {}, and {} for the program: {} resident", format_bytes(memory.at("tables_bytes").as_int64()),
                   format_bytes(memory.at("program_bytes").as_int64()), format_bytes(memory.at("total_bytes").as_int64())));
  line("tokenizer", text(d.at("tokenizer")));
  line("chat template", text(d.at("chat_template")));
  line("instruction set", text(d.at("isa")));
  const json::object& operations = d.at("operations").as_object();
  line("operations", fmt::format("{} a step, {} left unfused", text(operations.at("total")), text(operations.at("unfused"))));
  if (const json::value* bindings = d.if_contains("bindings")) {
    fmt::print("\ntensors\n");
    for (const json::value& value : bindings->as_array()) {
      const json::object& b = value.as_object();
      fmt::print("  {:<48} {:<5} {:<16} -> {}{}\n", text(b.at("tensor")), text(b.at("dtype")), text(b.at("shape")), text(b.at("role")),
                 b.at("transforms").as_string().empty() ? "" : " (" + text(b.at("transforms")) + ")");
    }
    fmt::print("\npacked matrices\n");
    for (const json::value& value : d.at("matrices").as_array()) {
      const json::object& m = value.as_object();
      fmt::print("  {:<48} {:<8} {:>6} x {:<6} {:.2f} bits a weight\n", text(m.at("tensor")), text(m.at("class")), text(m.at("rows")),
                 text(m.at("k")), m.at("bits_per_weight").as_double());
    }
    fmt::print("\nunfused operations\n");
    for (const json::value& value : d.at("unfused").as_array()) {
      const json::object& u = value.as_object();
      fmt::print("  {}; {} bytes of activations a token more, {:.3f} % of what a decode step reads, and a stage of its own\n",
                 text(u.at("operation")), text(u.at("bytes_per_token")), 100 * u.at("share_of_step_bytes").as_double());
    }
    if (d.at("unfused").as_array().empty()) fmt::print("  none\n");
  }
}

}  // namespace

void register_inspect(CLI::App& app, int& exit_status) {
  auto* command = app.add_subcommand("inspect", "What a model is: family, shapes, quantization, memory, tokenizer, template");
  auto options = std::make_shared<InspectOptions>();
  add_model_options(*command, *options);
  add_quantization_options(*command, *options);
  command->add_flag("--explain", options->explain, "How each tensor was bound, and operations left unfused");
  command->add_option("--max-model-len", options->context, "Context length for the KV cache's size")->check(whole_number(1));
  add_kv_dtype_option(*command, options->kv_cache_dtype);
  command->footer("Example:\n  millrace inspect model.gguf --explain\n  millrace inspect ./model --quantization int4");
  command->callback([options, &exit_status] {
    const auto described = describe(*options);
    if (!described.is_ok()) {
      exit_status = fail(described.status());
    } else if (options->json) {
      fmt::print("{}\n", json_text(*described));
    } else {
      print_text(*described);
    }
  });
}

}  // namespace millrace::cli
