// Attention over bf16 keys and values with AMX tiles; other formats are AVX-512's.
//
// A tile of the instruction multiplies bf16 only: queries and probabilities are rounded to it as keys and values are in the cache, and as
// the activations before every matrix of a prompt. Blocks lie in the cache as the instruction wants them.
//
// What a query computes depends on its own position only, as in attention_simd.inc: a row of a tile does not know of the others. Values
// that a query does not see get a probability of zero. Zero times what is not finite is not zero: in a block with such values each set of
// queries multiplies a copy in which those that it does not see are zero.
#define MR_VARIANT amx
#include <immintrin.h>

#include <cstddef>
#include <cstring>

#include "millrace/kernels/attention_variants.h"
#include "millrace/kernels/cpu/vec.h"

namespace millrace::MR_VARIANT {
namespace {

inline constexpr int kMaxQueries = 16;

#include "millrace/kernels/cpu/amx_tiles.inc"
#include "millrace/kernels/cpu/attention_tile.inc"

// The first `count` of 16 values, then zeros.
MR_INLINE F32 load_part(const float* from, int64_t count) {
  return count >= kLanes ? load(from) : _mm512_maskz_loadu_ps(count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1), from);
}
MR_INLINE void store_bf16(F32 first, F32 second, void* to) { _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first)); }

constexpr int64_t kPairBytes = 4, kLineBytes = 64;
constexpr int64_t kTilePairs = 16;                        // of one instruction: 32 dimensions of a key, or 32 keys
constexpr int64_t kPairsBytes = kTilePairs * kPairBytes;  // of one query
constexpr int64_t kRowBytes = kQueryStride * 4;           // from one query to the next
static_assert(kBlockTokens == 2 * kTilePairs && 2 * kLineBytes == kBlockTokens * kPairBytes);

// Queries become bf16, with zeros from head_dim to the next multiple of 32.
void load_queries(QueryTile& tile) {
  const F32 scale = set1(tile.args.softcap.has_value() ? tile.args.scale : tile.args.scale * kLog2E);
  const int64_t padded = (tile.head_dim + 31) / 32 * 32;
  for (int64_t i = 0; i < tile.num_queries; ++i) {
    const float* from = tile.args.q + tile.rows[i] * tile.args.q_stride + tile.heads[i] * tile.head_dim;
    auto* to = reinterpret_cast<std::byte*>(tile.queries + i * kQueryStride);
    for (int64_t d = 0; d < padded; d += 32) {
      const int64_t left = tile.head_dim - d;
      store_bf16(load_part(from + d, left) * scale, load_part(from + d + 16, left - 16) * scale, to + d * 2);
    }
  }
}

