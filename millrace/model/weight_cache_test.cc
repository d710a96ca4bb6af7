#include "millrace/model/weight_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "millrace/base/temporary_directory.h"
#include "millrace/base/test_data.h"
#include "millrace/model/cpu_executor.h"
#include "millrace/model/family.h"
#include "millrace/model/sequence_runner.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

const std::atomic<bool> kNeverStop = false;

struct Model {
  Checkpoint checkpoint;
  Network network;
};

void open_model(const fs::path& directory, std::unique_ptr<Model>& model) {
  auto checkpoint = Checkpoint::open(directory.string());
  ASSERT_TRUE(checkpoint.is_ok()) << checkpoint.status().message();
  model = std::make_unique<Model>(Model{std::move(checkpoint).value(), {}});
  const auto family = choose_family(model->checkpoint, std::nullopt);
  ASSERT_TRUE(family.is_ok()) << family.status().message();
  auto network = bind_network(*family, model->checkpoint);
  ASSERT_TRUE(network.is_ok()) << network.status().message();
  model->network = std::move(network).value();
}

fs::path golden(std::string_view name) { return source_dir() / "tests/golden/models" / name; }

WeightCacheOptions keep_all(const fs::path& folder) {
  WeightCacheOptions options;
  options.folder = (folder / "weights").string();
  options.min_bytes = 0;
  return options;
}

std::vector<float> logits(const Model& model, std::shared_ptr<const Weights> weights, ThreadPool& pool) {
  const Isa isa = *choose_isa();
  Program program = lower_network(model.network, *weights, isa, GemmPath::kFast);
  fuse(program);
  auto executor =
      CpuExecutor::create(model.network, std::move(weights), std::move(program), pool, {isa, GemmPath::kFast, KvDType::kBf16, 32});
  auto runner = SequenceRunner::create(**executor, 32);
  runner->reset(32);
  std::vector<int32_t> tokens(20);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 13 % 64);
  std::vector<float> out;
  EXPECT_TRUE(runner->append(tokens, 32, true, [&](int64_t, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); })
                  .is_ok());
  return out;
}

bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

// Every weight class that the goldens have: plain, GPTQ, AWQ, bitsandbytes, FP8, mixtures of experts.
TEST(WeightCache, GivesBackEveryModelsWeightsAndLogitsBitForBit) {
  const TemporaryDirectory folder;
  ThreadPool pool(2);
  int num_models = 0;
  for (const auto& entry : fs::directory_iterator(source_dir() / "tests/golden/models")) {
    SCOPED_TRACE(entry.path().filename().string());
    std::unique_ptr<Model> model;
    open_model(entry.path(), model);
    ASSERT_TRUE(model);
    auto packed = Weights::pack(model->network, model->checkpoint, pool);
    ASSERT_TRUE(packed.is_ok()) << packed.status().message();
    const auto fresh = std::make_shared<const Weights>(std::move(packed).value());
    const WeightCache cache(model->network, model->checkpoint, *fresh, keep_all(folder.path()));
    const Status written = cache.write(*fresh, kNeverStop);
    ASSERT_TRUE(written.is_ok()) << written.message();
    const std::vector<float> want = logits(*model, fresh, pool);
    for (const auto place : {WeightCacheOptions::Place::kMapped, WeightCacheOptions::Place::kCopied}) {
      auto planned = Weights::plan(model->network, pool);
      ASSERT_TRUE(planned.is_ok());
      WeightCacheOptions options = keep_all(folder.path());
      options.place = place;
      const Status mapped = WeightCache(model->network, model->checkpoint, *planned, options).map(*planned, pool);
      ASSERT_TRUE(mapped.is_ok()) << mapped.message();
      EXPECT_TRUE(same_bytes(planned->panels(), fresh->panels()));
      EXPECT_EQ(logits(*model, std::make_shared<const Weights>(std::move(planned).value()), pool), want);
    }
    ++num_models;
  }
  EXPECT_GE(num_models, 46);
}

class CacheOfLlama : public testing::Test {
 protected:
  void SetUp() override {
    fs::copy(golden("llama"), folder_.file("llama"), fs::copy_options::recursive);
    open();
    ASSERT_TRUE(cache().write(*weights_, kNeverStop).is_ok());
  }

  void open() {
    open_model(folder_.file("llama"), model_);
    ASSERT_TRUE(model_);
    auto packed = Weights::pack(model_->network, model_->checkpoint, pool_);
    ASSERT_TRUE(packed.is_ok());
    weights_.emplace(std::move(packed).value());
  }

