#include "millrace/model/quantize.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "millrace/kernels/panel_layout.h"
#include "millrace/model/name_pattern.h"
#include "millrace/tensor/dequantize.h"
#include "millrace/tensor/round_to_nearest.h"
#include "millrace/tensor/rounded_weights.h"

namespace millrace {
namespace {

constexpr std::string_view kNames[] = {"int8", "int4", "nf4", "fp8"};

CodeKind kind_of(QuantizationType type) {
  switch (type) {
    case QuantizationType::kInt8: return CodeKind::kInt8;
    case QuantizationType::kInt4: return CodeKind::kInt4;
    case QuantizationType::kNf4: return CodeKind::kCodebook4;
    case QuantizationType::kFp8: return CodeKind::kF8E4M3;
  }
  return CodeKind::kInt8;
}

constexpr int64_t kWholeRows = -1;

int64_t default_group_size(QuantizationType type) {
  switch (type) {
    case QuantizationType::kInt4: return 128;
    case QuantizationType::kNf4: return 64;
    case QuantizationType::kInt8:
    case QuantizationType::kFp8: break;
  }
  return kWholeRows;
}

// How one kind of the network's matrices is quantized.
struct Scheme {
  QuantizationType type;
  int64_t group_size;  // kWholeRows, or of k
  bool symmetric;

  std::string words() const {
    const std::string scales = group_size == kWholeRows ? "a scale a row" : fmt::format("groups of {}", group_size);
    return fmt::format("{}, {}{}", quantization_name(type), scales, symmetric ? "" : " with zero points");
  }
};

// A plain matrix, whose rows are rounded to codes when they are read.
class RoundedRows : public RoundedWeights {
 public:
  RoundedRows(const MatrixSource& source, const Scheme& scheme) : tensor_(*source.tensor), transposed_(source.transposed) {
    const auto& shape = tensor_.shape;
    kind = kind_of(scheme.type);
    k = source.k;
    matrix_rows_ = transposed_ ? shape.back() : shape[shape.size() - 2];
    rows = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()) / k;
    group_size = scheme.group_size == kWholeRows ? k : std::min(scheme.group_size, k);
    // A scale a row costs nothing. Those of groups are kept in the type of the weights, whose range they have and whose precision they
    // need.
    scale_dtype = group_size == k ? DType::kF32 : tensor_.dtype;
    symmetric = scheme.symmetric;
    if (kind == CodeKind::kCodebook4) codebook = kNormalFloat4;
    how_ = {kind, scheme.symmetric, group_size, scale_dtype};
    const int64_t scale_bytes = scale_dtype == DType::kF32 ? 4 : 2;
    stored_bytes = rows * (k * code_bits(kind) / 8 + num_groups() * (scale_bytes + (scheme.symmetric ? 0 : 1)));
    if (shape.size() > 2 && !source.row_map.empty()) {
      const auto [first, last] = std::minmax_element(source.row_map.begin(), source.row_map.end());
      const int64_t row_size = k * dtype_info(tensor_.dtype).block_bytes;
      own_bytes =
          tensor_.data.subspan(static_cast<std::size_t>(*first * row_size), static_cast<std::size_t>((*last - *first + 1) * row_size));
    }
  }

  Status read_row(int64_t row, uint8_t* codes, float* scales, uint8_t* zero_points) const override {
    std::vector<float> numbers(static_cast<std::size_t>(k));
    read_plain(row, numbers.data());
    const auto wrong = round_to_nearest(how_, numbers.data(), k, codes, scales, zero_points);
    if (!wrong) return Status::ok();
    std::string place = fmt::format("{}, {}", transposed_ ? *wrong : row % matrix_rows_, transposed_ ? row % matrix_rows_ : *wrong);
    if (tensor_.shape.size() > 2) place = fmt::format("{}, {}", row / matrix_rows_, place);
    return Status::invalid_argument(
        fmt::format("[{}] is {}: only finite weights can be quantized", place, numbers[static_cast<std::size_t>(*wrong)]));
  }

