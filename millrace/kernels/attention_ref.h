#pragma once

#include <cstdint>

#include "millrace/kernels/attention.h"

// The judge of attention: dense, one key after the other, in double. For tests.
namespace millrace {

// The keys and values of one token as they were rounded when written.
//   k, v   [head_dim]
void kv_read(const KvView& kv, int64_t block, int64_t token, int64_t kv_head, float* k, float* v);

// out [head_dim]: what attention() computes for one row and head.
void attention_ref(const KvView& kv, const AttentionArgs& args, int64_t row, int64_t head, double* out);

}  // namespace millrace
