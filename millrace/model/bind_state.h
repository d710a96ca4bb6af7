#pragma once

#include "millrace/model/bind_parts.h"

namespace millrace {

// Resolves what a layer has in place of attention: of the words "convolution" or "state_space" where one of them applies to the layer.
// `layer` are the layer's words; `place` says whose tensors they are, its words are not read. False: the layer has attention.
Result<bool> bind_state(const BindContext& context, const BindWords& layer, const BindPlace& place, DecoderLayer& bound);

}  // namespace millrace
