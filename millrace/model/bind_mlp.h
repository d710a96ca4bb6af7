#pragma once

#include "millrace/model/bind_parts.h"

namespace millrace {

// Resolves a layer's mlp: of the words "moe" where they apply to the layer, else of "mlp". `layer` are the layer's words; `place` says
// whose tensors they are, its words are not read.
Result<MlpLayer> bind_mlp(const BindContext& context, const BindWords& layer, const BindPlace& place);

// The word "activation", or the expression `otherwise` where it is absent: a name as Hugging Face configurations have it.
Result<Activation> bind_activation(const BindWords& words, std::string_view otherwise);

}  // namespace millrace
