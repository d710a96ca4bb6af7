#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "millrace/formats/checkpoint.h"
#include "millrace/model/program.h"

// Packed weights kept in a file (docs/design.md D3): the next start maps them instead of packing, on any instruction set.
//
// The file is a header, a checksum of every 2 MB of panels, and the panels as they lie in memory. What the panels mean is not in it:
// classes, sizes, row orders and code books follow from the model's own files, which are read at every start. So a file that is not
// believed, or that a bug or a disk has changed, costs a start the time to pack, and nothing else.
namespace millrace {

struct WeightCacheOptions {
  std::string folder;                     // where the files of all models lie; empty: nothing is kept
  int64_t max_bytes = int64_t{32} << 30;  // of all files together: those longest unused make room
  int64_t min_bytes = int64_t{64} << 20;  // smaller weights are packed about as fast as mapped
  std::string variant;                    // of the model: each has a file of its own. Empty: the weights as they are stored
  // Where panels from the file lie. A step reads them slower from small pages, so kBest maps them only where the system can in huge ones.
  enum class Place { kBest, kMapped, kCopied };
  Place place = Place::kBest;
};

// SHA-256 of all that packed weights follow from: this program, the model's configuration, names, shapes and orders of rows, the variant;
// of the bytes of the model's files their identity. `planned`: planned or packed.
std::array<uint8_t, 32> packed_weights_key(const Checkpoint& checkpoint, const Weights& planned, const std::string& variant);

// The cache file of one model.
class WeightCache {
 public:
  // `planned`: the network's weights, planned or packed.
  WeightCache(const Network& network, const Checkpoint& checkpoint, const Weights& planned, WeightCacheOptions options);

  // Whether weights of this size are kept at all.
  bool is_wanted() const { return !options_.folder.empty() && panels_bytes_ >= options_.min_bytes && panels_bytes_ <= options_.max_bytes; }
  const std::string& path() const { return path_; }

  // Maps the file and gives the planned weights its panels. kNotFound: there is none. Another error says why it is not believed: not the
  // user's own file, of other weights (the model's files, the family or this program have changed), cut off, or its checksums are wrong.
  // Every byte is checked, by all threads of the pool, which also brings it into memory.
  Status map(Weights& weights, ThreadPool& pool) const;

  // Writes the file beside and renames it, so that others see a whole one or none; makes room first. kCancelled: `stop` was set, or
  // another process is writing the same file. kResourceExhausted: the disk is short: as much again must stay free.
  Status write(const Weights& weights, const std::atomic<bool>& stop) const;

 private:
  struct Header;
  Header header() const;
  Status check(const MappedFile& file, ThreadPool& pool) const;
  Status make_room() const;
  Status write_to(int file, const Weights& weights, const std::atomic<bool>& stop) const;

  WeightCacheOptions options_;
  std::string path_;
  std::array<uint8_t, 32> key_{};  // SHA-256 of all that the panels follow from
  int64_t panels_bytes_ = 0;
};

// Writes a model's cache file on a thread that computes and reads only when nobody else wants to.
class WeightCacheWriter {
 public:
  // `on_failure` is called on that thread, unless another process writes the same file or this one was given up.
  WeightCacheWriter(WeightCache cache, std::shared_ptr<const Weights> weights, std::function<void(const Status&)> on_failure);
  ~WeightCacheWriter();  // an unfinished file is given up

  void wait();  // until it is done

 private:
  WeightCache cache_;
  std::shared_ptr<const Weights> weights_;
  std::function<void(const Status&)> on_failure_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace millrace
