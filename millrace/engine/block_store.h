#pragma once

#include <cstdint>

#include "millrace/engine/prefix_digest.h"

namespace millrace {

// Where full KV blocks are kept beside the memory of their group, as the scheduler sees it: it knows digests and block ids, and nothing of
// files, threads or bytes. What a store has may vanish at any time; what it gives back is what it was offered, bit for bit.
class BlockStore {
 public:
  virtual ~BlockStore() = default;

  // A block has become full and got its key. The store may keep a copy or not; it must not hold up the step.
  virtual void offer(int64_t group, const BlockDigest& digest, int32_t block_id) = 0;
  // Whether load() is worth a try.
  virtual bool contains(int64_t group, const BlockDigest& digest) = 0;
  // Fills a block that nobody reads yet. False: it could not; the block may hold anything then, and contains() is false from now on, until
  // the digest is offered again.
  virtual bool load(int64_t group, const BlockDigest& digest, int32_t block_id) = 0;
  // Somebody has used the block: others are to go before it.
  virtual void touch(int64_t group, const BlockDigest& digest) = 0;
  // What it holds is not to be trusted.
  virtual void forget(int64_t group, const BlockDigest& digest) = 0;
};

}  // namespace millrace
