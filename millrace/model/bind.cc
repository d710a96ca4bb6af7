#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "millrace/model/bind_layer.h"
#include "millrace/model/bind_parts.h"
#include "millrace/model/bind_pooled.h"
#include "millrace/model/family.h"
#include "millrace/model/transforms.h"
#include "millrace/tensor/dequantize.h"

namespace millrace {

namespace {

// Ranges that no published model comes near, so that hostile configurations end here and not in an allocation.
constexpr int64_t kHiddenMax = int64_t{1} << 18, kVocabMax = int64_t{1} << 24, kPositionsMax = int64_t{1} << 31, kLayersMax = 4096;

Status check_requirements(const Family& family, const BindConfig& config) {
  const json::value* list = family.description().if_contains("require");
  if (list == nullptr) return Status::ok();
  for (std::size_t i = 0; i < list->get_array().size(); ++i) {
    const json::object& requirement = list->get_array()[i].get_object();
    const BindWords words(config, &requirement, fmt::format("require[{}]", i), std::nullopt);
    MR_ASSIGN_OR_RETURN(const bool met, words.flag("that", "true"));
    if (!met)
      return Status::unsupported(
          fmt::format("{}: {}", config.where(words.place("that")), std::string_view(requirement.at("message").get_string())));
  }
  return Status::ok();
}

Result<MatrixSource> bind_embedding(const BindContext& context, const BindPlace& place, std::optional<int64_t> vocab_size) {
  const json::value& names = *place.words.find("tokens");
  const SourceTensor* tokens = context.tensors.find(names, nullptr, std::nullopt, ".weight");
  if (tokens == nullptr) return missing_tensor(context, place, "tokens", names, ".weight");
  const int64_t stored = tokens->shape.empty() ? 0 : tokens->shape[0];
  const int64_t rows = vocab_size.value_or(stored);
  if (rows < 1 || rows > kVocabMax) {
    return Status::invalid_argument(fmt::format("{}: \"{}\" is {}, expected 1 to {} rows", context.checkpoint.path(), tokens->name,
                                                shape_text(tokens->shape), kVocabMax));
  }
  MR_RETURN_IF_ERROR(context.tensors.use(*tokens, {rows, context.hidden_size}, "[vocab_size, hidden_size]", "embedding", ""));
  if (context.encoding != nullptr && tokens->dtype != DType::kF32 && tokens->dtype != DType::kF16 && tokens->dtype != DType::kBf16) {
    return Status::unsupported(fmt::format("{}: \"{}\" is {}; quantized embeddings are not supported", context.checkpoint.path(),
                                           tokens->name, dtype_name(tokens->dtype)));
  }
  return MatrixSource{tokens, false, nullptr, consecutive_rows(0, rows), context.hidden_size};
}

Status bind_token_types(const BindContext& context, const BindPlace& place, Network& network) {
  const json::value* names = place.words.find("token_types");
  if (names == nullptr) return Status::ok();
  const SourceTensor* tensor = context.tensors.find(*names, nullptr, std::nullopt, ".weight");
  if (tensor == nullptr) return missing_tensor(context, place, "token_types", *names, ".weight");
  constexpr int64_t kTypesMax = 1024;
  const int64_t rows = tensor->shape.empty() ? 0 : tensor->shape[0];
  if (rows < 1 || rows > kTypesMax) {
    return Status::invalid_argument(fmt::format("{}: \"{}\" is {}, expected 1 to {} rows", context.checkpoint.path(), tensor->name,
                                                shape_text(tensor->shape), kTypesMax));
  }
  MR_RETURN_IF_ERROR(context.tensors.use(*tensor, {rows, context.hidden_size}, "[token types, hidden_size]", "embedding.token_types", ""));
  if (!can_dequantize(tensor->dtype)) {
    return Status::unsupported(fmt::format("{}: \"{}\" is stored as {}, which cannot be read as numbers", context.checkpoint.path(),
                                           tensor->name, dtype_name(tensor->dtype)));
  }
  network.token_types = MatrixSource{tensor, false, nullptr, consecutive_rows(0, rows), context.hidden_size};
  return Status::ok();
}

Status bind_positions(const BindContext& context, const BindPlace& place, Network& network) {
  const json::value* names = place.words.find("positions");
  if (names == nullptr) return Status::ok();
  const SourceTensor* tensor = context.tensors.find(*names, nullptr, std::nullopt, ".weight");
  if (tensor == nullptr) return missing_tensor(context, place, "positions", *names, ".weight");
  const int64_t rows = tensor->shape.empty() ? 0 : tensor->shape[0];
  MR_ASSIGN_OR_RETURN(network.position_offset, place.words.integer("position_offset", "0", 0, 1 << 20));
  if (rows <= network.position_offset || rows > kVocabMax) {
    return Status::invalid_argument(fmt::format("{}: \"{}\" is {}, expected {} to {} rows", context.checkpoint.path(), tensor->name,
                                                shape_text(tensor->shape), network.position_offset + 1, kVocabMax));
  }
  MR_RETURN_IF_ERROR(context.tensors.use(*tensor, {rows, context.hidden_size}, "[positions, hidden_size]", "embedding.positions", ""));
  if (!can_dequantize(tensor->dtype)) {  // its rows are read in every step
    return Status::unsupported(fmt::format("{}: \"{}\" is stored as {}, which cannot be read as numbers", context.checkpoint.path(),
                                           tensor->name, dtype_name(tensor->dtype)));
  }
  network.positions = MatrixSource{tensor, false, nullptr, consecutive_rows(0, rows), context.hidden_size};
  network.max_positions = std::min(network.max_positions, rows - network.position_offset);
  return Status::ok();
}

// The positions of Attention Is All You Need (arXiv:1706.03762), sines in a row's first half and cosines in the other, computed in f64.
Status bind_sinusoids(const BindContext& context, const BindPlace& place, Network& network) {
  MR_ASSIGN_OR_RETURN(const bool sinusoidal, place.words.flag("sinusoidal", "false"));
  if (!sinusoidal) return Status::ok();
  constexpr int64_t kNumbersMax = int64_t{1} << 26;
  const int64_t hidden = network.hidden_size, half = (hidden + 1) / 2;
  if (network.positions || network.max_positions > kNumbersMax / hidden) {
    return Status::invalid_argument(fmt::format("{}: {} positions of {} numbers, expected at most {} numbers, and none that are learned",
                                                context.config.where(place.words.place("sinusoidal")), network.max_positions, hidden,
                                                kNumbersMax));
  }
  network.sinusoids.reserve(static_cast<std::size_t>(network.max_positions * hidden));
  for (int64_t position = 0; position < network.max_positions; ++position) {
    for (int64_t i = 0; i < hidden; ++i) {
      const int64_t pair = i < half ? i : i - half;
      const double angle = static_cast<double>(position) / std::pow(10000.0, 2.0 * static_cast<double>(pair) / static_cast<double>(hidden));
      network.sinusoids.push_back(static_cast<float>(i < half ? std::sin(angle) : std::cos(angle)));
    }
  }
  return Status::ok();
}

// `root` is the family, or its encoder, whose words `place_prefix` comes before.
Status bind_layers(const BindContext& context, const json::object& root, const std::string& place_prefix, Network& network) {
  const json::array& stacks = root.at("layers").get_array();
  std::optional<int64_t> reach;
  for (std::size_t stack = 0; stack < stacks.size(); ++stack) {
    const json::object& description = stacks[stack].get_object();
    const std::string place = fmt::format("{}layers[{}]", place_prefix, stack);
    const BindWords words(context.config, &description, place, std::nullopt);
    MR_ASSIGN_OR_RETURN(const int64_t count, words.integer("count", "", 0, kLayersMax));
    for (int64_t n = 0; n < count; ++n) {
      const int64_t layer = static_cast<int64_t>(network.layers.size());
      MR_ASSIGN_OR_RETURN(BoundLayer bound, bind_layer(context, description, place, place_prefix, layer));
      reach = std::min(reach.value_or(bound.max_positions), bound.max_positions);
      network.layers.push_back(std::move(bound.layer));
    }
  }
  if (network.layers.empty()) return Status::invalid_argument(fmt::format("{}: the network has no layers", context.config.where("layers")));
  if (!network.positions) network.max_positions = *reach;
  return Status::ok();
}

// A number for each token that is added to its logit. Most published ones are zeros, which are not worth an addition.
Status bind_logits_bias(const BindContext& context, const BindPlace& place, Network& network) {
  const json::value* names = place.words.find("logits_bias");
  if (names == nullptr) return Status::ok();
  const SourceTensor* tensor = context.tensors.find(*names, nullptr, std::nullopt, "");
  if (tensor == nullptr) return Status::ok();
  MR_RETURN_IF_ERROR(context.tensors.use(*tensor, {1, network.vocab_size}, "[1, vocab_size]", "head.logits_bias", ""));
  MR_ASSIGN_OR_RETURN(std::vector<float> bias, context.tensors.read(*tensor));
  if (std::all_of(bias.begin(), bias.end(), [](float number) { return number == 0; })) return Status::ok();
  if (!network.head.bias.empty() || network.logits_multiplier != 1.0f) {
    return Status::unsupported(
        fmt::format("{}: \"{}\" beside a head that has a bias or a multiplier", context.checkpoint.path(), tensor->name));
  }
  network.head.bias = std::move(bias);
  return Status::ok();
}

Status bind_head(const BindContext& context, const BindPlace& place, Network& network) {
  MR_ASSIGN_OR_RETURN(network.tied_head, place.words.flag("tied_when", "tie_word_embeddings ?? false"));
  MR_ASSIGN_OR_RETURN(const double multiplier, place.words.number("multiplier", "1", 1e-9, 1e9));
  network.logits_multiplier = static_cast<float>(multiplier);
  MR_ASSIGN_OR_RETURN(const std::optional<double> softcap, place.words.optional_number("softcap", "none", 1e-6, 1e9));
  if (softcap) network.logits_softcap = static_cast<float>(*softcap);
  if (!network.tied_head) {
    MR_ASSIGN_OR_RETURN(const StoredLinear head,
                        bind_linear(context, place, "weight", network.vocab_size, "vocab_size", context.hidden_size, "hidden_size"));
    network.head = head.take(consecutive_rows(0, network.vocab_size));
    return bind_logits_bias(context, place, network);
  }
  network.head.weight = network.embedding;
  // Some files store a tied head a second time; the reference does not read it either.
  const json::value& word = *place.words.find("weight");
  const json::value& names = word.is_object() ? word.get_object().at("name") : word;
  if (const SourceTensor* copy = context.tensors.find(names, nullptr, std::nullopt, ".weight");
      copy != nullptr && copy != network.embedding.tensor) {
    context.tensors.set_aside(*copy, "head, tied to the embedding");
  }
  return bind_logits_bias(context, place, network);
}

// A decoder's layers look back, and their keys and values are kept; an encoder's look both ways, and nothing is.
Status check_directions(const BindConfig& config, const Network& network) {
  for (std::size_t i = 0; i < network.layers.size(); ++i) {
    if (network.layers[i].attention.causal != network.is_encoder()) continue;
    return Status::unsupported(fmt::format(
        "{}: layer {} is {}causal, expected that all layers of a network with a \"head\" are, and none of one that is \"pooled\"",
        config.where("layers"), i, network.is_encoder() ? "" : "not "));
  }
  return Status::ok();
}

// The encoder beside a decoder, with the decoder's embedding.
Status bind_encoder(const BindContext& context, const BindPlace& root, Network& network) {
  const json::value* description = root.words.find("encoder");
  if (description == nullptr) return Status::ok();
  const BindPlace place{root.words.object("encoder"), nullptr, "encoder", false};
  const BindPlace embedding{place.words.object("embedding"), nullptr, "encoder.embedding", false};
  auto encoder = std::make_shared<Network>();
  encoder->family = network.family;
  encoder->feeds_decoder = true;
  encoder->vocab_size = network.vocab_size;
  encoder->hidden_size = network.hidden_size;
  encoder->max_positions = context.max_positions;
  encoder->embedding = network.embedding;
  encoder->embedding_multiplier = network.embedding_multiplier;
  MR_ASSIGN_OR_RETURN(encoder->embedding_norm, bind_norm(context, embedding, "norm", network.hidden_size, "hidden_size"));
  MR_RETURN_IF_ERROR(bind_positions(context, embedding, *encoder));
  MR_RETURN_IF_ERROR(bind_sinusoids(context, embedding, *encoder));
  MR_RETURN_IF_ERROR(bind_layers(context, description->get_object(), "encoder.", *encoder));
  MR_ASSIGN_OR_RETURN(encoder->final_norm, bind_norm(context, place, "final_norm", network.hidden_size, "hidden_size"));
  MR_RETURN_IF_ERROR(check_directions(context.config, *encoder));
  MR_ASSIGN_OR_RETURN(const int64_t start, place.words.integer("start_token", "", 0, network.vocab_size - 1));
  MR_ASSIGN_OR_RETURN(const auto second, place.words.optional_integer("second_token", "none", 0, network.vocab_size - 1));
  network.start_tokens = {static_cast<int32_t>(start)};
  if (second) network.start_tokens.push_back(static_cast<int32_t>(*second));
  network.encoder = std::move(encoder);
  return Status::ok();
}

}  // namespace

Result<Network> bind_network(const Family& family, const Checkpoint& checkpoint) {
  const json::object& description = family.description();
  const bool gguf = checkpoint.kind() == Checkpoint::Kind::kGguf;
  if (gguf && !description.contains("gguf")) {
    return Status::unsupported(
        fmt::format("{}: the family has no \"gguf\" section, and {} is a GGUF", family.file_name(), checkpoint.path()));
  }
  MR_ASSIGN_OR_RETURN(const std::shared_ptr<const WeightEncoding> encoding, WeightEncoding::read(checkpoint));
  MR_ASSIGN_OR_RETURN(const BindConfig config, BindConfig::make(family, checkpoint));
  MR_RETURN_IF_ERROR(check_requirements(family, config));
  BindTensors tensors(family, checkpoint, gguf);
  const BindPlace root{BindWords(config, &description, "", std::nullopt), nullptr, "", false};

  Network network;
  network.family = family.name();
  MR_ASSIGN_OR_RETURN(network.hidden_size, root.words.integer("hidden_size", "hidden_size", 1, kHiddenMax));
  MR_ASSIGN_OR_RETURN(network.max_positions, root.words.integer("max_positions", "max_position_embeddings", 1, kPositionsMax));
  MR_ASSIGN_OR_RETURN(const std::optional<int64_t> vocab_size,
                      root.words.optional_integer("vocab_size", "gguf ? none : vocab_size", 1, kVocabMax));
  const BindContext context{family, checkpoint, config, tensors, network.hidden_size, network.max_positions, encoding.get()};

  const BindPlace embedding{root.words.object("embedding"), nullptr, "embedding", false};
  MR_ASSIGN_OR_RETURN(network.embedding, bind_embedding(context, embedding, vocab_size));
  network.vocab_size = network.embedding.rows();
  MR_ASSIGN_OR_RETURN(const double multiplier, embedding.words.number("multiplier", "1", 1e-9, 1e9));
  network.embedding_multiplier = static_cast<float>(multiplier);
  MR_ASSIGN_OR_RETURN(network.embedding_norm, bind_norm(context, embedding, "norm", network.hidden_size, "hidden_size"));
  MR_RETURN_IF_ERROR(bind_token_types(context, embedding, network));
  MR_RETURN_IF_ERROR(bind_positions(context, embedding, network));
  MR_RETURN_IF_ERROR(bind_sinusoids(context, embedding, network));
  MR_RETURN_IF_ERROR(bind_encoder(context, root, network));
  MR_RETURN_IF_ERROR(bind_layers(context, description, "", network));
  MR_ASSIGN_OR_RETURN(network.final_norm, bind_norm(context, root, "final_norm", network.hidden_size, "hidden_size"));
  if (description.contains("head")) {
    MR_RETURN_IF_ERROR(bind_head(context, {root.words.object("head"), nullptr, "head", false}, network));
  } else {
    MR_ASSIGN_OR_RETURN(network.pooled, bind_pooled(context, root));
  }
  MR_RETURN_IF_ERROR(check_directions(config, network));
  MR_RETURN_IF_ERROR(tensors.check_all_used(encoding != nullptr));
  network.bindings = tensors.take_bindings();
  return network;
}

}  // namespace millrace
