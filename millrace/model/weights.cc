#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "millrace/model/program.h"
#include "millrace/tensor/dequantize.h"

namespace millrace {
namespace {

// [k, rows] as stored -> [rows, k], for plain types (GPT-2's Conv1D), or one matrix of a stack of them. Quantized types are never stored transposed.
Result<std::vector<std::byte>> transpose(const SourceTensor& tensor, int64_t index) {
  const std::size_t dimensions = tensor.shape.size();
  const int64_t k = tensor.shape[dimensions - 2], rows = tensor.shape[dimensions - 1], size = dtype_info(tensor.dtype).block_bytes;
  if (dtype_info(tensor.dtype).block_elements != 1) {
    return Status::unsupported(fmt::format("\"{}\" is {} and stored transposed; only plain types can be transposed", tensor.name, dtype_name(tensor.dtype)));
  }
  std::vector<std::byte> out(static_cast<std::size_t>(k * rows * size));
  const auto from = tensor.data.subspan(static_cast<std::size_t>(index) * out.size(), out.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < k; ++c) std::memcpy(&out[static_cast<std::size_t>((r * k + c) * size)], &from[static_cast<std::size_t>((c * rows + r) * size)], static_cast<std::size_t>(size));
  }
  return out;
}

Result<PackedMatrix> pack_matrix(const MatrixSource& source) {
  const SourceTensor& tensor = *source.tensor;
  if (source.grouped) {
    auto packed = PackedMatrix::pack(*source.grouped, source.row_map);
    if (!packed.is_ok()) return packed.status().with_context(fmt::format("\"{}\"", tensor.name));
    return packed;
  }
  const auto bytes = row_bytes(tensor.dtype, source.k);
  if (!bytes) return Status::unsupported(fmt::format("\"{}\": rows of {} values are no whole number of {} blocks", tensor.name, source.k, dtype_name(tensor.dtype)));
  std::vector<std::byte> transposed;
  int64_t first_row = 0;
  const std::byte* base = tensor.data.data();
  if (source.transposed) {
    const int64_t in_stack = tensor.shape.back();  // rows of one matrix
    first_row = tensor.shape.size() == 3 ? source.row_map[0] / in_stack * in_stack : 0;
    MR_ASSIGN_OR_RETURN(transposed, transpose(tensor, first_row / in_stack));
    base = transposed.data();
  }
  std::vector<const std::byte*> rows(source.row_map.size());
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = base + (source.row_map[i] - first_row) * *bytes;
  auto packed = PackedMatrix::pack(tensor.dtype, rows, source.k);
  if (!packed.is_ok()) return packed.status().with_context(fmt::format("\"{}\"", tensor.name));
  return packed;
}

// The rows of a stack of matrices (experts) that this one is made of, so that those of the others are not dropped while they are read.
SourceTensor part_of(const MatrixSource& source) {
  SourceTensor part = *source.tensor;
  if (source.grouped) {
    if (!source.grouped->own_bytes.empty()) part.data = source.grouped->own_bytes;
    return part;
  }
  const auto bytes = row_bytes(part.dtype, source.k);
  if (part.shape.size() < 3 || source.row_map.empty() || !bytes) return part;
  const auto [first, last] = std::minmax_element(source.row_map.begin(), source.row_map.end());
  part.data = part.data.subspan(static_cast<std::size_t>(*first * *bytes), static_cast<std::size_t>((*last - *first + 1) * *bytes));
  return part;
}

}  // namespace

