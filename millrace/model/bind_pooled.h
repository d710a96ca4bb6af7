#pragma once

#include "millrace/model/bind_parts.h"

namespace millrace {

// Resolves what an encoder gives for a text: classes, where the family has "classes" and their "when" holds; else an embedding, as the
// modules beside the weights say (sentence-transformers' modules.json), or as the family's "pooled" does where there are none.
Result<PooledHead> bind_pooled(const BindContext& context, const BindPlace& root);

}  // namespace millrace
