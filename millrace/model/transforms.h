#pragma once

#include <cstdint>
#include <vector>

#include "millrace/model/network.h"

namespace millrace {

// Row maps of the ways in which checkpoints store matrices: [row of the matrix] -> row of the stored tensor.

std::vector<int32_t> consecutive_rows(int64_t first, int64_t count);

struct AttentionGeometry {
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;  // num_heads is a multiple of num_kv_heads
};

struct QkvRows {
  std::vector<int32_t> q, k, v;  // [num_heads * head_dim], [num_kv_heads * head_dim] twice
};

// One tensor [(num_heads + 2 num_kv_heads) * head_dim, hidden]: all of q, then all of k, then all of v (phi3, gpt2).
QkvRows concatenated_rows(const AttentionGeometry& geometry);

// The same size, one block for each kv head: its query heads, its key, its value (falcon, bloom, GPT-NeoX).
QkvRows per_kv_group_rows(const AttentionGeometry& geometry);

// Of heads stored as [others, last `count`] the rows as [last `count`, others].
std::vector<int32_t> last_rows_first(int64_t num_heads, int64_t head_dim, int64_t count);

// Rows [begin, end) of every block of `size`.
std::vector<int32_t> rows_of_blocks(int64_t num_blocks, int64_t size, int64_t begin, int64_t end);

// Reorders the first `rotary_dim` rows of every head so that rows stored for one rope pairing serve the other. Rotating by (2 i, 2 i + 1)
// what is stored interleaved equals rotating by (i, i + d/2) what this gives; q . k does not change with a common order of their
// dimensions.
std::vector<int32_t> reorder_pairing(const std::vector<int32_t>& rows, int64_t head_dim, int64_t rotary_dim, Rope::Pairing stored,
                                     Rope::Pairing wanted);

// ALiBi's slopes, arXiv:2108.12409: powers of 2^(-max_bias/n) for n heads; between powers of two, as the paper's code interleaves them.
// `max_bias` is the largest exponent: MPT's alibi_bias_max.
std::vector<float> alibi_slopes(int64_t num_heads, double max_bias = 8);

}  // namespace millrace
