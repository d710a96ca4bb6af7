#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/formats/checkpoint.h"
#include "millrace/tensor/grouped_weights.h"

namespace millrace {

// A matrix that a quantizer stored as several tensors.
struct EncodedMatrix {
  struct Part {
    const SourceTensor* tensor;
    std::string_view meaning;  // "codes", "scales", ...
  };
  std::vector<Part> parts;  // the first holds the codes
  std::shared_ptr<const GroupedWeights> weights;
};

// How the quantizer that wrote a Hugging Face directory stores matrices: config.json's quantization_config says by which method, and the
// tensors that a module has say whether and how it is quantized (so that exceptions such as "ignore" or "modules_to_not_convert" need no
// reading). The layouts are those of the libraries that write them; each is described in its *_encoding.cc.
class WeightEncoding {
 public:
  virtual ~WeightEncoding() = default;

  // Null for a checkpoint without quantization_config. Unsupported or invalid: a method, version or width that is not read, by its name.
  static Result<std::shared_ptr<const WeightEncoding>> read(const Checkpoint& checkpoint);

  // The [rows, k] matrix of `module` ("model.layers.0.self_attn.q_proj"), absent where it is stored plainly. Errors name the tensor that is
  // missing, or has another type or shape than expected, and both.
  virtual Result<std::optional<EncodedMatrix>> find(const Checkpoint& checkpoint, const std::string& module, int64_t rows,
                                                    int64_t k) const = 0;

  // The `count` matrices [rows, k] that lie in tensors of all of them, named after `module` ("model.layers.0.mlp.experts.down_proj"); empty
  // where there are none.
  virtual Result<std::vector<EncodedMatrix>> find_stack(const Checkpoint&, const std::string& /*module*/, int64_t /*count*/,
                                                        int64_t /*rows*/, int64_t /*k*/) const {
    return std::vector<EncodedMatrix>();
  }

  // Why a tensor that belongs to no matrix is not needed; empty if it should not be there.
  static std::string_view reason_unused(std::string_view tensor_name);
};

}  // namespace millrace
