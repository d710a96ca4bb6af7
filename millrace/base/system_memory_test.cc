#include "millrace/base/system_memory.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(SystemMemory, IsMoreThanThisTestNeeds) {
  EXPECT_GT(available_memory_bytes(), int64_t{1} << 20);
  EXPECT_LT(available_memory_bytes(), int64_t{1} << 50) << "neither /proc/meminfo nor a control group could be read";
}

}  // namespace
}  // namespace millrace
