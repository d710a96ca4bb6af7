// Attention of one layer on one thread: decode at several depths and prefill, per variant and KV format.
//   attention_bench [substring of a variant's name [substring of what is measured, as "9/3/64 bf16 decode"]]
// Rates are of the best run, since the machine may be busy. Decode shows the rate at which keys and values are read (layer after layer,
// laid out as the engine does), prefill the rate of multiply-adds counted as two operations over the keys that causality leaves.
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include "millrace/base/aligned_buffer.h"
#include "millrace/kernels/attention.h"

namespace millrace {
namespace {

struct Model {
  const char* name;
  int64_t num_heads, num_kv_heads, head_dim;
};

// Decode goes round as many layers as fill this, as a step of a model does: each finds its keys and values out of the nearer caches.
constexpr int64_t kDecodeBytes = int64_t{96} << 20;

struct Times {
  double best_us, median_us;
};

// Time of this thread on its CPU: what others do on a busy machine shows less.
double thread_us() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) * 1e-3;
}

Times measure_times(auto body) {
  std::vector<double> times;
  const double start = thread_us();
  while (times.size() < 5 || (times.size() < 401 && thread_us() - start < 100e3)) {
    const double begin = thread_us();
    body();
    times.push_back(thread_us() - begin);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return {*std::min_element(times.begin(), times.end()), times[times.size() / 2]};
}

struct Format {
  const char* name;
  KvFormat format;
};
constexpr Format kFormats[] = {
    {"f32", KvFormat::kF32}, {"bf16", KvFormat::kBf16}, {"int8", KvFormat::kInt8}, {"fp8", KvFormat::kFp8E4M3}, {"int4", KvFormat::kInt4}};

void measure(Isa isa, const Model& model, const Format& format, int64_t num_rows, int64_t num_keys) {
  const KvGeometry geometry{format.format, model.num_kv_heads, model.head_dim};
  const int64_t num_blocks = (num_keys + kBlockTokens - 1) / kBlockTokens, width = model.num_heads * model.head_dim;
  const int64_t num_layers = num_rows > 1 ? 1 : std::max<int64_t>(1, kDecodeBytes / (num_blocks * geometry.layer_bytes()));
  AlignedBuffer memory(static_cast<std::size_t>(num_layers * num_blocks * geometry.layer_bytes()));
  KvView kv{memory.data(), num_layers * geometry.layer_bytes(), geometry};
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> k(static_cast<std::size_t>(model.head_dim)), v(k), q(static_cast<std::size_t>(num_rows * width)), out(q);
  for (int64_t t = 0; t < num_keys; ++t) {
    for (int64_t h = 0; h < model.num_kv_heads; ++h) {
      for (float& x : k) x = normal(random);
      for (float& x : v) x = normal(random);
      kv_write(isa, kv, t / kBlockTokens, t % kBlockTokens, h, k.data(), v.data());
    }
  }
  for (int64_t b = 0; b < num_blocks; ++b) {
    std::byte* first = memory.data() + b * kv.block_stride;
    for (int64_t layer = 1; layer < num_layers; ++layer)
      std::memcpy(first + layer * geometry.layer_bytes(), first, static_cast<std::size_t>(geometry.layer_bytes()));
  }
  for (float& x : q) x = normal(random);
  std::vector<int32_t> blocks;
  for (int32_t b = 0; b < num_blocks; ++b) blocks.push_back(b);
  std::vector<float> scratch(static_cast<std::size_t>(attention_scratch_floats(geometry, model.num_heads)));
  AttentionArgs args;
  args.q = q.data();
  args.q_stride = width;
  args.out = out.data();
  args.out_stride = width;
  args.num_rows = num_rows;
  args.num_heads = model.num_heads;
  args.first_position = num_keys - num_rows;
  args.blocks = blocks;
  args.scale = 1.0f / std::sqrt(static_cast<float>(model.head_dim));
  int64_t layer = 0;
  const auto [best_us, median_us] = measure_times([&] {
    layer = (layer + 1) % num_layers;
    kv.base = memory.data() + layer * geometry.layer_bytes();
    for (int64_t h = 0; h < model.num_kv_heads; ++h) attention(isa, kv, args, 0, num_rows, h, scratch.data());
  });
  if (num_rows == 1 && num_keys > kSegmentTokens) {
    // What determinism costs (docs/determinism.md): segments of a fixed length, each computed from scratch and merged, where a split over
    // threads alone would have one for each of them.
    const int64_t num_segments = attention_num_segments(args, 0);
    const int64_t partial_floats = model.num_heads / model.num_kv_heads * (model.head_dim + 2);
    std::vector<float> partials(static_cast<std::size_t>(num_segments * partial_floats));
    const auto part = [&](int64_t segment) { return partials.data() + segment * partial_floats; };
    for (int64_t segment = 0; segment < num_segments; ++segment)
      attention_partial(isa, kv, args, 0, 0, segment, part(segment), scratch.data());
    const Times merge = measure_times([&] {
      for (int64_t h = 0; h < model.num_kv_heads; ++h) attention_merge(isa, kv, args, 0, h, partials.data(), num_segments);
    });
    fmt::print("{:18} {:12} {:5} merging {:2} segments of {:5} keys: best {:5.2f} us, median {:5.2f} us, {:.2f} % of the decode\n",
               isa_name(isa), model.name, format.name, num_segments, num_keys, merge.best_us, merge.median_us,
               100 * merge.best_us / best_us);
  }
  double seen = 0;
  for (int64_t i = 0; i < num_rows; ++i) seen += static_cast<double>(args.first_position + i + 1);
  const double gflops = 4.0 * seen * static_cast<double>(width) / best_us / 1e3;
  const double gb_per_s = static_cast<double>(num_blocks * geometry.layer_bytes()) / best_us / 1e3;
  fmt::print("{:18} {:12} {:5} {:7} of {:5} keys: best {:9.1f} us, median {:9.1f} us, {:6.1f} GFLOP/s", isa_name(isa), model.name,
             format.name, num_rows == 1 ? "decode" : "prefill", num_keys, best_us, median_us, gflops);
  if (num_rows == 1) fmt::print(", {:5.1f} GB/s", gb_per_s);
  fmt::print("\n");
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  using namespace millrace;
  const std::string_view filter = argc > 1 ? argv[1] : "", what = argc > 2 ? argv[2] : "";
  for (Isa isa : kAllIsas) {
    if (!isa_runnable(isa) || isa_name(isa).find(filter) == std::string_view::npos) continue;
    for (const Model& model : {Model{"9/3/64", 9, 3, 64}, Model{"32/8/128", 32, 8, 128}}) {
      for (const Format& format : kFormats) {
        const auto wanted = [&](const char* kind) {
          return fmt::format("{} {} {}", model.name, format.name, kind).find(what) != std::string::npos;
        };
        for (int64_t depth : {512, 4096}) {
          if (wanted("decode")) measure(isa, model, format, 1, depth);
        }
        for (int64_t length : {512, 2048}) {
          if (wanted("prefill")) measure(isa, model, format, length, length);
        }
      }
    }
  }
}
