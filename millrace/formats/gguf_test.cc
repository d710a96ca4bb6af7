#include "millrace/formats/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "millrace/formats/gguf_split_name.h"
#include "millrace/formats/test_files.h"

namespace millrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Every metadata type, and two tensors: "a" is 3 x 4 f32 (48 bytes at 0), "b" 2 x 32 Q8_0 (68 bytes at 64).
GgufParts good_parts() {
  GgufParts parts;
  parts.entries = {
      gguf_text("general.architecture", "tiny"),
      gguf_scalar<uint8_t>("u8", 0, 200),
      gguf_scalar<int8_t>("i8", 1, -5),
      gguf_scalar<uint16_t>("u16", 2, 60000),
      gguf_scalar<int16_t>("i16", 3, -300),
      gguf_scalar<uint32_t>("u32", 4, 4000000000u),
      gguf_scalar<int32_t>("i32", 5, -7),
      gguf_scalar<float>("f32", 6, 1.5f),
      gguf_scalar<uint8_t>("yes", 7, 1),
      gguf_scalar<uint64_t>("u64", 10, 1ull << 40),
      gguf_scalar<int64_t>("i64", 11, -(1ll << 40)),
      gguf_scalar<double>("f64", 12, 0.1),
      gguf_scalar<uint64_t>("huge", 10, ~0ull),
      gguf_texts("texts", {"one", "", "three"}),
      gguf_array<int32_t>("ints", 5, {1, -2, 3}),
      gguf_array<float>("floats", 6, {0.5f, -1.0f}),
      gguf_array<float>("none", 6, {}),
  };
  parts.tensors = {gguf_tensor("a", {4, 3}, 0, 0), gguf_tensor("b", {32, 2}, 8, 64)};
  parts.data = std::string(132, '\0');
  for (std::size_t i = 0; i < parts.data.size(); ++i) parts.data[i] = static_cast<char>(i);
  return parts;
}

TEST(Gguf, ReadsEveryMetadataTypeAndItsTensors) {
  TemporaryDirectory directory;
  for (const uint32_t version : {2u, 3u}) {
    GgufParts parts = good_parts();
    parts.version = version;
    auto opened = GgufFile::open(directory.write("m.gguf", parts.bytes()));
    ASSERT_TRUE(opened.is_ok()) << opened.status().message();
    const GgufFile file = std::move(opened).value();
    EXPECT_EQ(file.version(), version);
    EXPECT_EQ(file.string("general.architecture"), "tiny");
    EXPECT_EQ(file.integer("u8"), 200);
    EXPECT_EQ(file.integer("i8"), -5);
    EXPECT_EQ(file.integer("u16"), 60000);
    EXPECT_EQ(file.integer("i16"), -300);
    EXPECT_EQ(file.integer("u32"), 4000000000);
    EXPECT_EQ(file.integer("i32"), -7);
    EXPECT_EQ(file.integer("u64"), int64_t{1} << 40);
    EXPECT_EQ(file.integer("i64"), -(int64_t{1} << 40));
    EXPECT_EQ(file.integer("huge"), std::nullopt) << "does not fit";
    EXPECT_EQ(file.number("huge"), 0x1p64);
    EXPECT_EQ(file.number("f32"), 1.5);
    EXPECT_EQ(file.number("f64"), 0.1);
    EXPECT_EQ(file.number("i8"), -5.0);
    EXPECT_EQ(file.boolean("yes"), true);
    EXPECT_EQ(file.boolean("u8"), std::nullopt);
    EXPECT_EQ(file.integer("f32"), std::nullopt);
    EXPECT_EQ(file.integer("absent"), std::nullopt);
    EXPECT_THAT(*file.strings("texts"), ElementsAre("one", "", "three"));
    EXPECT_THAT(*file.integers("ints"), ElementsAre(1, -2, 3));
    EXPECT_THAT(*file.floats("floats"), ElementsAre(0.5f, -1.0f));
    EXPECT_THAT(*file.floats("ints"), ElementsAre(1.0f, -2.0f, 3.0f));
    EXPECT_TRUE(file.floats("none")->empty());
    EXPECT_EQ(file.strings("ints"), std::nullopt);

    ASSERT_EQ(file.tensors().size(), 2u);
    const SourceTensor& a = file.tensors()[0];
    EXPECT_EQ(a.name, "a");
    EXPECT_EQ(a.dtype, DType::kF32);
    EXPECT_THAT(a.shape, ElementsAre(3, 4)) << "outermost first";
    EXPECT_EQ(a.data.size(), 48u);
    EXPECT_EQ(a.data[0], std::byte{0});
    const SourceTensor& b = file.tensors()[1];
    EXPECT_EQ(b.dtype, DType::kQ8_0);
    EXPECT_THAT(b.shape, ElementsAre(2, 32));
    EXPECT_EQ(b.data.size(), 68u);
    EXPECT_EQ(b.data[0], std::byte{64});
  }
}