  WeightCache cache() const { return {model_->network, model_->checkpoint, *weights_, keep_all(folder_.path())}; }

  Status map() {
    auto planned = Weights::plan(model_->network, pool_);
    const Status status = cache().map(*planned, pool_);
    EXPECT_EQ(planned->panels().empty(), !status.is_ok()) << "an error gives no weights";
    EXPECT_TRUE(!status.is_ok() || same_bytes(planned->panels(), weights_->panels()));
    return status;
  }

  std::string read() const {
    std::ifstream file(cache().path(), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // In place, as a broken disk would.
  void overwrite(const std::string& bytes) const {
    std::ofstream file(cache().path(), std::ios::binary | std::ios::trunc);
    file << bytes;
  }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_.file("weights"))) names.push_back(entry.path().filename().string());
    return names;
  }

  TemporaryDirectory folder_;
  ThreadPool pool_{2};
  std::unique_ptr<Model> model_;
  std::optional<Weights> weights_;
};

TEST_F(CacheOfLlama, AnUnchangedFileIsBelieved) {
  EXPECT_TRUE(map().is_ok());
  EXPECT_EQ(files().size(), 1u);
  EXPECT_TRUE(files()[0].starts_with("llama-") && files()[0].ends_with(".packed")) << files()[0];
  struct stat info{};
  ASSERT_EQ(::stat(cache().path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  ASSERT_EQ(::stat(folder_.file("weights").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
}

TEST_F(CacheOfLlama, EveryChangedByteIsFound) {
  const std::string good = read();
  const auto panels = static_cast<std::size_t>(static_cast<int64_t>(good.size()) - weights_->bytes());
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < 192; ++i) places.push_back(i);  // header and first checksum
  for (std::size_t i = 0; i < 40; ++i) places.push_back(panels + i * (good.size() - panels) / 40);
  places.push_back(good.size() - 1);
  for (const std::size_t place : places) {
    std::string bad = good;
    bad[place] = static_cast<char>(bad[place] ^ 4);
    overwrite(bad);
    const Status status = map();
    EXPECT_FALSE(status.is_ok()) << "byte " << place;
    EXPECT_NE(status.message().find(cache().path()), std::string::npos) << "names the file";
  }
  overwrite(good);
  EXPECT_TRUE(map().is_ok());
}

TEST_F(CacheOfLlama, AFileOfTheWrongSizeIsRefused) {
  const std::string good = read();
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{100}, std::size_t{4096}, good.size() / 2, good.size() - 1}) {
    overwrite(good.substr(0, size));
    EXPECT_EQ(map().code(), StatusCode::kDataLoss) << size;
  }
  overwrite(good + "x");
  EXPECT_EQ(map().code(), StatusCode::kDataLoss);
  overwrite(std::string(good.size(), 'x'));
  EXPECT_NE(map().message().find("is no file of packed weights"), std::string::npos);
}

TEST_F(CacheOfLlama, IsWrittenAgainOverABrokenOne) {
  overwrite("broken");
  ASSERT_TRUE(cache().write(*weights_, kNeverStop).is_ok());
  EXPECT_TRUE(map().is_ok());
}

TEST_F(CacheOfLlama, IsOfThisVersionOfTheModel) {
  const fs::path file = folder_.file("llama/model.safetensors");
  const auto written = fs::last_write_time(file);
  // The same bytes at another time, then another file of the same size and time: neither can be told from a changed one.
  fs::last_write_time(file, written + std::chrono::seconds(1));
  open();
  EXPECT_EQ(map().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(map().message().find("another version of the model"), std::string::npos);
  fs::copy_file(file, folder_.file("copy"));
  fs::rename(folder_.file("copy"), file);
  fs::last_write_time(file, written);
  open();
  EXPECT_EQ(map().code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(cache().write(*weights_, kNeverStop).is_ok());
  EXPECT_TRUE(map().is_ok());
  EXPECT_EQ(files().size(), 1u) << "replaces what was made of the older version";
}

TEST_F(CacheOfLlama, IsOfThisConfiguration) {
  std::ifstream in(folder_.file("llama/config.json"));
  std::string config{std::istreambuf_iterator<char>(in), {}};
  config.insert(config.find('{') + 1, "\"remark\": 1,");
  std::ofstream(folder_.file("llama/config.json")) << config;
  open();
  EXPECT_EQ(map().code(), StatusCode::kInvalidArgument);
}

TEST_F(CacheOfLlama, IsTheUsersOwnFile) {
  const std::string path = cache().path();
  fs::rename(path, path + ".elsewhere");
  fs::create_symlink(path + ".elsewhere", path);
  EXPECT_FALSE(map().is_ok());
  fs::remove(path);
  EXPECT_EQ(map().code(), StatusCode::kNotFound);
  fs::rename(path + ".elsewhere", path);
  fs::permissions(path, fs::perms::group_write, fs::perm_options::add);
  EXPECT_NE(map().message().find("no one else to write"), std::string::npos);
}

TEST_F(CacheOfLlama, WritersDoNotDisturbEachOther) {
  const std::string partial = cache().path() + ".partial";
  const int other = ::open(partial.c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_GE(other, 0);
  ASSERT_EQ(::write(other, "half", 4), 4);
  ASSERT_EQ(::flock(other, LOCK_EX), 0);
  const Status busy = cache().write(*weights_, kNeverStop);
  EXPECT_EQ(busy.code(), StatusCode::kCancelled);
  EXPECT_NE(busy.message().find("another process"), std::string::npos);
  EXPECT_EQ(fs::file_size(partial), 4u) << "left alone";
  EXPECT_TRUE(map().is_ok());
  ::close(other);  // as if it had been killed: what it left is overwritten
  EXPECT_TRUE(cache().write(*weights_, kNeverStop).is_ok());
  EXPECT_FALSE(fs::exists(partial));

  std::atomic<int> num_written = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) {
        const Status status = cache().write(*weights_, kNeverStop);
        num_written += status.is_ok();
        EXPECT_TRUE(status.is_ok() || status.code() == StatusCode::kCancelled) << status.message();
      }
    });
  }
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(map().is_ok()) << "a reader sees a whole file";
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(num_written, 0);
  EXPECT_TRUE(map().is_ok());
}

