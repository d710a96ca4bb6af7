#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::gguf_test {

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> data;
};

// A minimal GGUF v3 writer: f32 tensors, and metadata of a few kinds.
class Writer {
 public:
  void text(std::string_view key, std::string_view value) {
    entry(key, 8);
    string(metadata_, value);
  }
  void integer(std::string_view key, uint32_t value) {
    entry(key, 4);
    raw(metadata_, value);
  }
  void real(std::string_view key, float value) {
    entry(key, 6);
    raw(metadata_, value);
  }
  void boolean(std::string_view key, bool value) {
    entry(key, 7);
    metadata_ += value ? '\1' : '\0';
  }
  void booleans(std::string_view key, const std::vector<bool>& values) {
    entry(key, 9);
    raw(metadata_, uint32_t{7});
    raw(metadata_, static_cast<uint64_t>(values.size()));
    for (const bool value : values) metadata_ += value ? '\1' : '\0';
  }
  void integers(std::string_view key, const std::vector<int32_t>& values) {
    entry(key, 9);
    raw(metadata_, uint32_t{5});
    raw(metadata_, static_cast<uint64_t>(values.size()));
    for (const int32_t value : values) raw(metadata_, value);
  }
  void tensor(std::string_view name, const Tensor& tensor) {
    string(infos_, name);
    raw(infos_, static_cast<uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size) raw(infos_, static_cast<uint64_t>(*size));
    raw(infos_, uint32_t{0});
    raw(infos_, static_cast<uint64_t>(data_.size()));
    data_.append(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size() * sizeof(float));
    data_.resize((data_.size() + 31) / 32 * 32);
    ++tensors_;
  }
  void write(const std::filesystem::path& path) const {
    std::string out = "GGUF";
    raw(out, uint32_t{3});
    raw(out, tensors_);
    raw(out, entries_);
    out += metadata_ + infos_;
    out.resize((out.size() + 31) / 32 * 32);
    std::ofstream(path, std::ios::binary) << out << data_;
  }

 private:
  template <class T>
  static void raw(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void string(std::string& out, std::string_view value) {
    raw(out, static_cast<uint64_t>(value.size()));
    out += value;
  }
  void entry(std::string_view key, uint32_t type) {
    string(metadata_, key);
    raw(metadata_, type);
    ++entries_;
  }

  std::string metadata_, infos_, data_;
  uint64_t entries_ = 0, tensors_ = 0;
};

}  // namespace millrace::gguf_test
