#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "millrace/engine/prefix_digest.h"

// Hands out KV blocks by number; the memory behind the numbers is the executor's. A block of a group is
//
//   used    referenced by one or more sequences,
//   cached  referenced by none, but keyed: a prompt that starts alike may take it back, or
//   free    neither.
//
// A full block may be given a key and may then be shared: nobody writes to a full block again, so sharing needs no copy. When
// nothing is free, the cached block that was used longest ago is taken.
// Invariant: num_free + num_used + num_cached == num_blocks, for each group.
namespace millrace {

class BlockAllocator {
 public:
  explicit BlockAllocator(std::span<const int64_t> num_blocks);  // of each group

  int64_t num_groups() const { return static_cast<int64_t>(groups_.size()); }
  int64_t num_blocks(int64_t group) const { return static_cast<int64_t>(groups_[group].blocks.size()); }
  int64_t num_free(int64_t group) const { return static_cast<int64_t>(groups_[group].free.size()); }
  int64_t num_cached(int64_t group) const { return groups_[group].num_cached; }
  int64_t num_used(int64_t group) const { return num_blocks(group) - num_free(group) - num_cached(group); }
  int64_t num_available(int64_t group) const { return num_free(group) + num_cached(group); }

  // A block with one reference and no key; absent when all are used.
  std::optional<int32_t> allocate(int64_t group);
  // One more reader of a used or cached block.
  void add_reference(int64_t group, int32_t block_id);
  // One reader less. Release a sequence's last block first: of a chain the end is taken back before its beginning.
  void release(int64_t group, int32_t block_id);

  // Keys a used block that has become full. False where another block has that key already: this one then stays private.
  bool insert(int64_t group, int32_t block_id, const BlockDigest& digest);
  // Takes the key away, so that no one finds the block any more.
  void forget(int64_t group, int32_t block_id);
  std::optional<int32_t> find(int64_t group, const BlockDigest& digest) const;
  bool is_used(int64_t group, int32_t block_id) const { return groups_[group].blocks[block_id].num_references > 0; }

  // Checks every block against every list; empty when all is well. Linear in the blocks: for tests and idle times.
  std::string check_integrity() const;
  int64_t num_references(int64_t group, int32_t block_id) const { return groups_[group].blocks[block_id].num_references; }

 private:
  static constexpr int32_t kNone = -1;
  struct Block {
    int32_t num_references = 0;
    int32_t older = kNone, newer = kNone;  // neighbours among the cached blocks
    bool keyed = false;
    BlockDigest digest;
  };
  struct Group {
    std::vector<Block> blocks;
    std::vector<int32_t> free;
    std::unordered_map<BlockDigest, int32_t, BlockDigestHash> by_digest;
    int32_t oldest = kNone, newest = kNone;
    int64_t num_cached = 0;
  };
  static void unlink(Group& group, int32_t block_id);
  static void link_newest(Group& group, int32_t block_id);
  static void drop_key(Group& group, Block& block);
  Block& used_block(int64_t group, int32_t block_id);

  std::vector<Group> groups_;
};

}  // namespace millrace
