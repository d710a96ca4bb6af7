#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <span>

#include "millrace/base/status.h"

namespace millrace {

// Zero-filled bytes aligned to 64 (a cache line and a zmm register). Movable, sized once.
class AlignedBuffer {
 public:
  static constexpr std::size_t kAlignment = 64;

  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t num_bytes);                 // no memory: the process ends
  static Result<AlignedBuffer> allocate(std::size_t num_bytes);  // no memory: kResourceExhausted. For what a user's choice sizes
  AlignedBuffer(AlignedBuffer&&) = default;
  AlignedBuffer& operator=(AlignedBuffer&&) = default;

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  std::span<std::byte> bytes() { return {data_.get(), size_}; }
  std::span<const std::byte> bytes() const { return {data_.get(), size_}; }

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_.get());
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_.get());
  }

 private:
  struct Unmap {
    std::size_t mapped_bytes;  // 0: from aligned_alloc
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Unmap> data_{nullptr, Unmap{0}};
  std::size_t size_ = 0;
};

}  // namespace millrace
