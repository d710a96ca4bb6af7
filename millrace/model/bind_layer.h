#pragma once

#include "millrace/model/bind_parts.h"

namespace millrace {

// A decoder layer, and how many positions its rope scaling reaches (max_positions of the context where it has none).
struct BoundLayer {
  DecoderLayer layer;
  int64_t max_positions = 0;
};

// Resolves one object of the family's "layers" for layer `layer`. `place` names the object: "layers[0]".
Result<BoundLayer> bind_layer(const BindContext& context, const json::object& words, std::string place, int64_t layer);

}  // namespace millrace
