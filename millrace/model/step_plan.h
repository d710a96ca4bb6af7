#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "millrace/base/check.h"
#include "millrace/base/status.h"
#include "millrace/sampling/sampling.h"

// Where engine and executor meet (docs/design.md D2). A plan is plain data: the engine decides, the executor computes.
namespace millrace {

inline constexpr int32_t kKvBlockTokens = 32;

enum class KvDType { kF32, kBf16, kInt8, kFp8E4M3, kInt4 };
inline constexpr KvDType kAllKvDTypes[] = {KvDType::kF32, KvDType::kBf16, KvDType::kInt8, KvDType::kFp8E4M3, KvDType::kInt4};

// Layers whose keys and values have one geometry and one window share a block table (docs/design.md D6).
struct KvGroupSpec {
  int64_t num_layers = 0, num_kv_heads = 0, head_dim = 0;
  std::optional<int64_t> window;  // positions further back than this are never read again
  int64_t block_bytes = 0;        // one block: kKvBlockTokens tokens of every layer of the group
  // More than 0: layers with a state in place of keys and values. A block holds the states of all of them, so many numbers in f32, as they
  // were after its last computed token. The next token reads the last block alone: a window of 1.
  int64_t state_floats = 0;
  bool cross = false;  // of a sequence's source text: written when that is read, and never again
};

struct ExecutorInfo {
  int64_t vocab_size = 0;
  int64_t sampled_vocab_size =
      0;  // ids below are the tokenizer's, and alone are drawn: networks are often made for more. At most vocab_size
  int64_t hidden_size = 0;
  int64_t output_size = 0;  // numbers that an output has: of a decoder vocab_size
  // An encoder: a text is a sequence whose tokens are all in one step, from position 0; nothing of it is kept after the step, so there are
  // no KV groups. Its outputs are pooled: of whichever row, the output is that of the row's sequence.
  bool is_encoder = false;
  int64_t num_token_types = 0;    // 0: the network does not know any
  int64_t max_positions = 0;      // longest context the network was made for
  bool prompt_differs = false;    // a prompt's tokens are computed in another way than generated ones: their keys and values differ too
  int64_t rope_short_length = 0;  // requests longer than this use the long rope variant; 0: one variant
  std::vector<KvGroupSpec> kv_groups;

  // What was computed cannot be taken back: a state knows nothing of the tokens that made it.
  bool has_state() const {
    for (const KvGroupSpec& group : kv_groups) {
      if (group.state_floats > 0) return true;
    }
    return false;
  }
  // An encoder-decoder: every sequence answers a source text, which is read whole before the sequence's first rows. Its own tokens begin
  // with these; empty: there is no encoder.
  std::vector<int32_t> start_tokens;
  int64_t max_source_tokens = 0;
};

struct StepPlan {
  struct Sequence {
    int32_t row_begin = 0, row_end = 0;  // its rows of `tokens`, at consecutive positions
    int32_t first_position = 0;          // of row_begin; after the step first_position + (row_end - row_begin) tokens are in KV
    bool rope_long = false;
    // Its tokens at positions below are the prompt's, and may be computed in another way (GemmPath::kPrompt) than those that it generated.
    // The same in every step, so that a token's results do not depend on how it was scheduled.
    int32_t num_prompt_tokens = std::numeric_limits<int32_t>::max();
    int32_t num_source_tokens = 0;  // of an encoder-decoder: tokens in the sequence's blocks of cross groups
  };
  // Of an encoder-decoder: a text that is read before the step's rows are computed, into the cross blocks of one of its sequences.
  struct Source {
    int32_t sequence = 0;
    std::span<const int32_t> tokens;  // num_source_tokens of the sequence; must live as long as the plan
  };
  // Before the step computes anything, block `to` of the group becomes what block `from` is: copy-on-write of a block that is not full.
  struct BlockCopy {
    int32_t group = 0, from = 0, to = 0;
  };
  struct Output {
    int32_t row = 0;                          // the row after which a token is wanted
    const SamplingInput* sampling = nullptr;  // null: logits only
  };

  std::vector<int32_t> tokens;       // [num_rows] token ids; ~k (negative): the token that output k of the previous step sampled
  std::vector<int32_t> token_types;  // [num_rows] below ExecutorInfo::num_token_types, or empty: all 0
  std::vector<Sequence> sequences;   // in row order, covering every row
  std::vector<Source> sources;
  // Block tables in CSR form, group-major: sequence s of group g owns
  // block_ids[table_begin[g * sequences.size() + s] .. table_begin[g * sequences.size() + s + 1]). Entry i of a table holds positions
  // [32 i, 32 i + 32). An entry that a window has passed is -1. Of a cross group positions are those of the source text.
  std::vector<int32_t> table_begin;  // [num_groups * num_sequences + 1]
  std::vector<int32_t> block_ids;
  std::vector<BlockCopy> block_copies;  // no block is written twice, or written and read
  std::vector<Output> outputs;

  void clear() {
    tokens.clear(), token_types.clear(), sequences.clear(), sources.clear(), block_copies.clear();
    table_begin.clear(), block_ids.clear(), outputs.clear();
  }
};

struct StepOutput {
  std::span<const float> logits;  // [num_outputs, logits_stride], before sampling's penalties; valid until the next enqueue
  int64_t logits_stride = 0;      // >= vocab_size; what lies beyond vocab_size is padding
  std::span<const float> logits_of(int64_t output, int64_t vocab_size) const {
    return logits.subspan(static_cast<std::size_t>(output * logits_stride), static_cast<std::size_t>(vocab_size));
  }
  std::vector<SampledToken> tokens;  // [num_outputs]; of outputs without sampling the id is -1
  // Of an encoder `logits` has rows of output_size numbers (an embedding, or classes' logits), and this is the last hidden state of every
  // token; of an encoder-decoder that of the step's source texts, as many of the last ones as were read together:
  std::span<const float> hidden;  // [num_rows, hidden_stride]; valid until the next enqueue
  int64_t hidden_stride = 0;
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual const ExecutorInfo& info() const = 0;
  // Allocates the KV memory: num_blocks[g] blocks for group g. Once, before the first step.
  virtual Status allocate_kv(std::span<const int64_t> num_blocks) = 0;
  // One step at a time: enqueue, then wait. The CPU computes inside enqueue. The plan must live until wait returns.
  virtual void enqueue(const StepPlan& plan) = 0;
  virtual const StepOutput& wait() = 0;
  // Copies a block out of the KV memory, or into it: KvGroupSpec::block_bytes bytes, which mean something to the same executor over the
  // same weights only. Between steps. Of an executor that is used with a disk tier (EngineOptions::kv_disk).
  virtual void save_block(int64_t /*group*/, int32_t /*block_id*/, std::span<std::byte> /*to*/) const {
    MR_CHECK(false, "this executor's blocks cannot be copied out");
  }
  virtual void load_block(int64_t /*group*/, int32_t /*block_id*/, std::span<const std::byte> /*from*/) {
    MR_CHECK(false, "this executor's blocks cannot be copied in");
  }
};

}  // namespace millrace