// scores[queries][32 keys] of one block. `keys` has `num_pairs` rows of 32 pairs.
void score_block(const std::byte* queries, const std::byte* keys, int64_t num_pairs, float* scores) {
  _tile_zero(0);
  _tile_zero(1);
  const auto step = [](const std::byte* q, const std::byte* k) __attribute__((always_inline)) {
    _tile_loadd(4, q, kRowBytes);
    _tile_stream_loadd(6, k, 2 * kLineBytes);
    _tile_stream_loadd(7, k + kLineBytes, 2 * kLineBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  };
  const int64_t whole = num_pairs / kTilePairs;
  for (int64_t i = 0; i < whole; ++i) step(queries + i * kPairsBytes, keys + i * kTilePairs * 2 * kLineBytes);
  if (const int64_t rest = num_pairs % kTilePairs; rest > 0) {
    // What follows the last dimension are values, which may be anything: zero times that is not always zero.
    alignas(64) std::byte last[kTilePairs * 2 * kLineBytes] = {};
    std::memcpy(last, keys + whole * kTilePairs * 2 * kLineBytes, static_cast<std::size_t>(rest * 2 * kLineBytes));
    before_tile_loads();
    step(queries + whole * kPairsBytes, last);
  }
  _tile_stored(0, scores, kRowBytes);
  _tile_stored(1, scores + 16, kRowBytes);
}

// sums[queries][dims] += probabilities . V of the blocks [begin, end), of which `values(i)` are the rows of `dim_padded` pairs of keys.
// `probabilities`: of each block 32 bf16 where its 32 floats were.
template <class Values>
void add_values(const float* probabilities, const Values& values, int64_t begin, int64_t end, int64_t dim_padded, float* sums) {
  constexpr int64_t kVecs = 4;  // tiles of sums
  before_tile_loads();
  for (int64_t first = 0; first < dim_padded / 16; first += kVecs) {
    const int64_t count = dim_padded / 16 - first < kVecs ? dim_padded / 16 - first : kVecs;
    float* to = sums + first * 16;
    _tile_loadd(0, to, kRowBytes);
    if (count > 1) _tile_loadd(1, to + 16, kRowBytes);
    if (count > 2) _tile_loadd(2, to + 32, kRowBytes);
    if (count > 3) _tile_loadd(3, to + 48, kRowBytes);
    for (int64_t block = begin; block < end; ++block) {
      const auto* p = reinterpret_cast<const std::byte*>(probabilities + block * kBlockTokens);
      const std::byte* v = values(block) + first * kLineBytes;
      const int64_t row_bytes = dim_padded * kPairBytes;
      _tile_loadd(4, p, kRowBytes);
      _tile_stream_loadd(6, v, row_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if (count > 1) {
        _tile_stream_loadd(7, v + kLineBytes, row_bytes);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (count > 2) {
        _tile_stream_loadd(6, v + 2 * kLineBytes, row_bytes);
        _tile_dpbf16ps(2, 4, 6);
      }
      if (count > 3) {
        _tile_stream_loadd(7, v + 3 * kLineBytes, row_bytes);
        _tile_dpbf16ps(3, 4, 7);
      }
    }
    _tile_stored(0, to, kRowBytes);
    if (count > 1) _tile_stored(1, to + 16, kRowBytes);
    if (count > 2) _tile_stored(2, to + 32, kRowBytes);
    if (count > 3) _tile_stored(3, to + 48, kRowBytes);
  }
}

// A block's values with zeros in place of those outside `keys`.
void copy_seen(const std::byte* values, KeyRange keys, int64_t dim_padded, std::byte* to) {
  for (int64_t pair = 0; pair < kTilePairs; ++pair) {
    const bool first = keys.begin <= 2 * pair && 2 * pair < keys.end, second = keys.begin <= 2 * pair + 1 && 2 * pair + 1 < keys.end;
    const __m512i kept = _mm512_set1_epi32(static_cast<int32_t>((first ? 0x0000ffffu : 0u) | (second ? 0xffff0000u : 0u)));
    for (int64_t d = 0; d < dim_padded; d += kLanes) {
      const int64_t at = (pair * dim_padded + d) * kPairBytes;
      _mm512_store_si512(to + at, _mm512_and_si512(kept, _mm512_loadu_si512(values + at)));
    }
  }
}

KeyRange in_block(KeyRange seen, int64_t first_key) {
  return {seen.begin > first_key ? seen.begin - first_key : 0, seen.end < first_key + kBlockTokens ? seen.end - first_key : kBlockTokens};
}

// Whether all of a block's values are finite: no exponent is all ones.
bool is_finite(const std::byte* values, int64_t dim_padded) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 found = 0;
  for (int64_t at = 0; at < kTilePairs * dim_padded * kPairBytes; at += kLineBytes) {
    found |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(_mm512_loadu_si512(values + at), exponent), exponent);
  }
  return found == 0;
}

void compute_bf16_segment(QueryTile& tile, int64_t segment) {
  const int64_t num_queries = tile.num_queries, dim_padded = tile.layout.v_dim_padded;
  const KeyRange all = tile.choose_segment(segment);
  for (int64_t i = 0; i < num_queries; ++i) {
    for (int64_t d = 0; d < dim_padded; d += kLanes) store(tile.sums + i * kQueryStride + d, zero());
    tile.denominators[i] = 0.0f;
  }
  if (all.empty()) return;
  load_queries(tile);
  const int64_t block_begin = all.begin / kBlockTokens, block_end = (all.end + kBlockTokens - 1) / kBlockTokens;
  const auto keys = [&](int64_t i) { return tile.block(segment, i < block_end ? i : block_end - 1); };
  const auto values = [&](int64_t i) { return keys(i) + tile.layout.v_offset; };
  const auto fetch = [](const std::byte* from, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += kLineBytes) __builtin_prefetch(from + line, 0, 2);
  };
  // While a block is multiplied, a later one is fetched: blocks lie whole layers apart, where no hardware prefetcher looks.
  const bool from_memory = num_queries < kMaxQueries;

  before_tile_loads();
  const TileScope scope(kPairsBytes, static_cast<int>(num_queries), static_cast<int>(num_queries));
  for (int64_t i = block_begin; i < block_end; ++i) {
    if (from_memory) {
      // After the last keys come the first values.
      const int64_t next = i + kPiecesAhead;
      fetch(next < block_end ? keys(next) : values(block_begin + (next - block_end)), tile.layout.v_offset);
    }
    score_block(reinterpret_cast<const std::byte*>(tile.queries), keys(i), tile.layout.k_dwords, tile.scores + i * kBlockTokens);
  }

  const bool adjust = adjusts_scores(tile.args);
  for (int64_t i = 0; i < num_queries; ++i) {
    if (tile.seen[i].empty()) continue;
    if (adjust) adjust_scores(tile, segment, i);
    tile.maxima[i] = maximum_score(tile.scores + i * kQueryStride, tile.seen[i]);
  }
  for (int64_t i = 0; i < num_queries; ++i) {
    float* scores = tile.scores + i * kQueryStride;
    const KeyRange seen = tile.seen[i];
    const auto unchanged = [](F32 p, int64_t) __attribute__((always_inline)) { return p; };
    if (!seen.empty()) tile.denominators[i] = exponentials(scores, seen, tile.maxima[i], unchanged);
    // A block's 32 bf16 take the place of its first floats.
    for (int64_t block = block_begin; block < block_end; ++block) {
      float* at = scores + block * kBlockTokens;
      const KeyRange range = in_block(seen, block * kBlockTokens);
      const auto probabilities = [&](int64_t j) __attribute__((always_inline)) {
        const auto below = [j](int64_t key) { return key <= j ? 0u : key >= j + 16 ? 0xffffu : (1u << (key - j)) - 1; };
        return _mm512_maskz_loadu_ps(static_cast<__mmask16>(below(range.end) & ~below(range.begin)), at + j);
      };
      store_bf16(probabilities(0), probabilities(16), at);
    }
  }

  // Whether the block's values can be multiplied with all queries together.
  const auto is_shared = [&](int64_t block) {
    const KeyRange first = in_block(tile.seen[0], block * kBlockTokens), last = in_block(tile.seen[num_queries - 1], block * kBlockTokens);
    const bool all_see_all = first.begin == 0 && first.end == kBlockTokens && last.begin == 0 && last.end == kBlockTokens;
    return all_see_all || is_finite(values(block), dim_padded);
  };
  for (int64_t i = block_begin; i < block_end;) {
    int64_t end = i;
    while (end < block_end && is_shared(end)) ++end;
    const auto values_of = [&](int64_t block) {
      if (from_memory) fetch(values(block + kPiecesAhead), kTilePairs * dim_padded * kPairBytes);
      return values(block);
    };
    if (end > i) add_values(tile.scores, values_of, i, end, dim_padded, tile.sums);
    if (end == block_end) break;
    for (i = end; i < block_end && !is_shared(i); ++i) {
      alignas(64) std::byte seen_values[kTilePairs * kQueryStride * kPairBytes];
      for (int64_t q = 0; q < num_queries;) {
        int64_t q_end = q + 1;  // the queries of one row see the same keys
        while (q_end < num_queries && tile.rows[q_end] == tile.rows[q]) ++q_end;
        copy_seen(values(i), in_block(tile.seen[q], i * kBlockTokens), dim_padded, seen_values);
        const TileScope some(kPairsBytes, static_cast<int>(q_end - q), static_cast<int>(q_end - q));
        add_values(
            tile.scores + q * kQueryStride, [&](int64_t) { return seen_values; }, i, i + 1, dim_padded, tile.sums + q * kQueryStride);
        q = q_end;
      }
    }
    scope.load();
  }
}

void compute_segment(QueryTile& tile, KvFormat, int64_t segment) { compute_bf16_segment(tile, segment); }

#include "millrace/kernels/cpu/attention_walk.inc"

void bf16_attention(const KvView& kv, const AttentionArgs& args, int64_t row_begin, int64_t row_end, int64_t kv_head, float* scratch) {
  const auto run = kv.geometry.format == KvFormat::kBf16 ? attention : avx512::kAttention.attention;
  run(kv, args, row_begin, row_end, kv_head, scratch);
}

void bf16_partial(const KvView& kv, const AttentionArgs& args, int64_t row, int64_t kv_head, int64_t segment, float* partial_out,
                  float* scratch) {
  const auto run = kv.geometry.format == KvFormat::kBf16 ? partial : avx512::kAttention.partial;
  run(kv, args, row, kv_head, segment, partial_out, scratch);
}

}  // namespace

const AttentionVariant kAttention = {bf16_attention, bf16_partial, merge};

}  // namespace millrace::MR_VARIANT
