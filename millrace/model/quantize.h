#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/formats/checkpoint.h"
#include "millrace/model/network.h"

// Load-time quantization: a model whose weights are stored as F32, F16 or BF16 is computed with smaller codes, made by rounding to the
// nearest (tensor/round_to_nearest.h) while its matrices are packed, a row at a time. Nothing else is ever in memory than the packed
// weights, one row a thread, and the pages of the file that are being read.
namespace millrace {

enum class QuantizationType { kInt8, kInt4, kNf4, kFp8 };

struct QuantizationOptions {
  QuantizationType type = QuantizationType::kInt8;
  // Consecutive weights of a row that share a scale: 32 or a power of two above it, or -1: all of a row. Absent: the type's own, which is
  // 64 of nf4 as in bitsandbytes, 128 of int4, and rows of int8 and fp8.
  std::optional<int64_t> group_size;
  bool symmetric = false;  // int4 without zero points. The other types never have any
  // Modules that stay as they are stored: names of tensors or parts of them between dots ("lm_head", "mlp.down_proj", "model.layers.0"), in
  // which
  // "*" stands for any characters.
  std::vector<std::string> exclude;
};

std::string_view quantization_name(QuantizationType type);  // "int8"
Result<QuantizationType> parse_quantization(std::string_view name);

// Makes the network's matrices quantized ones: those of attention, of mlps and of experts. The head, with which an embedding may be shared,
// takes 8 bits where the others take 4, since its errors reach the logits directly. Never: routers, gates of shared experts, pooled layers
// and classes, embeddings that are not the head, learned positions, norms and biases. A matrix whose rows are no multiple of 32 stays as it
// is stored. Reads no weight. Gives what was done, in words.
//
// Unsupported: the model is already quantized, naming its format and a tensor. Invalid: a group size that is none, a pattern without a
// match.
Result<std::string> quantize_network(const Checkpoint& checkpoint, const QuantizationOptions& options, Network& network);

}  // namespace millrace