Result<Weights> Weights::pack(const Network& network, const Checkpoint& checkpoint, ThreadPool& pool) {
  Weights weights;
  weights.network_ = &network;
  const auto add = [&](const Linear& linear) {
    weights.ids_.emplace(&linear, static_cast<WeightId>(weights.linears_.size()));
    weights.linears_.push_back(&linear);
  };
  const auto add_mlp = [&](const auto& mlp) {
    for (const Linear* linear : {&mlp.gate, &mlp.up, &mlp.down}) {
      if (linear->weight.tensor != nullptr) add(*linear);
    }
  };
  for (const DecoderLayer& layer : network.layers) {
    for (const Linear* linear : {&layer.attention.q, &layer.attention.k, &layer.attention.v, &layer.attention.o}) {
      if (linear->weight.tensor != nullptr) add(*linear);
    }
    if (const auto& latent = layer.attention.latent) {
      if (latent->q_down) add(*latent->q_down);
      for (const Linear* linear : {&latent->kv_down, &latent->k_rope, &latent->k_up, &latent->v_up}) add(*linear);
    }
    add_mlp(layer.mlp);
    if (!layer.mlp.mixture) continue;
    const Mixture& mixture = *layer.mlp.mixture;
    add(mixture.router);
    for (const Expert& expert : mixture.experts) add_mlp(expert);
    if (mixture.shared) add_mlp(*mixture.shared);
    if (mixture.shared_gate) add(*mixture.shared_gate);
  }
  if (network.pooled) {
    for (const DenseLayer& layer : network.pooled->layers) add(layer.linear);
  } else {
    add(network.head);
  }
  weights.matrices_.resize(weights.linears_.size());
  if (network.tied_head) weights.embedding_id_ = weights.id_of(network.head);

  std::mutex mutex;
  Status error;
  pool.run_chunks(static_cast<int64_t>(weights.linears_.size()), [&](int64_t index, int) {
    const auto i = static_cast<std::size_t>(index);
    const MatrixSource& source = weights.linears_[i]->weight;
    auto packed = pack_matrix(source);
    if (packed.is_ok()) {
      weights.matrices_[i] = std::move(packed).value();
      // The file's pages have served; what is needed again (a fused tensor's other parts) is read again.
      if (!source.transposed) checkpoint.drop_pages(part_of(source));
    } else {
      const std::lock_guard lock(mutex);
      if (error.is_ok()) error = packed.status();
    }
  });
  MR_RETURN_IF_ERROR(error);
  const auto& embedding = *network.embedding.tensor;
  if (!network.tied_head && !can_dequantize(embedding.dtype)) {
    return Status::unsupported(fmt::format("\"{}\": cannot read {}", embedding.name, dtype_name(embedding.dtype)));
  }
  return weights;
}

WeightId Weights::id_of(const Linear& linear) const {
  const auto found = ids_.find(&linear);
  MR_CHECK(found != ids_.end(), "a linear layer that was not packed");
  return found->second;
}

int64_t Weights::bytes() const {
  int64_t sum = 0;
  for (const auto& matrix : matrices_) sum += matrix.bytes();
  return sum;
}

namespace {

void read_row(const MatrixSource& source, int64_t row, float* out) {
  const auto bytes = row_bytes(source.tensor->dtype, source.k);
  dequantize_row(source.tensor->dtype, source.tensor->data.data() + source.row_map[static_cast<std::size_t>(row)] * *bytes, source.k, out);
}

}  // namespace

void Weights::embed(int32_t token, float* out) const {
  if (embedding_id_ >= 0) {
    (*this)[embedding_id_].unpack_row(token, out);
  } else {
    read_row(network_->embedding, token, out);
  }
}

void Weights::add_row(const MatrixSource& source, int64_t row, float* out) {
  // Learned tables are small; one row is converted on the stack of the step, a chunk at a time.
  const SourceTensor& tensor = *source.tensor;
  constexpr int64_t kChunk = 256;
  const auto& info = dtype_info(tensor.dtype);
  const std::byte* data = tensor.data.data() + source.row_map[static_cast<std::size_t>(row)] * *row_bytes(tensor.dtype, source.k);
  float values[kChunk];
  for (int64_t begin = 0; begin < source.k; begin += kChunk) {
    const int64_t count = std::min(kChunk, source.k - begin);
    dequantize_row(tensor.dtype, data + begin / info.block_elements * info.block_bytes, count, values);
    for (int64_t i = 0; i < count; ++i) out[begin + i] += values[i];
  }
}

}  // namespace millrace
