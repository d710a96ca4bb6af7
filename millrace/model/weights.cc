#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>

#include "millrace/base/aligned_buffer.h"
#include "millrace/base/round_up.h"
#include "millrace/kernels/grouped_panels.h"
#include "millrace/model/program.h"
#include "millrace/tensor/dequantize.h"

namespace millrace {
namespace {

// 16 rows of a tensor stored [k, rows] -> [16, k], for plain types (GPT-2's Conv1D), or of a stack of such matrices.
void transpose_rows(const SourceTensor& tensor, std::span<const int32_t> rows, int64_t k, std::byte* out) {
  const int64_t in_stack = tensor.shape.back(), size = dtype_info(tensor.dtype).block_bytes;  // rows of one matrix
  for (int64_t c = 0; c < k; ++c) {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const int64_t matrix = rows[r] / in_stack, row = rows[r] % in_stack;
      std::memcpy(out + (static_cast<int64_t>(r) * k + c) * size, tensor.data.data() + ((matrix * k + c) * in_stack + row) * size,
                  static_cast<std::size_t>(size));
    }
  }
}

// The same where the stored lines are blocks, which go along the wrong dimension (DeepSeek's attn_k_b in GGUF): as f32, which holds what
// every block stands for.
bool is_unpacked(const MatrixSource& source) { return source.transposed && dtype_info(source.tensor->dtype).block_elements > 1; }

void transpose_blocks(const SourceTensor& tensor, std::span<const int32_t> rows, int64_t k, std::byte* out) {
  const int64_t in_stack = tensor.shape.back(), line_bytes = *row_bytes(tensor.dtype, in_stack);
  std::vector<float> line(static_cast<std::size_t>(in_stack));
  for (int64_t c = 0; c < k; ++c) {
    int64_t of = -1;  // the matrix whose line that is
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const int64_t matrix = rows[r] / in_stack, row = rows[r] % in_stack;
      if (matrix != of) dequantize_row(tensor.dtype, tensor.data.data() + (matrix * k + c) * line_bytes, in_stack, line.data());
      of = matrix;
      std::memcpy(out + (static_cast<int64_t>(r) * k + c) * static_cast<int64_t>(sizeof(float)), &line[static_cast<std::size_t>(row)],
                  sizeof(float));
    }
  }
}

Result<PackedMatrix> plan_matrix(const MatrixSource& source) {
  const SourceTensor& tensor = *source.tensor;
  if (source.grouped) {
    auto planned = PackedMatrix::plan(*source.grouped, source.row_map);
    if (!planned.is_ok()) return planned.status().with_context(fmt::format("\"{}\"", tensor.name));
    return planned;
  }
  if (is_unpacked(source)) {
    if (!can_dequantize(tensor.dtype) || !row_bytes(tensor.dtype, tensor.shape.back())) {
      return Status::unsupported(fmt::format("\"{}\" is {} and stored transposed, in lines of {} values: they cannot be read as numbers",
                                             tensor.name, dtype_name(tensor.dtype), tensor.shape.back()));
    }
    return PackedMatrix::plan(DType::kF32, source.rows(), source.k);
  }
  if (!row_bytes(tensor.dtype, source.k)) {
    return Status::unsupported(
        fmt::format("\"{}\": rows of {} values are no whole number of {} blocks", tensor.name, source.k, dtype_name(tensor.dtype)));
  }
  auto planned = PackedMatrix::plan(tensor.dtype, source.rows(), source.k);
  if (!planned.is_ok()) return planned.status().with_context(fmt::format("\"{}\"", tensor.name));
  return planned;
}

