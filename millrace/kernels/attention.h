#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "millrace/base/cpu_features.h"

namespace millrace {

// Keys and values live in blocks of 32 tokens. Of one layer, a block holds for every kv head, one after the other:
//   K  [ceil(head_dim / g)][32 tokens][g]     so that 32 scores come out as lanes, without horizontal sums
//   V  [32 / g][head_dim padded to 16][g]     so that the output's dimensions are lanes
//   int8 and fp8 only: K scales [32] f32, V scales [32] f32 (one per token and head, max|x| / 127 and max|x| / 448)
// with g = 1 (f32), 2 (bf16), 4 (int8, fp8). Rounded when written (docs/design.md D5).
//
// fp8 is E4M3 of arXiv:2209.05433 (448 is its largest number) without subnormal numbers: what is below 2^-6, a 28672nd of a head's largest
// value, is rounded to 0 or 2^-6. To f32 its bits are then only moved.
//
// int4 is one of 16 even steps from the smallest to the largest value of the head: centre + scale * (code - 7.5).
//   K  [ceil(head_dim / 8)][32 tokens] dwords, whose four-bit codes are, from the lowest, those of dimensions 0 1 4 5 2 3 6 7
//   V  [8][half of head_dim padded to 32][4] bytes, of four tokens: the low half is dimension d's code, the high half that of d and
//      half the padded size. No byte belongs to two tokens, which two threads may write at a time.
//   K parameters [32], V parameters [32]: of each token the scale, then the centre, in bf16
// 72 bytes for a token and head of 64 dimensions, where bf16 takes 256.
enum class KvFormat : uint8_t { kF32, kBf16, kInt8, kFp8E4M3, kInt4 };
inline constexpr int64_t kBlockTokens = 32;
// Attention reduces keys in segments of this many positions, each from scratch, merged in ascending order: the result is the same
// for decode, prefill, any chunking and any split over threads.
inline constexpr int64_t kSegmentTokens = 512;

struct KvGeometry {
  KvFormat format = KvFormat::kBf16;
  int64_t num_kv_heads = 0, head_dim = 0;
  int64_t head_bytes() const;  // one kv head of one block of one layer, multiple of 64
  int64_t layer_bytes() const { return num_kv_heads * head_bytes(); }
};

// The blocks of one layer: block b starts at base + b * block_stride.
struct KvView {
  std::byte* base = nullptr;
  int64_t block_stride = 0;
  KvGeometry geometry;
};

// Stores one token's keys and values of one kv head at offset `token` (0..31) of block `block`.
//   k, v   [head_dim] f32
void kv_write(Isa isa, const KvView& kv, int64_t block, int64_t token, int64_t kv_head, const float* k, const float* v);

// One sequence's attention in one step: query rows at consecutive positions over all keys stored so far.
struct AttentionArgs {
  const float* q = nullptr;  // [num_rows, q_stride]; head h of a row at h * head_dim
  int64_t q_stride = 0;
  float* out = nullptr;  // [num_rows, out_stride]; the same arrangement
  int64_t out_stride = 0;
  int64_t num_rows = 0, num_heads = 0;
  int64_t first_position = 0;  // of row 0; row i sees keys 0 .. first_position + i (less what the window masks)
  // Of a text that is read in both directions, its tokens, all stored by now: every row sees keys 0 .. *num_keys - 1, those after it too,
  // less what the window masks on either side. Absent: rows look back only.
  std::optional<int64_t> num_keys;
  std::span<const int32_t> blocks;  // block table; entries before the window may be -1
  float scale = 1.0f;
  std::optional<float> softcap;
  std::optional<int64_t> window;        // keys at distance >= window are masked
  const float* alibi_slopes = nullptr;  // [num_heads] score -= slope * distance
  // [num_heads, 2 * relative_reach + 1] score += bias[head, key position - row's position + relative_reach], the place clamped to the row's
  // ends: what a network learned for each distance (T5, arXiv:1910.10683), further keys counting as the furthest.
  const float* relative_bias = nullptr;
  int64_t relative_reach = 0;
  const float* sinks = nullptr;  // [num_heads] the score of a key without a value, which every row sees: it takes its share of the softmax
  bool of_prompt = true;         // the rows are a prompt's: AMX computes those in another way, which pays for many rows (docs/design.md D4)
};

// out[i, h, :] = sum over keys j of softmax_j(mask(cap(scale * q[i, h] . k[j]) + alibi + bias)) v[j], online softmax, for rows
// [row_begin, row_end) and the heads of `kv_head`'s group. Sinks as in gpt-oss, after StreamingLLM, arXiv:2309.17453. Row i's result does
// not depend on the other rows of the call. f32, bf16 and fp8 keys and values are multiplied in f32. int8 and int4 ones are multiplied as
// whole numbers: q is rounded to 32000 steps of its largest value, and softmax_j times the value's scale to 32000 steps of its largest in a
// segment. Both errors are below a hundredth of what rounding keys and values to int8 costs. `scratch`: attention_scratch_floats(...)
// floats.
int64_t attention_scratch_floats(const KvGeometry& geometry, int64_t num_heads);
void attention(Isa isa, const KvView& kv, const AttentionArgs& args, int64_t row_begin, int64_t row_end, int64_t kv_head, float* scratch);

// The last key that row `row` may see.
inline int64_t attention_last_key(const AttentionArgs& args, int64_t row) {
  const int64_t position = args.first_position + row;
  if (!args.num_keys.has_value()) return position;
  const int64_t last = *args.num_keys - 1;
  return args.window.has_value() && position + *args.window - 1 < last ? position + *args.window - 1 : last;
}

// The same split over segments, for a few rows over long contexts: attention_partial computes segment `segment` of one row and one kv
// head's group into partial[group_size][head_dim + 2] (accumulator, maximum in units of log2, sum); attention_merge merges partials
// 0..num_segments-1 in ascending order into out. attention() computes exactly this.
int64_t attention_num_segments(const AttentionArgs& args, int64_t row);
void attention_partial(Isa isa, const KvView& kv, const AttentionArgs& args, int64_t row, int64_t kv_head, int64_t segment, float* partial,
                       float* scratch);
void attention_merge(Isa isa, const KvView& kv, const AttentionArgs& args, int64_t row, int64_t kv_head, const float* partials,
                     int64_t num_segments);

}  // namespace millrace
