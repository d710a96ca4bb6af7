#include "millrace/formats/safetensors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "millrace/formats/test_files.h"

namespace millrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

constexpr std::string_view kGoodHeader =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},"a\u00e9":{"dtype":"F32","shape":[2],)"
    R"("data_offsets":[0,8]},"empty":{"dtype":"I64","shape":[0,7],"data_offsets":[20,20]},"scalar":{"dtype":"U8","shape":[],"data_offsets":[20,21]}}   )";

std::string good_bytes() { return safetensors_bytes(kGoodHeader, "aaaaaaaabbbbbbbbbbbbs"); }

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirBytes) {
  TemporaryDirectory directory;
  const auto file = SafetensorsFile::open(directory.write("m.safetensors", good_bytes()));
  ASSERT_TRUE(file.is_ok()) << file.status().message();
  EXPECT_THAT(std::vector(file->metadata().begin(), file->metadata().end()), ElementsAre(Pair("format", "pt")));
  ASSERT_EQ(file->tensors().size(), 4u);
  const auto& tensors = file->tensors();
  EXPECT_EQ(tensors[0].name, "a\xc3\xa9");
  EXPECT_EQ(tensors[0].dtype, DType::kF32);
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_EQ(tensors[1].dtype, DType::kBf16);
  EXPECT_THAT(tensors[1].shape, ElementsAre(2, 3));
  EXPECT_EQ(tensors[1].data.size(), 12u);
  EXPECT_EQ(tensors[1].data[11], std::byte{'b'});
  EXPECT_TRUE(tensors[2].data.empty());
  EXPECT_TRUE(tensors[3].shape.empty());
  EXPECT_EQ(tensors[3].data[0], std::byte{'s'});
}

struct BadCase {
  const char* what;
  std::string bytes;
  const char* message;
};

// A file of 8 data bytes with this text as header.
std::string with(std::string_view header) { return safetensors_bytes(header, "12345678"); }

std::string deep_header() {
  std::string text = R"({"t":)";
  for (int i = 0; i < 100000; ++i) text += '[';
  return text;
}

std::vector<BadCase> bad_cases() {
  return {
      {"empty file", "", "too few"},
      {"seven bytes", "1234567", "too few"},
      {"header beyond the file", ByteWriter().put<uint64_t>(100).raw("{}").bytes, "says its header has 100 bytes, 2 are left"},
      {"header over 100 MB", ByteWriter().put<uint64_t>(100'000'001).raw("{}").bytes, "at most 100000000"},
      {"header of 2^64 - 1", ByteWriter().put(~uint64_t{0}).raw("{}").bytes, "at most 100000000"},
      {"empty header", with(""), "does not start"},
      {"header is an array", with("[]"), "does not start"},
      {"leading space", with(" {}"), "does not start"},
      {"not JSON", with("{nonsense"), "invalid JSON"},
      {"JSON cut short", with(R"({"a":{"dtype":"F32")"), "invalid JSON"},
      {"something after the JSON", with(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}{)"), "something follows"},
      {"invalid UTF-8", with("{\"\xff\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}"), "invalid JSON"},
      {"nested 100,000 deep", with(deep_header()), "array where none belongs"},
      {"entry is a string", with(R"({"t":"F32"})"), "unexpected string"},
      {"entry is null", with(R"({"t":null})"), "unexpected null"},
      {"entry holds an object", with(R"({"t":{"dtype":{}}})"), "an object where none belongs"},
      {"unknown field", with(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"strides":[1]}})"), "unexpected array \"strides\""},
      {"no dtype", with(R"({"t":{"shape":[2],"data_offsets":[0,8]}})"), "lacks dtype"},
      {"no shape", with(R"({"t":{"dtype":"F32","data_offsets":[0,8]}})"), "lacks dtype"},
      {"no offsets", with(R"({"t":{"dtype":"F32","shape":[2]}})"), "lacks dtype"},
      {"one offset", with(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[8]}})"), "lacks dtype"},
      {"three offsets", with(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})"), "more than two"},
      {"field twice", with(R"({"t":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})"), "unexpected string"},
      {"unknown dtype", with(R"({"t":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})"), "dtype \"F33\""},
      {"quantized GGUF dtype", with(R"({"t":{"dtype":"Q8_0","shape":[2],"data_offsets":[0,8]}})"), "dtype \"Q8_0\""},
      {"negative dimension", with(R"({"t":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})"), "unexpected number -2"},
      {"fractional dimension", with(R"({"t":{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}})"), "not an integer"},
      {"dimension 2^63", with(R"({"t":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}})"), "too large"},
      {"dimension as text", with(R"({"t":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}})"), "unexpected string"},
      {"shape overflows", with(R"({"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})"), "overflows"},
      {"shape overflows before a zero", with(R"({"t":{"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})"),
       "overflows"},
      {"bytes overflow", with(R"({"t":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,8]}})"), "overflows"},
      {"shape too large", with(R"({"t":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})"), "needs 12 bytes, data_offsets give it 8"},
      {"shape too small", with(R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})"), "needs 4 bytes"},
      {"end before begin", with(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})"), "bytes 8 to 0"},
      {"end beyond the file", with(R"({"t":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})"), "bytes 0 to 16 of 8"},
      {"overlap", with(R"({"t":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},"u":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})"),
       "overlap"},
      {"hole", with(R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"u":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})"),
       "bytes 2 to 4"},
      {"hole at the start", with(R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})"), "bytes 0 to 4"},
      {"bytes left at the end", with(R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})"), "end at byte 4 of the data"},
      {"no tensors but data", with("{}"), "end at byte 0"},
      {"name twice", with(R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"t":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})"),
       "occurs twice"},
      {"metadata is no object", with(R"({"__metadata__":3})"), "unexpected number"},
      {"metadata holds a number", with(R"({"__metadata__":{"a":3}})"), "unexpected number"},
      {"metadata holds an object", with(R"({"__metadata__":{"a":{}}})"), "an object where none belongs"},
  };
}

