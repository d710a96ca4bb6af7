#include "millrace/model/bind_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "millrace/model/transforms.h"

namespace millrace {

namespace {

constexpr int64_t kTapsMax = 64, kChannelsMax = int64_t{1} << 20, kStatesMax = 4096, kRankMax = int64_t{1} << 20;

// Numbers that converters store in one of two shapes.
struct Table {
  std::vector<int64_t> shape, other_shape;
  std::string_view shape_words;
};

Result<std::vector<float>> bind_table(const BindContext& context, const BindPlace& place, std::string_view word, const Table& table,
                                      std::string_view transforms = "") {
  const json::value* value = place.words.find(word);
  MR_CHECK(value != nullptr, "the schema requires every tensor that is bound");
  const json::value& names = value->is_object() ? value->get_object().at("name") : *value;
  const SourceTensor* tensor = nullptr;
  for (const std::string_view suffix : {"", ".weight", ".bias"}) {
    if (tensor == nullptr) tensor = context.tensors.find(names, place.scopes, place.layer(), suffix);
  }
  if (tensor == nullptr) return missing_tensor(context, place, word, names, ".weight");
  const std::vector<int64_t>& shape = !table.other_shape.empty() && tensor->shape == table.other_shape ? table.other_shape : table.shape;
  MR_RETURN_IF_ERROR(context.tensors.use(*tensor, shape, table.shape_words, place.role_of(word), std::string(transforms)));
  return context.tensors.read(*tensor);
}

// [rows, columns] -> [columns, rows]
std::vector<float> transposed(const std::vector<float>& numbers, int64_t rows, int64_t columns) {
  std::vector<float> result(numbers.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c)
      result[static_cast<std::size_t>(c * rows + r)] = numbers[static_cast<std::size_t>(r * columns + c)];
  }
  return result;
}

Result<CausalConvolution> bind_kernel(const BindContext& context, const BindPlace& place, int64_t channels,
                                      std::string_view channels_words) {
  CausalConvolution convolution;
  convolution.num_channels = channels;
  MR_ASSIGN_OR_RETURN(convolution.num_taps, place.words.integer("kernel_size", "", 1, kTapsMax));
  const std::string words = fmt::format("[{}, 1, kernel_size]", channels_words);
  MR_ASSIGN_OR_RETURN(
      const std::vector<float> weights,
      bind_table(context, place, "kernel", {{channels, 1, convolution.num_taps}, {channels, convolution.num_taps}, words}, "transposed"));
  convolution.weights = transposed(weights, channels, convolution.num_taps);
  const json::value& word = *place.words.find("kernel");
  const json::object no_words;
  const BindWords own = word.is_object() ? place.words.object("kernel") : place.words.object(no_words, "kernel");
  MR_ASSIGN_OR_RETURN(const std::optional<bool> wants_bias, (own.find("bias") != nullptr ? own : place.words).optional_flag("bias"));
  const json::value& names = word.is_object() ? word.get_object().at("name") : word;
  const SourceTensor* bias = context.tensors.find(names, place.scopes, place.layer(), ".bias");
  if (!wants_bias.value_or(bias != nullptr)) return convolution;
  if (bias == nullptr) return missing_tensor(context, place, "kernel", names, ".bias");
  MR_RETURN_IF_ERROR(context.tensors.use(*bias, {channels}, fmt::format("[{}]", channels_words), place.role_of("kernel.bias"), ""));
  MR_ASSIGN_OR_RETURN(convolution.bias, context.tensors.read(*bias));
  return convolution;
}

template <class Layer>
Status bind_norms(const BindContext& context, const BindPlace& place, Layer& layer) {
  MR_ASSIGN_OR_RETURN(layer.norm, bind_norm(context, place, "norm", context.hidden_size, "hidden_size"));
  MR_ASSIGN_OR_RETURN(layer.post_norm, bind_norm(context, place, "post_norm", context.hidden_size, "hidden_size"));
  MR_ASSIGN_OR_RETURN(layer.sum_norm, bind_norm(context, place, "sum_norm", context.hidden_size, "hidden_size"));
  return Status::ok();
}

// A matrix whose rows are taken as they are stored.
Result<Linear> bind_whole(const BindContext& context, const BindPlace& place, std::string_view word, int64_t rows,
                          std::string_view rows_words, int64_t k, std::string_view k_words) {
  MR_ASSIGN_OR_RETURN(const StoredLinear stored, bind_linear(context, place, word, rows, rows_words, k, k_words));
  return stored.take(consecutive_rows(0, rows));
}

Result<ShortConvolution> bind_convolution(const BindContext& context, const BindPlace& place) {
  ShortConvolution layer;
  const int64_t hidden = context.hidden_size;
  MR_RETURN_IF_ERROR(bind_norms(context, place, layer));
  MR_ASSIGN_OR_RETURN(layer.in, bind_whole(context, place, "in", 3 * hidden, "3 * hidden_size", hidden, "hidden_size"));
  MR_ASSIGN_OR_RETURN(layer.convolution, bind_kernel(context, place, hidden, "hidden_size"));
  MR_ASSIGN_OR_RETURN(layer.out, bind_whole(context, place, "out", hidden, "hidden_size", hidden, "hidden_size"));
  return layer;
}

// The step width, b and c are computed from x.
Status bind_selection(const BindContext& context, const BindPlace& place, StateSpace& space) {
  MR_ASSIGN_OR_RETURN(const int64_t rank, place.words.integer("dt_rank", "", 1, kRankMax));
  MR_ASSIGN_OR_RETURN(const StoredLinear selection,
                      bind_linear(context, place, "selection", rank + 2 * space.num_states, "dt_rank + 2 * num_states", space.num_channels,
                                  "num_channels", "split into dt, b and c"));
  StateSpace::Selection& own = space.selection.emplace();
  own.dt_down = selection.take(consecutive_rows(0, rank));
  own.b_c = selection.take(consecutive_rows(rank, 2 * space.num_states));
  MR_ASSIGN_OR_RETURN(own.norm, bind_norm(context, place, "selection_norm", rank, "dt_rank"));
  MR_ASSIGN_OR_RETURN(own.dt_up, bind_whole(context, place, "dt", space.num_channels, "num_channels", rank, "dt_rank"));
  return Status::ok();
}

// a, at most 0, of each channel and state or of each head; d of each channel.
Status bind_dynamics(const BindContext& context, const BindPlace& place, StateSpace& space) {
  const int64_t channels = space.num_channels, heads = space.num_heads, head_size = channels / heads;
  MR_ASSIGN_OR_RETURN(const bool is_log, place.words.flag("a_is_log", "true"));
  const Table of_heads{{heads}, {heads, 1}, "[num_heads]"};
  const Table table = space.decay_per_head ? of_heads : Table{{channels, space.num_states}, {}, "[num_channels, num_states]"};
  MR_ASSIGN_OR_RETURN(std::vector<float> a, bind_table(context, place, "a", table, is_log ? "-exp" : ""));
  for (float& number : a) {
    if (is_log) number = -std::exp(number);
    if (!(number <= 0)) {
      return Status::invalid_argument(fmt::format("{}: {}: found {}, expected numbers of at most 0: a state decays",
                                                  context.checkpoint.path(), place.role_of("a"), number));
    }
  }
  const auto of_channels = [&](const std::vector<float>& numbers) {
    std::vector<float> result(static_cast<std::size_t>(channels));
    for (std::size_t c = 0; c < result.size(); ++c) result[c] = numbers[c / static_cast<std::size_t>(head_size)];
    return result;
  };
  space.a = space.decay_per_head ? of_channels(a) : transposed(a, channels, space.num_states);
  MR_ASSIGN_OR_RETURN(const std::vector<float> d, bind_table(context, place, "d", of_heads));
  space.d = of_channels(d);
  if (place.words.find("dt_bias") != nullptr) {
    MR_ASSIGN_OR_RETURN(space.dt_bias, bind_table(context, place, "dt_bias", of_heads));
  }
  return Status::ok();
}

// Its weights lie side by side, or a row for each group.
Status bind_gated_norm(const BindContext& context, const BindPlace& place, StateSpace& space) {
  const json::value* word = place.words.find("gated_norm");
  if (word == nullptr) return Status::ok();
  const json::value& names = word->is_object() ? word->get_object().at("name") : *word;
  const SourceTensor* tensor = context.tensors.find(names, place.scopes, place.layer(), ".weight");
  NormSize size{space.num_channels, "num_channels", 0, {}};
  if (tensor != nullptr && tensor->shape.size() == 2)
    size = {space.num_channels / space.num_groups, "num_channels / num_groups", space.num_groups, "num_groups"};
  MR_ASSIGN_OR_RETURN(space.gated_norm, bind_norm(context, place, "gated_norm", size));
  return Status::ok();
}

Result<StateSpace> bind_space(const BindContext& context, const BindPlace& place) {
  const BindWords& words = place.words;
  StateSpace space;
  const int64_t hidden = context.hidden_size;
  const bool selects = words.find("selection") != nullptr;
  MR_ASSIGN_OR_RETURN(space.num_channels, words.integer("num_channels", "", 1, kChannelsMax));
  MR_ASSIGN_OR_RETURN(space.num_states, words.integer("num_states", "", 1, kStatesMax));
  MR_ASSIGN_OR_RETURN(space.num_heads, words.integer("num_heads", fmt::format("{}", space.num_channels), 1, space.num_channels));
  MR_ASSIGN_OR_RETURN(space.num_groups, words.integer("num_groups", "1", 1, space.num_heads));
  if (space.num_channels % space.num_heads != 0 || space.num_heads % space.num_groups != 0) {
    return Status::invalid_argument(fmt::format("{}: {} channels in {} heads, these in {} groups: expected equal parts ({})",
                                                context.checkpoint.path(), space.num_channels, space.num_heads, space.num_groups,
                                                context.config.where(words.place("num_heads"))));
  }
  if (selects && (space.num_heads != space.num_channels || space.num_groups != 1)) {
    return Status::invalid_argument(fmt::format("{}: {}: with \"selection\" every channel is a head, and all are one group",
                                                context.checkpoint.path(), context.config.where(words.place("num_heads"))));
  }
  space.decay_per_head = !selects;
  MR_ASSIGN_OR_RETURN(const double dt_min, words.number("dt_min", "0", 0, 1e30));
  MR_ASSIGN_OR_RETURN(const std::optional<double> dt_max, words.optional_number("dt_max", "none", dt_min, 1e308));
  space.dt_min = static_cast<float>(dt_min);
  if (dt_max && *dt_max < 1e30) space.dt_max = static_cast<float>(*dt_max);

  MR_RETURN_IF_ERROR(bind_norms(context, place, space));
  const int64_t channels = space.num_channels, of_states = 2 * space.num_groups * space.num_states;
  const int64_t convolved = selects ? channels : channels + of_states,
                rows = selects ? 2 * channels : channels + convolved + space.num_heads;
  MR_ASSIGN_OR_RETURN(space.in, bind_whole(context, place, "in", rows,
                                           selects ? "2 * num_channels" : "2 * num_channels + 2 * num_groups * num_states + num_heads",
                                           hidden, "hidden_size"));
  space.x_column = selects ? 0 : channels;
  space.gate_column = selects ? channels : 0;
  space.dt_column = channels + convolved;
  MR_ASSIGN_OR_RETURN(space.convolution,
                      bind_kernel(context, place, convolved, selects ? "num_channels" : "num_channels + 2 * num_groups * num_states"));
  if (selects) MR_RETURN_IF_ERROR(bind_selection(context, place, space));
  MR_RETURN_IF_ERROR(bind_dynamics(context, place, space));
  MR_RETURN_IF_ERROR(bind_gated_norm(context, place, space));
  MR_ASSIGN_OR_RETURN(space.out, bind_whole(context, place, "out", hidden, "hidden_size", channels, "num_channels"));
  return space;
}

}  // namespace

Result<bool> bind_state(const BindContext& context, const BindWords& layer, const BindPlace& place, DecoderLayer& bound) {
  for (const std::string_view word : {"convolution", "state_space"}) {
    if (layer.find(word) == nullptr) continue;
    const BindPlace own{layer.object(word), place.scopes, fmt::format("{}.{}", place.role, word), place.transposed};
    MR_ASSIGN_OR_RETURN(const bool applies, own.words.flag("when", "true"));
    if (!applies) continue;
    if (word == "convolution") {
      MR_ASSIGN_OR_RETURN(bound.convolution, bind_convolution(context, own));
    } else {
      MR_ASSIGN_OR_RETURN(bound.state_space, bind_space(context, own));
    }
    if (!bound.parallel_residual) return true;
    return Status::unsupported(
        fmt::format("{}: \"parallel_residual\" beside \"{}\" is not supported", context.config.where(layer.place("")), word));
  }
  if (layer.find("attention") != nullptr) return false;
  return Status::invalid_argument(
      fmt::format("{}: neither \"convolution\" nor \"state_space\" applies to layer {}, and there is no \"attention\"",
                  context.config.where(layer.place("")), layer.layer().value_or(0)));
}

}  // namespace millrace
