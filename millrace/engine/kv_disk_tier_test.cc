#include "millrace/engine/kv_disk_tier.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "millrace/base/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBlockBytes[] = {1000, 256};  // one size that no lane of the checksum divides
constexpr int64_t kFileBytes = KvDiskFolder::kHeaderBytes + kBlockBytes[0];

BlockDigest digest_of(int number) {
  BlockDigest digest;
  for (std::size_t i = 0; i < digest.bytes.size(); ++i) digest.bytes[i] = static_cast<uint8_t>(number * 31 + static_cast<int>(i) * 7);
  return digest;
}

std::vector<std::byte> block_of(int number, int64_t group = 0) {
  std::vector<std::byte> block(static_cast<std::size_t>(kBlockBytes[group]));
  for (std::size_t i = 0; i < block.size(); ++i) block[i] = static_cast<std::byte>(number + static_cast<int>(i * i));
  return block;
}

class KvDiskTierTest : public testing::Test {
 protected:
  KvDiskOptions options() {
    KvDiskOptions options;
    options.folder = folder_.file("kv");
    options.fingerprint = "model a";
    options.on_warning = [this](const std::string& message) { warnings_.push_back(message); };
    return options;
  }
  std::unique_ptr<KvDiskTier> open(const KvDiskOptions& options) {
    auto tier = KvDiskTier::open(options, {std::begin(kBlockBytes), std::end(kBlockBytes)});
    EXPECT_TRUE(tier.is_ok()) << tier.status().message();
    return tier.is_ok() ? std::move(tier).value() : nullptr;
  }
  std::unique_ptr<KvDiskTier> open() { return open(options()); }

  static void write(KvDiskTier& tier, int number, int64_t group = 0) {
    tier.write(group, digest_of(number), [&](std::span<std::byte> to) { std::ranges::copy(block_of(number, group), to.begin()); });
  }
  static void write_all(KvDiskTier& tier, int count) {
    for (int number = 0; number < count; ++number) {
      write(tier, number);
      tier.wait();
    }
  }
  // Whether the block comes back; what comes back is what was written.
  static bool comes_back(KvDiskTier& tier, int number, int64_t group = 0) {
    std::vector<std::byte> block(static_cast<std::size_t>(kBlockBytes[group]));
    if (!tier.read(group, digest_of(number), block)) {
      EXPECT_FALSE(tier.contains(group, digest_of(number)));
      return false;
    }
    EXPECT_EQ(block, block_of(number, group));
    return true;
  }
  std::vector<fs::path> files() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder_.file("kv"))) {
      if (entry.path().extension() == ".kv") files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    return files;
  }
  static void flip(const fs::path& path, int64_t at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const char byte = static_cast<char>(file.get() ^ 16);
    file.seekp(at);
    file.put(byte);
  }
  static mode_t mode_of(const fs::path& path) {
    struct stat info{};
    EXPECT_EQ(::stat(path.c_str(), &info), 0);
    return info.st_mode & 07777;
  }

  const TemporaryDirectory folder_;
  std::vector<std::string> warnings_;
};

TEST_F(KvDiskTierTest, GivesBackWhatWasWrittenAlsoAfterARestart) {
  std::string secret;
  {
    const auto tier = open();
    secret = tier->secret();
    EXPECT_EQ(secret.size(), 32u);
    for (int number = 0; number < 5; ++number) write(*tier, number), write(*tier, number, 1);
    tier->wait();
    EXPECT_TRUE(comes_back(*tier, 3));
    EXPECT_FALSE(comes_back(*tier, 7));
    write(*tier, 3);  // it has that one
    tier->wait();
    EXPECT_EQ(tier->metrics().num_written, 10);
    EXPECT_EQ(tier->metrics().num_read, 1);
  }
  const auto tier = open();
  EXPECT_EQ(tier->secret(), secret);
  for (int number = 0; number < 5; ++number) {
    EXPECT_TRUE(comes_back(*tier, number));
    EXPECT_TRUE(comes_back(*tier, number, 1));
  }
  EXPECT_EQ(tier->metrics().held_bytes, 5 * (kFileBytes + KvDiskFolder::kHeaderBytes + kBlockBytes[1]));
  EXPECT_EQ(warnings_, std::vector<std::string>());
  EXPECT_EQ(mode_of(folder_.file("kv")), 0700u);
  EXPECT_EQ(mode_of(folder_.file("kv/secret")), 0600u);
  EXPECT_EQ(mode_of(files()[0]), 0600u);
  EXPECT_EQ(mode_of(files()[0].parent_path()), 0700u);
}