TEST(Gguf, AlignmentComesFromTheFile) {
  TemporaryDirectory directory;
  GgufParts parts;
  parts.alignment = 256;
  parts.entries = {gguf_scalar<uint32_t>("general.alignment", 4, 256)};
  parts.tensors = {gguf_tensor("a", {4}, 0, 0), gguf_tensor("b", {4}, 0, 256)};
  parts.data = std::string(256, 'a') + std::string(16, 'b');
  const auto file = GgufFile::open(directory.write("m.gguf", parts.bytes()));
  ASSERT_TRUE(file.is_ok()) << file.status().message();
  EXPECT_EQ(file->tensors()[1].data[0], std::byte{'b'});
}

struct BadCase {
  const char* what;
  std::function<std::string()> bytes;
  const char* message;
};

// One thing wrong with otherwise good parts.
std::function<std::string()> with(std::function<void(GgufParts&)> spoil) {
  return [spoil] {
    GgufParts parts = good_parts();
    spoil(parts);
    return parts.bytes();
  };
}
std::function<std::string()> with_entry(std::string entry) {
  return with([entry](GgufParts& parts) { parts.entries.push_back(entry); });
}
std::function<std::string()> with_tensors(std::vector<std::string> tensors) {
  return with([tensors](GgufParts& parts) { parts.tensors = tensors; });
}
std::function<std::string()> first_bytes(std::size_t count) {
  return [count] { return good_parts().bytes().substr(0, count); };
}

constexpr uint64_t kHuge = uint64_t{1} << 62;

