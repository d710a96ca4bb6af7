#include "millrace/base/aligned_buffer.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstring>

namespace millrace {
namespace {

// From here on a mapping of our own pays: its pages are zero already, come lazily, and may be huge.
constexpr std::size_t kMapFromBytes = std::size_t{4} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t num_bytes) {
  auto buffer = allocate(num_bytes);
  MR_CHECK(buffer.is_ok(), "out of memory");
  *this = std::move(buffer).value();
}

Result<AlignedBuffer> AlignedBuffer::allocate(std::size_t num_bytes) {
  const auto no_memory = [&] { return Status::resource_exhausted(fmt::format("no memory for {} MB", num_bytes >> 20)); };
  AlignedBuffer buffer;
  buffer.size_ = num_bytes;
  if (num_bytes == 0) return buffer;
  if (num_bytes >= kMapFromBytes) {
    const std::size_t mapped = (num_bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* address = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) return no_memory();
    ::madvise(address, mapped, MADV_HUGEPAGE);
    buffer.data_ = std::unique_ptr<std::byte, Unmap>(static_cast<std::byte*>(address), Unmap{mapped});
    return buffer;
  }
  const std::size_t rounded = (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
  if (memory == nullptr) return no_memory();
  std::memset(memory, 0, rounded);
  buffer.data_ = std::unique_ptr<std::byte, Unmap>(memory, Unmap{0});
  return buffer;
}

void AlignedBuffer::Unmap::operator()(std::byte* data) const {
  if (mapped_bytes > 0) {
    ::munmap(data, mapped_bytes);
  } else {
    std::free(data);
  }
}

}  // namespace millrace