// Packs panels [begin, end) of a planned matrix to `panels`, where its first one lies.
Status pack_panels(const PackedMatrix& matrix, const MatrixSource& source, int64_t begin, int64_t end, std::byte* panels) {
  const SourceTensor& tensor = *source.tensor;
  const std::span<const int32_t> row_map(source.row_map);
  std::optional<GroupedRow> buffer;
  if (source.grouped) buffer.emplace(*source.grouped);
  const DType dtype = is_unpacked(source) ? DType::kF32 : tensor.dtype;
  const int64_t bytes = source.grouped ? 0 : *row_bytes(dtype, source.k);
  std::vector<std::byte> transposed(static_cast<std::size_t>(source.transposed ? kPanelRows * bytes : 0));
  for (int64_t panel = begin; panel < end; ++panel) {
    const auto first = static_cast<std::size_t>(panel * kPanelRows);
    const std::span<const int32_t> rows = row_map.subspan(first, std::min(static_cast<std::size_t>(kPanelRows), row_map.size() - first));
    std::byte* to = panels + panel * matrix.panel_bytes();
    if (source.grouped) {
      const Status status = matrix.pack_panel(*source.grouped, rows, *buffer, to);
      if (!status.is_ok()) return status.with_context(fmt::format("\"{}\"", tensor.name));
      continue;
    }
    if (is_unpacked(source)) {
      transpose_blocks(tensor, rows, source.k, transposed.data());
    } else if (source.transposed) {
      transpose_rows(tensor, rows, source.k, transposed.data());
    }
    const std::byte* stored[kPanelRows];
    for (std::size_t i = 0; i < rows.size(); ++i)
      stored[i] = source.transposed ? transposed.data() + static_cast<int64_t>(i) * bytes : tensor.data.data() + rows[i] * bytes;
    matrix.pack_panel(dtype, {stored, rows.size()}, to);
  }
  return Status::ok();
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

// The error of the first matrix that has one, whichever thread found it when.
class FirstError {
 public:
  void add(int64_t index, Status status) {
    const std::lock_guard lock(mutex_);
    if (!status_.is_ok() && index_ <= index) return;
    index_ = index;
    status_ = std::move(status);
  }
  const Status& status() const { return status_; }

 private:
  std::mutex mutex_;
  int64_t index_ = 0;
  Status status_;
};

constexpr int64_t kPanelsAlignment = 64;

}  // namespace

Result<Weights> Weights::plan(const Network& network, ThreadPool& pool) {
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
  const auto add_attention = [&](const AttentionLayer& attention) {
    for (const Linear* linear : {&attention.q, &attention.k, &attention.v, &attention.o}) {
      if (linear->weight.tensor != nullptr) add(*linear);
    }
  };
  const auto add_layer = [&](const DecoderLayer& layer) {
    add_attention(layer.attention);
    if (layer.cross) add_attention(*layer.cross);
    if (const auto& latent = layer.attention.latent) {
      if (latent->q_down) add(*latent->q_down);
      for (const Linear* linear : {&latent->kv_down, &latent->k_rope, &latent->k_up, &latent->v_up}) add(*linear);
    }
    for_each_state_linear(layer, add);
    add_mlp(layer.mlp);
    if (!layer.mlp.mixture) return;
    const Mixture& mixture = *layer.mlp.mixture;
    add(mixture.router);
    for (const Expert& expert : mixture.experts) add_mlp(expert);
    if (mixture.shared) add_mlp(*mixture.shared);
    if (mixture.shared_gate) add(*mixture.shared_gate);
  };
  if (network.encoder) std::for_each(network.encoder->layers.begin(), network.encoder->layers.end(), add_layer);
  std::for_each(network.layers.begin(), network.layers.end(), add_layer);
  if (network.pooled) {
    for (const DenseLayer& layer : network.pooled->layers) add(layer.linear);
  } else {
    add(network.head);
  }
  if (network.tied_head) weights.embedding_id_ = weights.id_of(network.head);
  const auto& embedding = *network.embedding.tensor;
  if (!network.tied_head && !can_dequantize(embedding.dtype)) {
    return Status::unsupported(fmt::format("\"{}\": cannot read {}", embedding.name, dtype_name(embedding.dtype)));
  }

  weights.matrices_.resize(weights.linears_.size());
  FirstError error;
  pool.run_chunks(static_cast<int64_t>(weights.linears_.size()), [&](int64_t index, int) {
    const auto i = static_cast<std::size_t>(index);
    auto planned = plan_matrix(weights.linears_[i]->weight);
    if (planned.is_ok()) {
      weights.matrices_[i] = std::move(planned).value();
    } else {
      error.add(index, planned.status());
    }
  });
  MR_RETURN_IF_ERROR(error.status());
  weights.offsets_.reserve(weights.matrices_.size());
  for (const PackedMatrix& matrix : weights.matrices_) {
    weights.offsets_.push_back(weights.panels_bytes_);
    if (__builtin_add_overflow(weights.panels_bytes_, round_up(matrix.bytes(), kPanelsAlignment), &weights.panels_bytes_)) {
      return Status::invalid_argument("the model's weights do not fit in any memory");
    }
  }
  return weights;
}