const std::vector<BadCase>& bad_cases() {
  static const std::vector<BadCase> cases = {
      {"empty file", first_bytes(0), "is not a GGUF file"},
      {"three bytes", first_bytes(3), "is not a GGUF file"},
      {"wrong magic", with([](GgufParts& p) { p.magic = "GGML"; }), "starts with \"GGML\""},
      {"control bytes as magic", with([](GgufParts& p) { p.magic = "\n\x1b[m"; }), "\\x0a\\x1b[m"},
      {"no version", first_bytes(6), "ends within the version"},
      {"version 0", with([](GgufParts& p) { p.version = 0; }), "GGUF version 0"},
      {"version 1", with([](GgufParts& p) { p.version = 1; }), "GGUF version 1"},
      {"version 4", with([](GgufParts& p) { p.version = 4; }), "GGUF version 4"},
      {"big-endian", with([](GgufParts& p) { p.version = 0x03000000; }), "big-endian"},
      {"no counts", first_bytes(12), "ends within the tensor count"},
      {"tensor count beyond the file", with([](GgufParts& p) { p.num_tensors_added = kHuge; }), "tensors, but the"},
      {"tensor count -1", with([](GgufParts& p) { p.num_tensors_added = uint64_t{0} - 3; }), "tensors, but the"},
      {"metadata count beyond the file", with([](GgufParts& p) { p.num_entries_added = kHuge; }), "metadata entries, but the"},
      {"one more metadata entry than there are", with([](GgufParts& p) { p.num_entries_added = 1; }), "the name of tensor 0 is"},
      {"one more tensor than there are", with([](GgufParts& p) { p.num_tensors_added = 1; }), "the name of tensor 2 is empty"},
      {"key length beyond the file", with_entry(ByteWriter().put(kHuge).raw("key").bytes), "are accepted"},
      {"key longer than 64 KiB", with_entry(gguf_text(std::string(65537, 'k'), "v")), "65537 bytes long, at most 65536"},
      {"empty key", with_entry(gguf_text("", "v")), "is empty"},
      {"duplicate key", with_entry(gguf_text("texts", "again")), "\"texts\" occurs twice"},
      {"unknown value type", with_entry(gguf_scalar<uint32_t>("odd", 13, 0)), "\"odd\": unknown value type 13"},
      {"negative value type", with_entry(gguf_scalar<uint32_t>("odd", ~0u, 0)), "unknown value type 4294967295"},
      {"string beyond the file", with_entry(ByteWriter().string("s").put<uint32_t>(8).put(~uint64_t{0}).bytes), "\"s\": a string of"},
      {"bool of 2", with_entry(gguf_scalar<uint8_t>("b", 7, 2)), "neither 0 nor 1"},
      {"array of arrays", with_entry(ByteWriter().string("nested").put<uint32_t>(9).put<uint32_t>(9).put<uint64_t>(1).bytes),
       "array of arrays"},
      {"array of an unknown type", with_entry(ByteWriter().string("odd").put<uint32_t>(9).put<uint32_t>(77).put<uint64_t>(1).bytes),
       "type 77"},
      {"array beyond the file", with_entry(ByteWriter().string("arr").put<uint32_t>(9).put<uint32_t>(5).put(kHuge).bytes),
       "need more than"},
      {"array size overflows", with_entry(ByteWriter().string("arr").put<uint32_t>(9).put<uint32_t>(12).put(uint64_t{1} << 61).bytes),
       "need more than"},
      {"string array beyond the file", with_entry(ByteWriter().string("arr").put<uint32_t>(9).put<uint32_t>(8).put(kHuge).bytes),
       "strings need more"},
      {"string in array beyond the file",
       with_entry(ByteWriter().string("arr").put<uint32_t>(9).put<uint32_t>(8).put<uint64_t>(1).put(kHuge).bytes), "a string of"},
      {"alignment 0", with_entry(gguf_scalar<uint32_t>("general.alignment", 4, 0)), "expected a power of 2"},
      {"alignment 24", with_entry(gguf_scalar<uint32_t>("general.alignment", 4, 24)), "is 24, expected a power of 2"},
      {"alignment as text", with_entry(gguf_text("general.alignment", "32")), "is string, expected uint32"},
      {"alignment as array", with_entry(gguf_array<uint32_t>("general.alignment", 4, {})), "expected uint32"},
      {"alignment of 2 GiB", with_entry(gguf_scalar<uint32_t>("general.alignment", 4, 1u << 31)),
       "no multiple of the alignment 2147483648"},
      {"five dimensions", with_tensors({gguf_tensor("t", {1, 1, 1, 1, 1}, 0, 0)}), "5 dimensions"},
      {"2^32 - 1 dimensions", with_tensors({ByteWriter().string("t").put(~0u).raw(std::string(64, 0)).bytes}), "4294967295 dimensions"},
      {"dimension 0", with_tensors({gguf_tensor("t", {4, 0}, 0, 0)}), "dimension 1 = 0"},
      {"negative dimension", with_tensors({gguf_tensor("t", {~uint64_t{0}}, 0, 0)}), "dimension 0 ="},
      {"element count overflows", with_tensors({gguf_tensor("t", {1ull << 32, 1ull << 31}, 24, 0)}), "overflows"},
      {"element count wraps to a small number", with_tensors({gguf_tensor("t", {1ull << 33, 1ull << 31, 4, 1}, 0, 0)}), "overflows"},
      {"byte count overflows", with_tensors({gguf_tensor("t", {1ull << 61}, 28, 0)}), "overflows"},
      {"row is no whole blocks", with_tensors({gguf_tensor("t", {48}, 12, 0)}), "rows of 48 numbers are no whole blocks of Q4_K"},
      {"unknown tensor type", with_tensors({gguf_tensor("odd.weight", {32}, 99, 0)}), "\"odd.weight\" has type id 99"},
      {"removed tensor type", with_tensors({gguf_tensor("t", {32}, 4, 0)}), "type id 4"},
      {"negative tensor type", with_tensors({gguf_tensor("t", {32}, ~0u, 0)}), "type id 4294967295"},
      {"unaligned offset", with_tensors({gguf_tensor("t", {4}, 0, 8)}), "offset 8, which is no multiple of the alignment 32"},
      {"offset beyond the file", with_tensors({gguf_tensor("t", {4}, 0, 4096)}), "but the file has"},
      {"offset near 2^64", with_tensors({gguf_tensor("t", {4}, 0, ~uint64_t{0} - 31)}), "but the file has"},
      {"tensor ends beyond the file", with_tensors({gguf_tensor("t", {64}, 0, 0)}), "bytes 0 to 256"},
      {"overlapping tensors", with_tensors({gguf_tensor("x", {16}, 0, 0), gguf_tensor("y", {4}, 0, 32)}),
       "tensors \"x\" and \"y\" overlap"},
      {"two tensors at one place", with_tensors({gguf_tensor("x", {4}, 0, 0), gguf_tensor("y", {4}, 0, 0)}), "overlap"},
      {"duplicate tensor name", with_tensors({gguf_tensor("x", {4}, 0, 0), gguf_tensor("x", {4}, 0, 32)}), "\"x\" occurs twice"},
      {"empty tensor name", with_tensors({gguf_tensor("", {4}, 0, 0)}), "is empty"},
      {"long tensor name", with_tensors({gguf_tensor(std::string(65537, 'n'), {4}, 0, 0)}), "at most 65536"},
      {"claims a split of 3 under a plain name", with_entry(gguf_scalar<uint16_t>("split.count", 2, 3)), "not named like one"},
      {"claims a split of 65535", with_entry(gguf_scalar<uint16_t>("split.count", 2, 65535)), "at most 1024"},
  };
  return cases;
}

