#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

// A folder whose files are the fuzzer's input: empty, or a copy of a tiny model of tests/golden in which the input takes the place of one
// file.
class ModelDirectory {
 public:
  ModelDirectory() {
    std::string name = (std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp") + std::string("/millrace_fuzz_XXXXXX");
    if (mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  explicit ModelDirectory(std::string_view model) : ModelDirectory() {
    const char* source = std::getenv("MILLRACE_SOURCE_DIR");
    const std::filesystem::path golden = std::filesystem::path(source == nullptr ? "." : source) / "tests/golden/models" / model;
    if (!std::filesystem::exists(golden)) std::abort();
    for (const char* file : {"config.json", "model.safetensors"}) std::filesystem::copy_file(golden / file, path_ / file);
  }
  ~ModelDirectory() { std::filesystem::remove_all(path_); }
  ModelDirectory(const ModelDirectory&) = delete;
  ModelDirectory& operator=(const ModelDirectory&) = delete;

  std::string path() const { return path_.string(); }
  void replace(const char* file, std::string_view content) const {
    std::ofstream(path_ / file, std::ios::binary | std::ios::trunc).write(content.data(), static_cast<std::streamsize>(content.size()));
  }

 private:
  std::filesystem::path path_;
};
