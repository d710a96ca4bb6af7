#pragma once

#include "millrace/model/bind_parts.h"

namespace millrace {

// A decoder layer, and how many positions its rope scaling reaches (max_positions of the context where it has none).
struct BoundLayer {
  DecoderLayer layer;
  int64_t max_positions = 0;
};

// Resolves one object of the family's "layers", or of its encoder's, for layer `layer`. `place` names the object: "layers[0]";
// `role_prefix` comes before the roles of its tensors: "" or "encoder.".
Result<BoundLayer> bind_layer(const BindContext& context, const json::object& words, std::string place, std::string_view role_prefix,
                              int64_t layer);

}  // namespace millrace