TEST_F(KvDiskTierTest, EveryDamagedByteIsSeenAndTheFileRemoved) {
  int64_t num_rejected = 0;
  // Of the header its checksum and what it covers but for what tells whose file it is; of the block its ends and its middle.
  for (const int64_t at : {24L, 96L, 104L, 120L, 127L, 128L, 600L, kFileBytes - 1}) {
    SCOPED_TRACE(at);
    const auto tier = open();
    write(*tier, 1);
    tier->wait();
    ASSERT_EQ(files().size(), 1u);
    const std::string name = files()[0].string();
    flip(name, at);
    EXPECT_FALSE(comes_back(*tier, 1));
    EXPECT_FALSE(fs::exists(name));
    EXPECT_EQ(tier->metrics().num_rejected, 1);
    ASSERT_EQ(static_cast<int64_t>(warnings_.size()), ++num_rejected);
    EXPECT_NE(warnings_.back().find(name), std::string::npos);
    EXPECT_FALSE(comes_back(*tier, 1));
    EXPECT_EQ(static_cast<int64_t>(warnings_.size()), num_rejected) << "warned twice";
    write(*tier, 1);  // computed again, and kept again
    tier->wait();
    EXPECT_TRUE(comes_back(*tier, 1));
    EXPECT_EQ(tier->metrics().held_bytes, kFileBytes);
    fs::remove(name);
  }
}

TEST_F(KvDiskTierTest, ATruncatedOrExtendedFileIsRemoved) {
  for (const int64_t size : {int64_t{0}, int64_t{50}, KvDiskFolder::kHeaderBytes, kFileBytes - 1, kFileBytes + 1}) {
    SCOPED_TRACE(size);
    {
      const auto tier = open();
      write(*tier, 1);
    }
    ASSERT_EQ(files().size(), 1u);
    fs::resize_file(files()[0], static_cast<std::uintmax_t>(size));
    const auto tier = open();
    warnings_.clear();
    EXPECT_TRUE(tier->contains(0, digest_of(1)));
    EXPECT_FALSE(comes_back(*tier, 1));
    ASSERT_EQ(warnings_.size(), 1u);
    EXPECT_NE(warnings_[0].find(fmt::format("has {} bytes, expected {}", size, kFileBytes)), std::string::npos) << warnings_[0];
    EXPECT_TRUE(files().empty());
  }
}

TEST_F(KvDiskTierTest, FilesOfAnotherFingerprintAreNotRead) {
  KvDiskOptions other = options();
  other.fingerprint = "model b";
  {
    const auto tier = open(other);
    write(*tier, 1);
  }
  ASSERT_EQ(files().size(), 1u);
  const fs::path of_other = files()[0];
  const auto tier = open();
  EXPECT_FALSE(tier->contains(0, digest_of(1)));
  EXPECT_EQ(tier->metrics().held_bytes, kFileBytes) << "it counts";
  EXPECT_EQ(tier->secret(), tier->secret());
  write(*tier, 1);
  tier->wait();
  EXPECT_TRUE(comes_back(*tier, 1));
  // The other's file under our name.
  const auto ours = files()[0] == of_other ? files()[1] : files()[0];
  fs::copy_file(of_other, ours, fs::copy_options::overwrite_existing);
  EXPECT_FALSE(comes_back(*tier, 1));
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find("fingerprint"), std::string::npos) << warnings_[0];
  EXPECT_NE(warnings_[0].find("ignored"), std::string::npos) << warnings_[0];
  EXPECT_TRUE(fs::exists(ours)) << "it is not ours to remove";
  write(*tier, 1);
  tier->wait();
  EXPECT_FALSE(comes_back(*tier, 1)) << "nor to write over";
}

TEST_F(KvDiskTierTest, BlocksUnderAnothersNameAndLinksAreNotBelieved) {
  {
    const auto tier = open();
    write_all(*tier, 2);
  }
  const auto both = files();
  ASSERT_EQ(both.size(), 2u);
  fs::copy_file(both[0], both[1], fs::copy_options::overwrite_existing);
  fs::rename(both[0], folder_.file("elsewhere"));
  fs::create_symlink(folder_.file("elsewhere"), both[0]);
  const auto tier = open();
  EXPECT_FALSE(comes_back(*tier, 0) || comes_back(*tier, 1));
  EXPECT_EQ(tier->metrics().num_rejected, 1);  // a link is not even listed
}

TEST_F(KvDiskTierTest, StrangersAreNamedAndLeftAlone) {
  fs::create_directories(folder_.file("kv/ab"));
  folder_.write("kv/notes.txt", "mine");
  const std::string name = "kv/ab/0123456789abcdef-0-" + std::string(64, 'a') + ".kv";
  folder_.write(name, "something else");
  KvDiskOptions small = options();
  small.max_bytes = kFileBytes;
  const auto tier = open(small);
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find("notes.txt"), std::string::npos);
  write_all(*tier, 2);
  EXPECT_TRUE(fs::exists(folder_.file("kv/notes.txt")) && fs::exists(folder_.file(name)));
  ASSERT_EQ(warnings_.size(), 2u);
  EXPECT_NE(warnings_[1].find("is no file of KV blocks"), std::string::npos) << warnings_[1];
}