// One matrix after another, each by all threads, so that the files are read in order and little of them is in memory at a time.
Status Weights::pack_planned(const Checkpoint& checkpoint, ThreadPool& pool) {
  auto memory = AlignedBuffer::allocate(static_cast<std::size_t>(panels_bytes_));
  if (!memory.is_ok()) return memory.status().with_context("packed weights");
  const auto owner = std::make_shared<AlignedBuffer>(std::move(memory).value());
  std::byte* panels = owner->data();
  const auto source_of = [&](int64_t index) -> const MatrixSource& { return linears_[static_cast<std::size_t>(index)]->weight; };
  const int64_t count = static_cast<int64_t>(matrices_.size());
  int64_t panels_per_chunk = 1;
  FirstError error;
  pool.run_stages(
      count,
      [&](int64_t index) -> int64_t {
        if (index == 0) checkpoint.will_need(part_of(source_of(0)));
        if (index + 1 < count) checkpoint.will_need(part_of(source_of(index + 1)));
        // What was read has served. A tensor whose rows are dealt out to several matrices is dropped after the last of them.
        if (index > 0) {
          const MatrixSource& before = source_of(index - 1);
          if (before.tensor != source_of(index).tensor || before.tensor->shape.size() > 2) checkpoint.drop_pages(part_of(before));
        }
        const PackedMatrix& matrix = matrices_[static_cast<std::size_t>(index)];
        constexpr int64_t kChunkBytes = int64_t{256} << 10;
        panels_per_chunk = std::max(matrix.num_panels() / ThreadPool::kChunksMax + 1, kChunkBytes / matrix.panel_bytes());
        return (matrix.num_panels() + panels_per_chunk - 1) / panels_per_chunk;
      },
      [&](int64_t index, int64_t chunk, int) {
        const PackedMatrix& matrix = matrices_[static_cast<std::size_t>(index)];
        const int64_t begin = chunk * panels_per_chunk, end = std::min(begin + panels_per_chunk, matrix.num_panels());
        if (const Status status = pack_panels(matrix, source_of(index), begin, end, panels + offsets_[static_cast<std::size_t>(index)]);
            !status.is_ok())
          error.add(index, status);
      });
  checkpoint.drop_all_pages();
  MR_RETURN_IF_ERROR(error.status());
  set_panels(panels, owner);
  return Status::ok();
}

Result<Weights> Weights::pack(const Network& network, const Checkpoint& checkpoint, ThreadPool& pool) {
  MR_ASSIGN_OR_RETURN(Weights weights, plan(network, pool));
  MR_RETURN_IF_ERROR(weights.pack_planned(checkpoint, pool));
  return weights;
}

void Weights::set_panels(const std::byte* panels, const std::shared_ptr<const void>& owner) {
  for (std::size_t i = 0; i < matrices_.size(); ++i) matrices_[i] = matrices_[i].with_panels(panels + offsets_[i], owner);
  panels_ = panels;
}

WeightId Weights::id_of(const Linear& linear) const {
  const auto found = ids_.find(&linear);
  MR_CHECK(found != ids_.end(), "a linear layer that was not packed");
  return found->second;
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
