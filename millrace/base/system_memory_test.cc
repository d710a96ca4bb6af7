#include "millrace/base/system_memory.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace millrace {
namespace {

TEST(SystemMemory, IsMoreThanThisTestNeeds) {
  EXPECT_GT(available_memory_bytes(), int64_t{1} << 20);
  EXPECT_LT(available_memory_bytes(), int64_t{1} << 50) << "neither /proc/meminfo nor a control group could be read";
}

// Files in the cache of a container count as used by it, and yet are free for whoever asks.
TEST(SystemMemory, FilesInTheCacheOfAControlGroupAreFree) {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / fmt::format("millrace-cgroup-{}", ::getpid());
  const auto write = [&](const char* name, const char* text) {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text;
  };
  EXPECT_GT(cgroup_available_bytes(root.string()), int64_t{1} << 50) << "no control group, no limit";
  write("memory.current", "9000\n");
  write("memory.max", "max\n");
  EXPECT_GT(cgroup_available_bytes(root.string()), int64_t{1} << 50);
  write("memory.max", "10000\n");
  EXPECT_EQ(cgroup_available_bytes(root.string()), 1000);
  write("memory.stat", "anon 2000\nfile 7000\ninactive_file 4000\nactive_file 2500\ntotal_inactive_file 1\n");
  EXPECT_EQ(cgroup_available_bytes(root.string()), 7500);
  write("memory.stat", "inactive_file 90000\n");  // never more than what is used
  EXPECT_EQ(cgroup_available_bytes(root.string()), 10000);
  fs::remove(root / "memory.max");
  write("memory/memory.limit_in_bytes", "5000\n");
  write("memory/memory.usage_in_bytes", "4000\n");
  write("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 1500\n");
  EXPECT_EQ(cgroup_available_bytes(root.string()), 2500);
  fs::remove_all(root);
}

}  // namespace
}  // namespace millrace
