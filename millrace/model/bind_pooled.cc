#include "millrace/model/bind_pooled.h"

#include <fmt/format.h>

#include <cmath>

#include "millrace/model/bind_mlp.h"
#include "millrace/model/transforms.h"

namespace millrace {

namespace {

constexpr int64_t kDenseMax = int64_t{1} << 18;
constexpr std::string_view kPoolings[] = {"cls", "mean", "last"};

Norm unit_norm(int64_t size) {
  // x / sqrt(sum(x^2)); of a row of zeros zeros.
  return {Norm::Kind::kRms,
          std::vector<float>(static_cast<std::size_t>(size), static_cast<float>(1 / std::sqrt(static_cast<double>(size)))),
          {},
          1e-30f};
}

Result<DenseLayer> bind_dense_layer(const BindContext& context, const BindPlace& place, int64_t& size) {
  DenseLayer layer;
  MR_ASSIGN_OR_RETURN(const int64_t rows, stored_rows(context, place, "weight", kDenseMax));
  MR_ASSIGN_OR_RETURN(const StoredLinear stored, bind_linear(context, place, "weight", rows, "rows", size, "the size before"));
  layer.linear = stored.take(consecutive_rows(0, rows));
  if (place.words.find("activation") != nullptr) {
    MR_ASSIGN_OR_RETURN(layer.activation, bind_activation(place.words, "none"));
  }
  size = rows;
  MR_ASSIGN_OR_RETURN(layer.norm, bind_norm(context, place, "norm", size, "rows"));
  return layer;
}

Result<PooledHead> bind_classes(const BindContext& context, const BindPlace& place) {
  PooledHead head;
  MR_ASSIGN_OR_RETURN(const int pooling, place.words.choice("pooling", "cls", kPoolings));
  head.pooling = static_cast<Pooling>(pooling);
  head.classes = true;
  head.size = context.hidden_size;
  const json::array& layers = place.words.find("layers")->get_array();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string name = fmt::format("layers[{}]", i);
    MR_ASSIGN_OR_RETURN(
        DenseLayer layer,
        bind_dense_layer(context, {place.words.object(layers[i].get_object(), name), nullptr, place.role_of(name), false}, head.size));
    head.layers.push_back(std::move(layer));
  }
  return head;
}

// The part after the last dot: modules are named by their Python classes, whose packages have changed.
std::string_view last_name(std::string_view name) { return name.substr(name.rfind('.') + 1); }

Status fail(const BindContext& context, const CheckpointModule& module, std::string_view message) {
  return Status::unsupported(
      fmt::format("{}: modules.json: module \"{}\" ({}): {}", context.checkpoint.path(), module.path, last_name(module.type), message));
}

Result<Pooling> pooling_of(const BindContext& context, const CheckpointModule& module) {
  constexpr std::pair<std::string_view, std::string_view> kModes[] = {{"pooling_mode_cls_token", "cls"},
                                                                      {"pooling_mode_mean_tokens", "mean"},
                                                                      {"pooling_mode_lasttoken", "lasttoken"},
                                                                      {"pooling_mode_max_tokens", "max"},
                                                                      {"pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"},
                                                                      {"pooling_mode_weightedmean_tokens", "weightedmean"}};
  std::vector<std::string> found;
  if (const json::value* mode = module.config.if_contains("pooling_mode"); mode != nullptr && mode->is_string()) {
    found.emplace_back(std::string_view(mode->get_string()));
  } else {
    for (const auto& [key, name] : kModes) {
      const json::value* value = module.config.if_contains(key);
      if (value != nullptr && value->is_bool() && value->get_bool()) found.emplace_back(name);
    }
  }
  if (found.size() == 1) {
    if (found[0] == "cls") return Pooling::kFirst;
    if (found[0] == "mean") return Pooling::kMean;
    if (found[0] == "lasttoken") return Pooling::kLast;
  }
  return fail(context, module,
              fmt::format("its config.json asks for pooling \"{}\", expected one of cls, mean, lasttoken", fmt::join(found, " + ")));
}

Result<DenseLayer> dense_of(const BindContext& context, const CheckpointModule& module, int64_t& size) {
  const json::value* activation = module.config.if_contains("activation_function");
  const std::string_view name = activation != nullptr && activation->is_string() ? last_name(activation->get_string()) : "Tanh";
  DenseLayer layer;
  if (name == "Tanh")
    layer.activation = Activation::kTanh;
  else if (name == "ReLU")
    layer.activation = Activation::kRelu;
  else if (name == "GELU")
    layer.activation = Activation::kGeluErf;
  else if (name == "SiLU")
    layer.activation = Activation::kSilu;
  else if (name != "Identity")
    return fail(context, module, fmt::format("activation_function \"{}\", expected Identity, Tanh, ReLU, GELU or SiLU", name));

  const std::string prefix = module.path + ".linear";
  const SourceTensor* weight = context.checkpoint.find(prefix + ".weight");
  if (weight == nullptr) return fail(context, module, "has no \"linear.weight\" in a model.safetensors of its own");
  const int64_t rows = weight->shape.empty() ? 0 : weight->shape[0];
  if (rows < 1 || rows > kDenseMax)
    return fail(context, module, fmt::format("\"linear.weight\" is {}, expected 1 to {} rows", shape_text(weight->shape), kDenseMax));
  MR_RETURN_IF_ERROR(context.tensors.use(*weight, {rows, size}, "[out_features, the size before]", "pooled." + module.path, ""));
  layer.linear.weight = {weight, false, nullptr, consecutive_rows(0, rows), size};
  if (const SourceTensor* bias = context.checkpoint.find(prefix + ".bias")) {
    MR_RETURN_IF_ERROR(context.tensors.use(*bias, {rows}, "[out_features]", "pooled." + module.path + ".bias", ""));
    MR_ASSIGN_OR_RETURN(layer.linear.bias, context.tensors.read(*bias));
  }
  size = rows;
  return layer;
}

Result<PooledHead> pooled_by_modules(const BindContext& context) {
  PooledHead head;
  head.size = context.hidden_size;
  bool pooled = false;
  for (const CheckpointModule& module : context.checkpoint.modules()) {
    const std::string_view type = last_name(module.type);
    if (head.unit_norm) return fail(context, module, "comes after a Normalize, which is supported as the last module only");
    if (type == "Transformer") continue;
    if (type != "Pooling" && !pooled) return fail(context, module, "comes before the Pooling, and only a Transformer does");
    if (type == "Pooling" && !pooled) {
      MR_ASSIGN_OR_RETURN(head.pooling, pooling_of(context, module));
      pooled = true;
    } else if (type == "Dense") {
      MR_ASSIGN_OR_RETURN(DenseLayer layer, dense_of(context, module, head.size));
      head.layers.push_back(std::move(layer));
    } else if (type == "Normalize") {
      head.unit_norm = unit_norm(head.size);
    } else {
      return fail(context, module, "is not known; known are Transformer, Pooling, Dense, Normalize, in this order");
    }
  }
  if (!pooled)
    return Status::unsupported(
        fmt::format("{}: modules.json has no Pooling module: nothing makes one row of a text's", context.checkpoint.path()));
  return head;
}

}  // namespace

Result<PooledHead> bind_pooled(const BindContext& context, const BindPlace& root) {
  if (root.words.find("classes") != nullptr) {
    const BindPlace place{root.words.object("classes"), nullptr, "classes", false};
    MR_ASSIGN_OR_RETURN(const bool when, place.words.flag("when", "true"));
    if (when) return bind_classes(context, place);
  }
  if (!context.checkpoint.modules().empty()) return pooled_by_modules(context);
  const BindWords words = root.words.object("pooled");
  PooledHead head;
  MR_ASSIGN_OR_RETURN(const int pooling, words.choice("pooling", "mean", kPoolings));
  head.pooling = static_cast<Pooling>(pooling);
  head.size = context.hidden_size;
  MR_ASSIGN_OR_RETURN(const bool normalize, words.flag("normalize", "true"));
  if (normalize) head.unit_norm = unit_norm(head.size);
  return head;
}

}  // namespace millrace