  // One by one, for those who do not pack. A row that cannot be quantized is zeros.
  void read_codes(int64_t row, uint8_t* codes) const override { std::copy_n(read(row).codes.begin(), k, codes); }
  void read_scales(int64_t row, float* scales) const override { std::copy_n(read(row).scales.begin(), num_groups(), scales); }
  void read_zero_points(int64_t row, uint8_t* zero_points) const override {
    std::copy_n(read(row).zero_points.begin(), num_groups(), zero_points);
  }

 private:
  struct Row {
    std::vector<uint8_t> codes, zero_points;
    std::vector<float> scales;
  };

  Row read(int64_t row) const {
    const auto groups = static_cast<std::size_t>(num_groups());
    Row read{std::vector<uint8_t>(static_cast<std::size_t>(k)), std::vector<uint8_t>(groups), std::vector<float>(groups)};
    if (!read_row(row, read.codes.data(), read.scales.data(), read.zero_points.data()).is_ok())
      std::fill(read.scales.begin(), read.scales.end(), 0.0f);
    return read;
  }

  void read_plain(int64_t row, float* numbers) const {
    const int64_t size = dtype_info(tensor_.dtype).block_bytes;
    const std::byte* data = tensor_.data.data();
    if (!transposed_) return dequantize_row(tensor_.dtype, data + row * k * size, k, numbers);
    std::vector<std::byte> column(static_cast<std::size_t>(k * size));
    const std::byte* from = data + (row / matrix_rows_ * k * matrix_rows_ + row % matrix_rows_) * size;
    for (int64_t i = 0; i < k; ++i) std::memcpy(column.data() + i * size, from + i * matrix_rows_ * size, static_cast<std::size_t>(size));
    dequantize_row(tensor_.dtype, column.data(), k, numbers);
  }

  const SourceTensor& tensor_;
  bool transposed_;
  int64_t matrix_rows_;  // of one matrix of a stack
  RoundToNearest how_;
};

// The names by which a pattern may mean a matrix. A head is "lm_head" too, whatever the checkpoint calls it and if it is the embedding.
struct Excluded {
  const std::vector<std::string>& patterns;
  std::vector<bool> matched = std::vector<bool>(patterns.size());

  bool has(std::string_view name) {
    bool any = false;
    for (std::size_t i = 0; i < patterns.size(); ++i) {
      if (!matches_pattern(fmt::format("*.{}.*", patterns[i]), fmt::format(".{}.", name))) continue;
      matched[i] = any = true;
    }
    return any;
  }
};

template <class Visit>
void for_each_linear(Network& network, const Visit& visit) {
  const auto visit_mlp = [&](auto& mlp) {
    for (Linear* linear : {&mlp.gate, &mlp.up, &mlp.down}) {
      if (linear->weight.tensor != nullptr) visit(*linear);
    }
  };
  const auto visit_attention = [&](AttentionLayer& attention) {
    for (Linear* linear : {&attention.q, &attention.k, &attention.v, &attention.o}) {
      if (linear->weight.tensor != nullptr) visit(*linear);
    }
  };
  if (network.encoder) for_each_linear(*network.encoder, visit);
  for (DecoderLayer& layer : network.layers) {
    AttentionLayer& attention = layer.attention;
    visit_attention(attention);
    if (layer.cross) visit_attention(*layer.cross);
    if (auto& latent = attention.latent) {
      if (latent->q_down) visit(*latent->q_down);
      for (Linear* linear : {&latent->kv_down, &latent->k_rope, &latent->k_up, &latent->v_up}) visit(*linear);
    }
    // The selection of a state space is small, and its errors add up in the state: it stays as it is, as routers do.
    if (layer.convolution) visit(layer.convolution->in), visit(layer.convolution->out);
    if (layer.state_space) visit(layer.state_space->in), visit(layer.state_space->out);
    visit_mlp(layer.mlp);
    if (!layer.mlp.mixture) continue;
    for (Expert& expert : layer.mlp.mixture->experts) visit_mlp(expert);
    if (layer.mlp.mixture->shared) visit_mlp(*layer.mlp.mixture->shared);
  }
}

bool is_plain(DType dtype) { return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBf16; }

Status check_plain(const Checkpoint& checkpoint, const MatrixSource& source) {
  if (source.grouped == nullptr && is_plain(source.tensor->dtype)) return Status::ok();
  std::string format = source.grouped == nullptr ? std::string(dtype_name(source.tensor->dtype)) : "codes of a quantizer";
  const json::value* config = checkpoint.config().if_contains("quantization_config");
  if (source.grouped != nullptr && config != nullptr && config->is_object()) {
    const json::value* method = config->get_object().if_contains("quant_method");
    if (method != nullptr && method->is_string()) format = std::string_view(method->get_string());
  }
  return Status::unsupported(
      fmt::format("{}: is already quantized: \"{}\" is {}; only weights stored as F32, F16 or BF16 can be quantized while loading",
                  checkpoint.path(), source.tensor->name, format));
}

Result<int64_t> group_size_of(const QuantizationOptions& options) {
  const int64_t size = options.group_size.value_or(default_group_size(options.type));
  if (size == kWholeRows || (size >= kBlockK && std::has_single_bit(static_cast<uint64_t>(size)))) return size;
  return Status::invalid_argument(
      fmt::format("quantization group size: {}, expected {} or a power of two above it, or -1 for a scale a row", size, kBlockK));
}

}  // namespace

