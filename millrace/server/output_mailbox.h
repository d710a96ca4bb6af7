#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "millrace/engine/request.h"

namespace millrace {

// Carries deltas from the engine's thread to the I/O thread. The deltas of one step arrive together: only the first wakes the reader.
class OutputMailbox {
 public:
  struct Item {
    uint64_t call_id = 0;
    int32_t prompt = 0;  // index among the call's prompts
    OutputDelta delta;
  };

  // `wake` runs on the thread that pushes, when the mailbox was empty.
  explicit OutputMailbox(std::function<void()> wake) : wake_(std::move(wake)) {}

  void push(Item item) {
    bool was_empty;
    {
      const std::lock_guard lock(mutex_);
      was_empty = items_.empty();
      items_.push_back(std::move(item));
    }
    if (was_empty) wake_();
  }

  std::vector<Item> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(items_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<Item> items_;
  std::function<void()> wake_;
};

}  // namespace millrace