TEST(Safetensors, RefusesEveryBadFileWithItsReason) {
  TemporaryDirectory directory;
  const auto cases = bad_cases();
  ASSERT_GE(cases.size(), 20u);
  for (const auto& bad : cases) {
    SCOPED_TRACE(bad.what);
    const auto file = SafetensorsFile::open(directory.write("bad.safetensors", bad.bytes));
    ASSERT_FALSE(file.is_ok());
    EXPECT_THAT(file.status().message(), HasSubstr(bad.message));
    EXPECT_THAT(file.status().message(), HasSubstr("bad.safetensors"));
  }
}

TEST(Safetensors, MoreThanAMillionTensorsAreRefused) {
  std::string header = "{";
  for (int i = 0; i <= 1'000'000; ++i)
    fmt::format_to(std::back_inserter(header), R"({}"{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", i ? "," : "", i);
  TemporaryDirectory directory;
  const auto file = SafetensorsFile::open(directory.write("m.safetensors", safetensors_bytes(header + "}", "")));
  ASSERT_FALSE(file.is_ok());
  EXPECT_THAT(file.status().message(), HasSubstr("more than 1000000 tensors"));
}

TEST(Safetensors, DamagedFilesGiveAnErrorOrAValidParse) {
  TemporaryDirectory directory;
  const std::string good = good_bytes();
  std::mt19937 random(7);
  int refused = 0, accepted = 0;
  for (int i = 0; i < 200; ++i) {
    const std::size_t place = random() % good.size();
    EXPECT_FALSE(SafetensorsFile::open(directory.write("d.safetensors", good.substr(0, place))).is_ok()) << "cut at " << place;
    std::string flipped = good;
    flipped[place] = static_cast<char>(flipped[place] ^ (1 << (random() % 8)));
    const auto file = SafetensorsFile::open(directory.write("d.safetensors", flipped));
    file.is_ok() ? ++accepted : ++refused;
    if (!file.is_ok()) continue;
    int64_t bytes = 0;
    for (const auto& tensor : file->tensors())
      bytes += std::ranges::count(tensor.data, std::byte{0}) + static_cast<int64_t>(tensor.data.size());
    EXPECT_GE(bytes, 21);
  }
  EXPECT_GT(refused, 50);
  EXPECT_GT(accepted, 10);
}

// ---- Shards

std::string one_tensor(std::string_view name) {
  return safetensors_bytes(fmt::format(R"({{"{}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}})", name), "abcd");
}

TEST(SafetensorsShards, TheIndexNamesTheFiles) {
  TemporaryDirectory directory;
  directory.write("model-00001-of-00002.safetensors", one_tensor("x"));
  directory.write("model-00002-of-00002.safetensors", one_tensor("y"));
  directory.write(
      "model.safetensors.index.json",
      R"({"metadata":{"total_size":8},"weight_map":{"y":"model-00002-of-00002.safetensors","x":"model-00001-of-00002.safetensors"}})");
  const auto files = open_safetensors(directory.path());
  ASSERT_TRUE(files.is_ok()) << files.status().message();
  ASSERT_EQ(files->size(), 2u);
  EXPECT_EQ((*files)[0].tensors()[0].name, "x");
  EXPECT_EQ((*files)[1].tensors()[0].name, "y");
}

TEST(SafetensorsShards, BadIndexesAreRefused) {
  TemporaryDirectory outside;
  outside.write("secret.safetensors", one_tensor("x"));
  TemporaryDirectory directory;
  directory.write("a.safetensors", one_tensor("x"));
  std::filesystem::create_directory(directory.file("sub"));
  directory.write("sub/b.safetensors", one_tensor("x"));
  const struct {
    std::string index;
    const char* message;
  } cases[] = {
      {R"({"weight_map":{"x":"../secret.safetensors"}})", "expected a plain name"},
      {fmt::format(R"({{"weight_map":{{"x":"{}"}}}})", outside.file("secret.safetensors")), "expected a plain name"},
      {R"({"weight_map":{"x":"sub/b.safetensors"}})", "expected a plain name"},
      {R"({"weight_map":{"x":"sub\\b.safetensors"}})", "expected a plain name"},
      {R"({"weight_map":{"x":".."}})", "expected a plain name"},
      {R"({"weight_map":{"x":""}})", "expected a plain name"},
      {R"({"weight_map":{"x":".a.safetensors"}})", "expected a plain name"},
      {R"({"weight_map":{"x":"a.safetensors\u0000.safetensors"}})", "expected a plain name"},
      {R"({"weight_map":{"x":"model.bin"}})", "ends in .safetensors"},
      {R"({"weight_map":{"x":"absent.safetensors"}})", "absent.safetensors: cannot open"},
      {R"({"weight_map":{"z":"a.safetensors"}})", "lacks tensor \"z\""},
      {R"({"weight_map":{"x":7}})", "not a string"},
      {R"({"weight_map":{}})", "weight_map is empty"},
      {R"({"weight_map":[]})", "has no object \"weight_map\""},
      {R"([1])", "has no object \"weight_map\""},
      {R"({"weight_map")", "invalid JSON"},
  };
  for (const auto& bad : cases) {
    SCOPED_TRACE(bad.index);
    directory.write("model.safetensors.index.json", bad.index);
    const auto files = open_safetensors(directory.path());
    ASSERT_FALSE(files.is_ok());
    EXPECT_THAT(files.status().message(), HasSubstr(bad.message));
  }
}

}  // namespace
}  // namespace millrace
