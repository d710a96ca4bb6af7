#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/formats/weight_encoding.h"
#include "millrace/model/bind_tensors.h"
#include "millrace/model/bind_words.h"

namespace millrace {

// What a part of the network is resolved with. Everything outlives the binding.
struct BindContext {
  const Family& family;
  const Checkpoint& checkpoint;
  const BindConfig& config;
  BindTensors& tensors;
  int64_t hidden_size = 0;
  int64_t max_positions = 0;                 // of the configuration
  const WeightEncoding* encoding = nullptr;  // of a quantized checkpoint, or null
};

// Where a part stands: the words of its object, the names before its tensors', and who it is in `inspect --explain`.
struct BindPlace {
  BindWords words;
  const json::value* scopes = nullptr;  // null outside of layers
  std::string role;                     // "layers.3.attention", or empty
  bool transposed = false;              // matrices are stored [in, out] unless they say otherwise

  std::optional<int64_t> layer() const { return words.layer(); }
  std::string role_of(std::string_view name) const { return role.empty() ? std::string(name) : role + "." + std::string(name); }
};

// Error "missing tensor ..." with the place that wants it.
Status missing_tensor(const BindContext& context, const BindPlace& place, std::string_view word, const json::value& names,
                      std::string_view suffix);

// How many numbers a norm is over. num_heads > 0: each head has its own weights, stored as [num_heads, size] or as a tensor each, with
// "{head}" in its name.
struct NormSize {
  int64_t size = 0;
  std::string_view size_words;  // for errors
  int64_t num_heads = 0;
  std::string_view num_heads_words;
};

// Absent where the family does not name one or its "when" is false. A norm without a name has no weights.
Result<std::optional<Norm>> bind_norm(const BindContext& context, const BindPlace& place, std::string_view word, const NormSize& size);
inline Result<std::optional<Norm>> bind_norm(const BindContext& context, const BindPlace& place, std::string_view word, int64_t size,
                                             std::string_view size_words) {
  return bind_norm(context, place, word, NormSize{size, size_words, 0, {}});
}

// A stored matrix with its bias, of which one or several row selections become Linears.
struct StoredLinear {
  const SourceTensor* weight = nullptr;
  std::shared_ptr<const GroupedWeights> grouped;
  bool transposed = false;
  int64_t k = 0;
  std::vector<float> bias;  // of the stored rows, or empty
  int64_t first_row = 0;    // of the tensor, where this is one matrix of a stack

  Linear take(std::vector<int32_t> rows) const;
};

// `rows_words` and `k_words` say in errors what the numbers are. `transforms` is what will be done to the rows, for people.
// `bias`: true where there must be one, false where there must not; none: as stored. The component's "bias" word; a matrix may have its
// own.
Result<StoredLinear> bind_linear(const BindContext& context, const BindPlace& place, std::string_view word, int64_t rows,
                                 std::string_view rows_words, int64_t k, std::string_view k_words, std::string_view transforms = "");

// The matrices of `count` experts: a tensor each, with "{expert}" in its name, or one tensor [count, rows, k] (NAME.weight or NAME;
// transposed: [count, k, rows]), with their biases (NAME.bias or NAME_bias), if any. Empty where the checkpoint has none.
Result<std::vector<StoredLinear>> bind_experts(const BindContext& context, const BindPlace& place, std::string_view word, int64_t count,
                                               int64_t rows, std::string_view rows_words, int64_t k, std::string_view k_words,
                                               std::string_view transforms = "");

// A stack [count, rows, k] of matrices (transposed: [count, k, rows]) as one of count * rows rows.
Result<StoredLinear> bind_stack(const BindContext& context, const BindPlace& place, std::string_view word, int64_t count,
                                std::string_view count_words, int64_t rows, std::string_view rows_words, int64_t k,
                                std::string_view k_words, bool transposed);

// The first dimension of the matrix that `word` names, for what no configuration counts. Errors: missing, not from 1 to `most`.
Result<int64_t> stored_rows(const BindContext& context, const BindPlace& place, std::string_view word, int64_t most);

// Whether the checkpoint has the matrix that `word` names.
bool has_linear(const BindContext& context, const BindPlace& place, std::string_view word);

// The numbers of a layer's vector that must be there: NAME, NAME.weight or NAME.bias.
Result<std::vector<float>> bind_own_vector(const BindContext& context, const BindPlace& place, std::string_view word, int64_t size,
                                           std::string_view size_words);

// The numbers of an optional vector tensor, or empty.
Result<std::vector<float>> bind_vector(const BindContext& context, const BindPlace& place, std::string_view word, int64_t size,
                                       std::string_view size_words);

}  // namespace millrace