TEST_F(CacheOfLlama, AWriterThatCannotFinishLeavesNothing) {
  fs::remove(cache().path());
  const std::atomic<bool> stop = true;
  EXPECT_EQ(cache().write(*weights_, stop).code(), StatusCode::kCancelled);
  EXPECT_TRUE(files().empty());

  // A disk that fills up: here a limit on the size of files.
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{rlim_t{2} << 20, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  const Status full = cache().write(*weights_, kNeverStop);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(full.code(), StatusCode::kUnavailable) << full.message();
  EXPECT_TRUE(files().empty());

  WeightCacheOptions options = keep_all(folder_.path());
  std::ofstream(folder_.file("in the way")) << "x";
  options.folder = folder_.file("in the way/weights");
  EXPECT_FALSE(WeightCache(model_->network, model_->checkpoint, *weights_, options).write(*weights_, kNeverStop).is_ok());
}

TEST_F(CacheOfLlama, TheLongestUnusedMakeRoom) {
  const auto size = static_cast<int64_t>(fs::file_size(cache().path()));
  const fs::path folder = folder_.file("weights");
  const auto now = fs::file_time_type::clock::now();
  const auto other = [&](const char* name, int hours) {
    std::ofstream(folder / name) << "x";
    fs::resize_file(folder / name, static_cast<std::uintmax_t>(size));
    fs::last_write_time(folder / name, now - std::chrono::hours(hours));
  };
  other("old.packed", 3), other("older.packed", 4), other("new.packed", 1), other("killed.packed.partial", 48), other("notes.txt", 48);
  WeightCacheOptions options = keep_all(folder_.path());
  options.max_bytes = 3 * size;
  ASSERT_TRUE(WeightCache(model_->network, model_->checkpoint, *weights_, options).write(*weights_, kNeverStop).is_ok());
  EXPECT_TRUE(fs::exists(folder / "new.packed") && fs::exists(folder / "old.packed"));
  EXPECT_FALSE(fs::exists(folder / "older.packed"));
  EXPECT_FALSE(fs::exists(folder / "killed.packed.partial"));
  EXPECT_TRUE(fs::exists(folder / "notes.txt")) << "not ours";

  // Being mapped is being used.
  fs::last_write_time(cache().path(), now - std::chrono::hours(9));
  ASSERT_TRUE(map().is_ok());
  EXPECT_GT(fs::last_write_time(cache().path()), now - std::chrono::hours(1));

  options.max_bytes = weights_->bytes() - 1;
  EXPECT_FALSE(WeightCache(model_->network, model_->checkpoint, *weights_, options).is_wanted());
  options = keep_all(folder_.path());
  options.min_bytes = weights_->bytes() + 1;
  EXPECT_FALSE(WeightCache(model_->network, model_->checkpoint, *weights_, options).is_wanted());
}

}  // namespace
}  // namespace millrace
