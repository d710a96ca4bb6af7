#include "millrace/engine/block_allocator.h"

#include <fmt/format.h>

#include "millrace/base/check.h"

namespace millrace {

BlockAllocator::BlockAllocator(std::span<const int64_t> num_blocks) : groups_(num_blocks.size()) {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    MR_CHECK(num_blocks[g] >= 0 && num_blocks[g] <= INT32_MAX, "a block id is 32 bits");
    groups_[g].blocks.resize(static_cast<std::size_t>(num_blocks[g]));
    // Popped from the end: ids are given out in ascending order.
    for (int64_t id = num_blocks[g] - 1; id >= 0; --id) groups_[g].free.push_back(static_cast<int32_t>(id));
  }
}

void BlockAllocator::unlink(Group& group, int32_t block_id) {
  Block& block = group.blocks[block_id];
  (block.older == kNone ? group.oldest : group.blocks[block.older].newer) = block.newer;
  (block.newer == kNone ? group.newest : group.blocks[block.newer].older) = block.older;
  block.older = block.newer = kNone;
  --group.num_cached;
}

void BlockAllocator::link_newest(Group& group, int32_t block_id) {
  Block& block = group.blocks[block_id];
  block.older = group.newest;
  block.newer = kNone;
  (group.newest == kNone ? group.oldest : group.blocks[group.newest].newer) = block_id;
  group.newest = block_id;
  ++group.num_cached;
}

void BlockAllocator::drop_key(Group& group, Block& block) {
  if (!block.keyed) return;
  group.by_digest.erase(block.digest);
  block.keyed = false;
}

BlockAllocator::Block& BlockAllocator::used_block(int64_t group, int32_t block_id) {
  MR_CHECK(block_id >= 0 && block_id < num_blocks(group), "no such block");
  Block& block = groups_[group].blocks[block_id];
  MR_CHECK(block.num_references > 0, "the block is in nobody's use");
  return block;
}

std::optional<int32_t> BlockAllocator::allocate(int64_t group_index) {
  Group& group = groups_[group_index];
  int32_t block_id = kNone;
  if (!group.free.empty()) {
    block_id = group.free.back();
    group.free.pop_back();
  } else if (group.oldest != kNone) {
    block_id = group.oldest;
    unlink(group, block_id);
    drop_key(group, group.blocks[block_id]);
  } else {
    return std::nullopt;
  }
  group.blocks[block_id].num_references = 1;
  return block_id;
}

void BlockAllocator::add_reference(int64_t group_index, int32_t block_id) {
  Group& group = groups_[group_index];
  Block& block = group.blocks[block_id];
  MR_CHECK(block.num_references > 0 || block.keyed, "a free block cannot be shared");
  if (block.num_references == 0) unlink(group, block_id);
  ++block.num_references;
}

void BlockAllocator::release(int64_t group_index, int32_t block_id) {
  Block& block = used_block(group_index, block_id);
  if (--block.num_references > 0) return;
  Group& group = groups_[group_index];
  if (block.keyed) {
    link_newest(group, block_id);
  } else {
    group.free.push_back(block_id);
  }
}

bool BlockAllocator::insert(int64_t group_index, int32_t block_id, const BlockDigest& digest) {
  Block& block = used_block(group_index, block_id);
  MR_CHECK(!block.keyed, "a block holds one prefix");
  if (!groups_[group_index].by_digest.emplace(digest, block_id).second) return false;
  block.keyed = true;
  block.digest = digest;
  return true;
}

void BlockAllocator::forget(int64_t group_index, int32_t block_id) { drop_key(groups_[group_index], used_block(group_index, block_id)); }

std::optional<int32_t> BlockAllocator::find(int64_t group, const BlockDigest& digest) const {
  const auto found = groups_[group].by_digest.find(digest);
  if (found == groups_[group].by_digest.end()) return std::nullopt;
  return found->second;
}

std::string BlockAllocator::check_integrity() const {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const Group& group = groups_[g];
    std::vector<int> listed(group.blocks.size(), 0);
    for (const int32_t id : group.free) {
      ++listed[id];
      if (group.blocks[id].num_references != 0 || group.blocks[id].keyed)
        return fmt::format("group {}: free block {} is used or keyed", g, id);
    }
    int64_t num_cached = 0;
    for (int32_t id = group.oldest, older = kNone; id != kNone; older = id, id = group.blocks[id].newer) {
      const Block& block = group.blocks[id];
      ++listed[id];
      if (++num_cached > group.num_cached) return fmt::format("group {}: the list of cached blocks is too long", g);
      if (block.older != older) return fmt::format("group {}: block {} has a wrong neighbour", g, id);
      if (block.num_references != 0 || !block.keyed) return fmt::format("group {}: cached block {} is used or has no key", g, id);
    }
    if (num_cached != group.num_cached)
      return fmt::format("group {}: {} cached blocks listed, {} counted", g, num_cached, group.num_cached);
    std::size_t num_keyed = 0;
    for (std::size_t id = 0; id < group.blocks.size(); ++id) {
      const Block& block = group.blocks[id];
      const int expected = block.num_references > 0 ? 0 : 1;
      if (block.num_references < 0 || listed[id] != expected) {
        return fmt::format("group {}: block {} with {} references is in {} lists", g, id, block.num_references, listed[id]);
      }
      if (!block.keyed) continue;
      ++num_keyed;
      const auto found = group.by_digest.find(block.digest);
      if (found == group.by_digest.end() || found->second != static_cast<int32_t>(id))
        return fmt::format("group {}: block {}'s key is lost", g, id);
    }
    if (num_keyed != group.by_digest.size())
      return fmt::format("group {}: {} keys for {} keyed blocks", g, group.by_digest.size(), num_keyed);
  }
  return {};
}

}  // namespace millrace
