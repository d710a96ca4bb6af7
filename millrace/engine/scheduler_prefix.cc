// What a sequence need not compute: which of its blocks are cached or stored, and how it takes them.
#include <algorithm>
#include <utility>

#include "millrace/engine/scheduler.h"

namespace millrace {

void Scheduler::extend_digests(Sequence& sequence, int64_t num_blocks) {
  while (static_cast<int64_t>(sequence.digests.size()) < num_blocks) {
    const auto first = static_cast<int64_t>(sequence.digests.size()) * kKvBlockTokens;
    const std::span<const int32_t, kKvBlockTokens> tokens(sequence.tokens.data() + first, kKvBlockTokens);
    const int64_t of_prompt =
        options_.prompt_differs ? std::clamp<int64_t>(sequence.num_prompt_tokens - first, 0, kKvBlockTokens) : kKvBlockTokens;
    sequence.digests.push_back(PrefixHasher::next(sequence.digests.empty() ? sequence.prefix_root : sequence.digests.back(), tokens,
                                                  static_cast<int32_t>(of_prompt)));
  }
}

bool Scheduler::is_found(int64_t group, const BlockDigest& digest, bool stored) const {
  return allocator_.find(group, digest).has_value() || (stored && store_ != nullptr && store_->contains(group, digest));
}

// The blocks of the longest prefix that is cached; with `stored`, also of what the store has.
int64_t Scheduler::find_prefix(Sequence& sequence, bool stored) {
  if (!sequence.shares_prefix || allocator_.num_groups() == 0) return 0;
  // The last token is always computed: its logits are wanted.
  int64_t longest = (sequence.num_tokens() - 1) / kKvBlockTokens;
  if (sequence.score_begin < sequence.score_end) longest = std::min(longest, sequence.score_begin / kKvBlockTokens);
  int64_t reach = 0;  // blocks that every group without a window has
  for (; reach < longest; ++reach) {
    extend_digests(sequence, reach + 1);
    bool everywhere = true;
    for (int64_t g = 0; g < allocator_.num_groups() && everywhere; ++g) {
      everywhere = options_.windows[g].has_value() || is_found(g, sequence.digests[reach], stored);
    }
    if (!everywhere) break;
  }
  // A windowed group needs only what the next row can still read. From the longest prefix down: where a group lacks block b, every
  // prefix that needs b is out, so the search goes on with the prefix that ends before b.
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
    if (!options_.windows[g]) continue;
    for (int64_t block = reach - 1; block >= first_readable_block(g, reach * kKvBlockTokens) && reach > 0; --block) {
      if (is_found(g, sequence.digests[block], stored)) continue;
      reach = block;
      g = -1;  // a shorter prefix needs other blocks of the groups already looked at
      break;
    }
  }
  return reach;
}

void Scheduler::take_prefix(Sequence& sequence, int64_t num_blocks) {
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
    const int64_t first = first_readable_block(g, num_blocks * kKvBlockTokens);
    std::vector<int32_t>& table = sequence.block_tables[g];
    for (int64_t block = 0; block < num_blocks; ++block) {
      if (block < first) {
        table.push_back(-1);
        continue;
      }
      table.push_back(*allocator_.find(g, sequence.digests[block]));
      allocator_.add_reference(g, table.back());
    }
    sequence.num_passed[g] = std::min(first, num_blocks);
  }
  sequence.num_computed = num_blocks * kKvBlockTokens;
  sequence.num_keyed_blocks = num_blocks;
}

// Whether the sequence can be admitted with so many blocks of its prefix.
bool Scheduler::has_room(const Sequence& sequence, int64_t prefix_blocks) {
  // Alone, anything that was accepted fits. In company the whole prompt and the first completion token must fit beside what running
  // prefills still need: what is admitted too early is preempted soon.
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
    const int64_t first = first_readable_block(g, prefix_blocks * kKvBlockTokens);
    int64_t needed = blocks_for(sequence, g, sequence.num_tokens() + 1) - (prefix_blocks - first);
    for (int64_t block = first; block < prefix_blocks; ++block) {
      // It stops being available; one that the store has takes another's place.
      const std::optional<int32_t> found = allocator_.find(g, sequence.digests[block]);
      if (!found || !allocator_.is_used(g, *found)) ++needed;
    }
    for (const Sequence* other : running_) {
      const int64_t held = static_cast<int64_t>(other->block_tables[g].size()) - other->num_passed[g];
      if (other->num_uncomputed() > 1) needed += std::max<int64_t>(0, blocks_for(*other, g, other->num_tokens() + 1) - held);
    }
    if (needed <= allocator_.num_available(g)) continue;
    if (!running_.empty()) return false;
    drop_all_forked_blocks(&sequence);
    break;
  }
  return true;
}

// Brings what the store has of the prefix back into blocks, which then are cached ones like any others. False: in this step no more; those
// who compute in it do not wait for a disk any longer.
bool Scheduler::restore_prefix(const Sequence& sequence, int64_t num_blocks) {
  std::vector<std::pair<int64_t, int32_t>> held;     // group, block
  std::vector<std::pair<int64_t, int64_t>> missing;  // place in the sequence, group
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int64_t g = 0; g < allocator_.num_groups(); ++g) {
      if (block < first_readable_block(g, num_blocks * kKvBlockTokens)) continue;
      if (const auto found = allocator_.find(g, sequence.digests[static_cast<std::size_t>(block)])) {
        held.emplace_back(g, *found);
      } else {
        missing.emplace_back(block, g);
      }
    }
  }
  if (missing.empty()) return true;
  // Otherwise they might be the ones whose memory is taken for what is loaded.
  for (const auto& [group, block_id] : held) allocator_.add_reference(group, block_id);
  bool in_time = true;
  for (const auto& [block, group] : missing) {
    // Where nobody computes, nobody waits; so a stored prefix of any length comes back.
    in_time = restores_left_ > 0 || planned_.empty();
    if (!in_time) break;
    const std::optional<int32_t> block_id = allocator_.allocate(group);
    if (!block_id) break;
    held.emplace_back(group, *block_id);
    if (!store_->load(group, sequence.digests[static_cast<std::size_t>(block)], *block_id)) break;
    allocator_.insert(group, *block_id, sequence.digests[static_cast<std::size_t>(block)]);
    --restores_left_;
  }
  for (; !held.empty(); held.pop_back()) allocator_.release(held.back().first, held.back().second);
  return in_time;
}

}  // namespace millrace