std::string_view quantization_name(QuantizationType type) { return kNames[static_cast<std::size_t>(type)]; }

Result<QuantizationType> parse_quantization(std::string_view name) {
  const auto found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found != std::end(kNames)) return static_cast<QuantizationType>(found - std::begin(kNames));
  return Status::invalid_argument(fmt::format("unknown quantization \"{}\"; expected {}", name, fmt::join(kNames, ", ")));
}

Result<std::string> quantize_network(const Checkpoint& checkpoint, const QuantizationOptions& options, Network& network) {
  MR_ASSIGN_OR_RETURN(const int64_t group_size, group_size_of(options));
  const bool symmetric = options.type != QuantizationType::kInt4 || options.symmetric;
  const Scheme scheme{options.type, group_size, symmetric};
  const bool four_bits = code_bits(kind_of(options.type)) == 4;
  const Scheme head_scheme = four_bits ? Scheme{QuantizationType::kInt8, kWholeRows, true} : scheme;

  Status status;
  for_each_linear(network, [&](Linear& linear) {
    if (status.is_ok()) status = check_plain(checkpoint, linear.weight);
  });
  MR_RETURN_IF_ERROR(status);
  const bool has_head = !network.is_encoder();
  if (has_head) MR_RETURN_IF_ERROR(check_plain(checkpoint, network.head.weight));

  Excluded excluded{options.exclude};
  int64_t num_quantized = 0, num_excluded = 0, num_ragged = 0;
  const auto quantize = [&](Linear& linear, const Scheme& how, bool is_excluded) {
    MatrixSource& source = linear.weight;
    if (is_excluded) {
      ++num_excluded;
    } else if (source.k % kBlockK != 0 || source.tensor->shape.size() < 2) {
      ++num_ragged;
    } else {
      source.grouped = std::make_shared<const RoundedRows>(source, how);
      ++num_quantized;
    }
  };
  for_each_linear(network, [&](Linear& linear) { quantize(linear, scheme, excluded.has(linear.weight.tensor->name)); });
  if (has_head) {
    const bool by_name = excluded.has(network.head.weight.tensor->name), by_role = excluded.has("lm_head");
    quantize(network.head, head_scheme, by_name || by_role);
  }
  for (std::size_t i = 0; i < options.exclude.size(); ++i) {
    if (excluded.matched[i]) continue;
    return Status::invalid_argument(
        fmt::format("{}: quantization exclude \"{}\" names no matrix that would be quantized; `inspect --explain` lists their names",
                    checkpoint.path(), options.exclude[i]));
  }
  if (num_quantized == 0 && num_excluded == 0) {
    return Status::unsupported(
        fmt::format("{}: has no matrix that can be quantized: none has rows of a multiple of {} weights", checkpoint.path(), kBlockK));
  }
  std::string words = scheme.words();
  if (has_head && network.head.weight.grouped != nullptr && four_bits) words += fmt::format("; lm_head {}", head_scheme.words());
  if (num_excluded > 0) words += fmt::format("; {} as stored, excluded by {}", num_excluded, fmt::join(options.exclude, ", "));
  if (num_ragged > 0) words += fmt::format("; {} as stored, with rows of no multiple of {}", num_ragged, kBlockK);
  return words;
}

}  // namespace millrace