TEST(Gguf, RefusesEveryBadFileWithItsReason) {
  ASSERT_GE(bad_cases().size(), 32u);
  TemporaryDirectory directory;
  for (const auto& bad : bad_cases()) {
    SCOPED_TRACE(bad.what);
    const auto file = GgufFile::open(directory.write("bad.gguf", bad.bytes()));
    ASSERT_FALSE(file.is_ok());
    EXPECT_THAT(file.status().message(), HasSubstr(bad.message));
    EXPECT_THAT(file.status().message(), HasSubstr("bad.gguf")) << "says which file";
  }
  EXPECT_EQ(GgufFile::open(directory.file("absent.gguf")).status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(GgufFile::open(directory.path()).is_ok()) << "a directory";
}

// Touches everything that a reader might, so that a sanitizer sees any view out of bounds.
int64_t read_everything(const GgufFile& file) {
  int64_t sum = 0;
  for (const auto& entry : file.metadata()) {
    sum += file.integer(entry.key).value_or(0) & 1;
    sum += file.number(entry.key).has_value() + file.boolean(entry.key).has_value();
    for (const auto text : file.strings(entry.key).value_or(std::vector<std::string_view>())) sum += std::ranges::count(text, 'x');
    sum += static_cast<int64_t>(file.integers(entry.key).value_or(std::vector<int64_t>()).size());
    sum += static_cast<int64_t>(file.floats(entry.key).value_or(std::vector<float>()).size());
    if (const auto text = file.string(entry.key)) sum += std::ranges::count(*text, 'x');
  }
  for (const auto& tensor : file.tensors()) sum += std::ranges::count(tensor.data, std::byte{1});
  return sum;
}

TEST(Gguf, DamagedFilesGiveAnErrorOrAValidParse) {
  TemporaryDirectory directory;
  const std::string good = good_parts().bytes();
  std::mt19937 random(20240601);
  int refused = 0, accepted = 0;
  const auto try_bytes = [&](const std::string& bytes) {
    const auto file = GgufFile::open(directory.write("damaged.gguf", bytes));
    if (file.is_ok()) {
      read_everything(*file);
      ++accepted;
    } else {
      EXPECT_FALSE(file.status().message().empty());
      ++refused;
    }
  };
  for (int i = 0; i < 200; ++i) {
    const std::size_t place = random() % good.size();
    EXPECT_FALSE(GgufFile::open(directory.write("damaged.gguf", good.substr(0, place))).is_ok()) << "cut at " << place;
    std::string flipped = good;
    flipped[place] = static_cast<char>(flipped[place] ^ (1 << (random() % 8)));
    try_bytes(flipped);
    std::string filled = good;  // a length or count of nearly 2^64
    filled.replace(place, std::min<std::size_t>(8, filled.size() - place), 8, '\xff');
    try_bytes(filled);
  }
  EXPECT_GT(refused, 100);
  EXPECT_GT(accepted, 20) << "flips in names, values and data leave a readable file";
}

// ---- Split sets

GgufParts split_part(uint16_t number, uint16_t count, std::string_view tensor) {
  GgufParts parts;
  parts.entries = {gguf_scalar<uint16_t>("split.no", 2, number), gguf_scalar<uint16_t>("split.count", 2, count),
                   gguf_scalar<int32_t>("split.tensors.count", 5, 3)};
  if (number == 0) parts.entries.push_back(gguf_text("general.architecture", "tiny"));
  parts.tensors = {gguf_tensor(tensor, {16}, 0, 0)};
  parts.data = std::string(64, tensor.back());
  return parts;
}

struct SplitSet {
  TemporaryDirectory directory;
  SplitSet() {
    for (uint16_t i = 0; i < 3; ++i) write(i, split_part(i, 3, "t" + std::to_string(i)));
  }
  std::string path(int i) const { return gguf_split_path(directory.file("m"), i + 1, 3); }
  void write(int i, const GgufParts& parts) { std::ofstream(path(i), std::ios::binary) << parts.bytes(); }
};

TEST(GgufSplit, AnyPartOpensTheWholeSet) {
  const SplitSet set;
  for (int i = 0; i < 3; ++i) {
    const auto file = GgufFile::open(set.path(i));
    ASSERT_TRUE(file.is_ok()) << file.status().message();
    EXPECT_EQ(file->string("general.architecture"), "tiny");
    EXPECT_EQ(file->files().size(), 3u);
    ASSERT_EQ(file->tensors().size(), 3u);
    EXPECT_EQ(file->tensors()[2].name, "t2");
    EXPECT_EQ(file->tensors()[2].data[63], std::byte{'2'});
  }
}

TEST(GgufSplit, MissingDisagreeingAndDuplicatePartsAreRefused) {
  const auto message = [](const std::string& path) { return GgufFile::open(path).status().message(); };
  {
    const SplitSet set;
    std::filesystem::remove(set.path(1));
    EXPECT_THAT(message(set.path(0)), HasSubstr("part 2 of 3"));
  }
  {
    SplitSet set;
    set.write(2, split_part(1, 3, "t2"));
    EXPECT_THAT(message(set.path(0)), HasSubstr("expected part 3 of 3"));
  }
  {
    SplitSet set;
    set.write(1, split_part(1, 2, "t1"));
    EXPECT_THAT(message(set.path(0)), HasSubstr("split.count 2"));
    EXPECT_THAT(message(set.path(1)), HasSubstr("named as one of 3 files, but its metadata says 2"));
  }
  {
    SplitSet set;
    set.write(1, split_part(1, 3, "t0"));
    EXPECT_THAT(message(set.path(0)), HasSubstr("\"t0\" occurs twice"));
  }
  {
    SplitSet set;
    GgufParts extra = split_part(1, 3, "t1");
    extra.tensors.push_back(gguf_tensor("t9", {16}, 0, 64));
    extra.data += std::string(64, '9');
    set.write(1, extra);
    EXPECT_THAT(message(set.path(0)), HasSubstr("says it has 3 tensors, its files hold 4"));
  }
}

TEST(GgufSplit, NamesAreReadAndWritten) {
  const auto name = parse_gguf_split_name("/x/model-00002-of-00010.gguf");
  ASSERT_TRUE(name.has_value());
  EXPECT_EQ(name->prefix, "/x/model");
  EXPECT_EQ(name->number, 2);
  EXPECT_EQ(name->count, 10);
  EXPECT_EQ(gguf_split_path(name->prefix, name->number, name->count), "/x/model-00002-of-00010.gguf");
  for (const char* other :
       {"model.gguf", "m-0002-of-00010.gguf", "m-00011-of-00010.gguf", "m-00000-of-00010.gguf", "m-0000a-of-00010.gguf", ""}) {
    EXPECT_FALSE(parse_gguf_split_name(other).has_value()) << other;
  }
}

}  // namespace
}  // namespace millrace