TEST_F(KvDiskTierTest, TheLimitHoldsAndWhatWasUnusedLongestGoes) {
  KvDiskOptions limited = options();
  limited.max_bytes = 4 * kFileBytes + 10;
  {
    const auto tier = open(limited);
    write_all(*tier, 4);
    tier->touch(0, digest_of(0));
    EXPECT_TRUE(comes_back(*tier, 1));
    write(*tier, 4), write(*tier, 5);
    tier->wait();
    EXPECT_EQ(files().size(), 4u);
    EXPECT_EQ(tier->metrics().held_bytes, 4 * kFileBytes);
    EXPECT_FALSE(tier->contains(0, digest_of(2)) || tier->contains(0, digest_of(3)));
    EXPECT_TRUE(tier->contains(0, digest_of(0)));
  }
  // The order is that of use, also at the next start: 0, 1, 4, 5.
  limited.max_bytes = 3 * kFileBytes;
  {
    const auto tier = open(limited);
    EXPECT_EQ(files().size(), 3u);
    EXPECT_FALSE(comes_back(*tier, 0));
    EXPECT_TRUE(comes_back(*tier, 1));
  }
  limited.max_bytes = kFileBytes;
  const auto tier = open(limited);
  EXPECT_TRUE(comes_back(*tier, 1));
  EXPECT_EQ(files().size(), 1u);
  EXPECT_EQ(warnings_, std::vector<std::string>());
}

TEST_F(KvDiskTierTest, WhatIsForgottenIsGone) {
  const auto tier = open();
  write_all(*tier, 2);
  tier->forget(0, digest_of(0));
  EXPECT_FALSE(comes_back(*tier, 0));
  EXPECT_TRUE(comes_back(*tier, 1));
  for (int number = 10; number < 40; ++number) {
    write(*tier, number);
    tier->forget(0, digest_of(number));  // queued, being written, or written
  }
  tier->wait();
  for (int number = 10; number < 40; ++number) EXPECT_FALSE(tier->contains(0, digest_of(number)));
  EXPECT_EQ(files().size(), 1u);
  EXPECT_EQ(tier->metrics().held_bytes, kFileBytes);
}

TEST_F(KvDiskTierTest, AFullQueueDropsBlocksAndWaitsForNothing) {
  KvDiskOptions options = this->options();
  options.queue_bytes = 1;  // one block at a time
  const auto tier = open(options);
  for (int number = 0; number < 200; ++number) write(*tier, number);
  tier->wait();
  const KvDiskMetrics metrics = tier->metrics();
  EXPECT_EQ(metrics.num_written + metrics.num_dropped, 200);
  EXPECT_GT(metrics.num_written, 0);
  EXPECT_EQ(metrics.num_written, static_cast<int64_t>(files().size()));
}

TEST_F(KvDiskTierTest, AFolderThatCannotBeUsedSaysWhy) {
  const auto error_of = [&](const std::string& folder) {
    KvDiskOptions options = this->options();
    options.folder = folder;
    const auto tier = KvDiskTier::open(options, {1000});
    return tier.is_ok() ? std::string() : tier.status().message();
  };
  folder_.write("file", "");
  EXPECT_NE(error_of(folder_.file("file")).find("file"), std::string::npos);
  EXPECT_NE(error_of("/proc/no such place/kv").find("/proc/no such place/kv"), std::string::npos);
  const auto tier = open();
  EXPECT_NE(error_of(folder_.file("kv")).find("another process"), std::string::npos);
  fs::create_directories(folder_.file("short"));
  folder_.write("short/secret", "too short");
  ::chmod(folder_.file("short/secret").c_str(), 0600);
  EXPECT_NE(error_of(folder_.file("short")).find("has 9 bytes and mode 0600, expected 32"), std::string::npos);
  if (::geteuid() == 0) return;  // may write anywhere
  fs::create_directories(folder_.file("closed"));
  ::chmod(folder_.file("closed").c_str(), 0500);
  EXPECT_NE(error_of(folder_.file("closed")).find("Permission denied"), std::string::npos);
}

TEST_F(KvDiskTierTest, ADiskThatCannotBeWrittenEndsTheWritingOnly) {
  const auto tier = open();
  write_all(*tier, 3);
  // A limit on the size of files stands for a full disk.
  struct rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit tiny{500, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tiny), 0);
  write(*tier, 5), write(*tier, 6);
  tier->wait();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find("no more blocks are kept"), std::string::npos) << warnings_[0];
  EXPECT_FALSE(tier->metrics().is_writing);
  write(*tier, 7);
  tier->wait();
  EXPECT_EQ(files().size(), 3u);
  EXPECT_TRUE(comes_back(*tier, 2));
  EXPECT_FALSE(fs::exists(folder_.file("kv/partial")));
}

}  // namespace
}  // namespace millrace
