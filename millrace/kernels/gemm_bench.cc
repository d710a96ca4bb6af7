// gemm() over the classes, token counts and shapes that matter: time, GB/s of weights and their share of the read bandwidth measured
// here, operations per second and per cycle. The clock is taken from a chain of dependent additions, since a VM has no counters.
//
//   gemm_bench [--isa avx2] [--path prompt] [--class Q4_1] [--shape ROWSxK] [--tokens 1,512] [--threads 1] [--cold]
// --cold cycles through copies of the weights that exceed the caches, as decoding a model does (always so for one token).

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>

#include "millrace/kernels/gemm.h"
#include "millrace/kernels/gemm_test_data.h"

namespace millrace {
namespace {

// CPU time of this thread: on a machine with other work, what the kernel takes and not what it waits.
double seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Cycles per second: one dependent integer addition is one cycle.
double clock_hz() {
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const double start = seconds();
    uint64_t value = 1;
    constexpr int kSteps = 4'000'000;
    for (int i = 0; i < kSteps; i += 8) {
      __asm__ volatile("add %0, %0\nadd %0, %0\nadd %0, %0\nadd %0, %0\nadd %0, %0\nadd %0, %0\nadd %0, %0\nadd %0, %0" : "+r"(value));
    }
    best = std::max(best, kSteps / (seconds() - start));
  }
  return best;
}

template <class Work>  // work(thread)
void on_threads(int num_threads, const Work& work) {
  std::vector<std::thread> others;
  for (int thread = 1; thread < num_threads; ++thread) others.emplace_back([&work, thread] { work(thread); });
  work(0);
  for (auto& other : others) other.join();
}

// Best of some rounds, a round being the slowest thread's; the threads start together, and each repeats its part `repeats` times.
template <class Work>  // work(thread, repeat)
double best_seconds(int num_threads, int repeats, int rounds, const Work& work) {
  double best = 1e9;
  for (int round = 0; round < rounds; ++round) {
    std::atomic<int> ready = 0;
    std::vector<double> times(static_cast<std::size_t>(num_threads));
    on_threads(num_threads, [&](int thread) {
      ++ready;
      while (ready.load() < num_threads) std::this_thread::yield();
      const double start = seconds();
      for (int repeat = 0; repeat < repeats; ++repeat) work(thread, round * repeats + repeat);
      times[static_cast<std::size_t>(thread)] = seconds() - start;
    });
    best = std::min(best, *std::max_element(times.begin(), times.end()) / repeats);
  }
  return best;
}

// Reading the memory once, in lines, by all threads.
double read_bandwidth(int num_threads, const AlignedBuffer& memory) {
  const auto size = static_cast<int64_t>(memory.size()) / num_threads / 64 * 64;
  std::atomic<uint64_t> sink = 0;
  const double time = best_seconds(num_threads, 1, 7, [&](int thread, int) {
    const auto* words = memory.as<uint64_t>() + thread * size / 8;
    uint64_t sums[8] = {};
    for (int64_t i = 0; i < size / 8; i += 8) {
      __builtin_prefetch(words + i + 512);
      for (int64_t j = 0; j < 8; ++j) sums[j] += words[i + j];
    }
    for (uint64_t sum : sums) sink += sum;
  });
  return static_cast<double>(size * num_threads) / time;
}

constexpr int64_t kPromptPanels = 16;  // that a visit of the executor computes

struct Shape {
  int64_t rows, k;
};

struct Options {
  Isa isa = Isa::kScalar;
  GemmPath path = GemmPath::kFast;
  std::string weight_class, shape, tokens = "1,2,4,8,16,64,512";
  int threads = 0;  // 0: 1 and 2
  bool cold = false;
};

void bench_shape(const Options& options, DType dtype, Shape shape, int num_threads, double hz, double bandwidth) {
  // The large matrix repeats the rows of a small random one.
  const StoredRows rows = random_rows(dtype, std::min<int64_t>(shape.rows, 1024), shape.k, 1);
  std::vector<const std::byte*> pointers;
  for (int64_t i = 0; i < shape.rows; ++i) pointers.push_back(rows.row(i % rows.num_rows));
  std::vector<PackedMatrix> copies;
  copies.push_back(PackedMatrix::pack(dtype, pointers, shape.k).value());
  const int64_t weights_bytes = copies[0].bytes(), num_panels = copies[0].num_panels();
  const std::string text = options.tokens;
  for (std::size_t at = 0; at < text.size(); at = text.find(',', at) == std::string::npos ? text.size() : text.find(',', at) + 1) {
    const int64_t num_tokens = std::atoll(text.c_str() + at);
    if (static_cast<double>(num_tokens * shape.rows * shape.k) > 2e10) continue;
    const bool cold = options.cold || num_tokens == 1;
    while (cold && static_cast<int64_t>(copies.size()) * weights_bytes < (int64_t{256} << 20)) {
      copies.push_back(PackedMatrix::pack(dtype, pointers, shape.k).value());
    }
    TestActivations x;
    set_random_activations(num_tokens, shape.k, 2, x);
    const int64_t width = num_panels * 16;
    AlignedBuffer y(static_cast<std::size_t>(num_tokens * (width + kPromptPanels * 16)) * sizeof(float));
    const double operations = 2.0 * static_cast<double>(num_tokens * shape.rows * shape.k);
    const int repeats = static_cast<int>(std::clamp(2e8 / operations, 1.0, 400.0));
    const double time = best_seconds(num_threads, repeats, operations > 2e9 ? 5 : 40, [&](int thread, int repeat) {
      const PackedMatrix& weights = copies[cold ? static_cast<std::size_t>(repeat) % copies.size() : 0];
      const int64_t begin = num_panels * thread / num_threads, end = num_panels * (thread + 1) / num_threads;
      if (options.path != GemmPath::kPrompt)
        return gemm(options.isa, options.path, weights, x.view, begin, end, 0, num_tokens, y.as<float>() + begin * 16, width, nullptr);
      for (int64_t panel = begin; panel < end; panel += kPromptPanels) {  // as the executor does
        gemm(options.isa, options.path, weights, x.view, panel, std::min(end, panel + kPromptPanels), 0, num_tokens,
             y.as<float>() + begin * 16 * num_tokens, kPromptPanels * 16, nullptr);
      }
    });
    const double bytes = static_cast<double>(weights_bytes) / time;
    fmt::print(
        "{:<5} {:>5}x{:<4} tokens {:>3} threads {}  {:>9.1f} us  {:>5.1f} GB/s {:>4.0f} %  {:>6.0f} GOPS  {:>5.1f} op/cycle/thread\n",
        dtype_name(dtype), shape.rows, shape.k, num_tokens, num_threads, time * 1e6, bytes * 1e-9, 100 * bytes / bandwidth,
        operations / time * 1e-9, operations / time / hz / num_threads);
    std::fflush(stdout);
  }
}

int run(int argc, char** argv) {
  Options options;
  const auto isa = choose_isa();
  if (!isa.is_ok()) {
    fmt::print(stderr, "{}\n", isa.status().message());
    return 1;
  }
  options.isa = *isa;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--cold") {
      options.cold = true;
      continue;
    }
    if (flag == "--isa") {
      const auto chosen = parse_isa(value);
      if (!chosen.is_ok() || !isa_runnable(*chosen)) {
        fmt::print(stderr, "cannot run \"{}\" here\n", value);
        return 1;
      }
      options.isa = *chosen;
    } else if (flag == "--path") {
      options.path = std::string_view(value) == "prompt" ? GemmPath::kPrompt : GemmPath::kFast;
    } else if (flag == "--class") {
      options.weight_class = value;
    } else if (flag == "--shape") {
      options.shape = value;
    } else if (flag == "--tokens") {
      options.tokens = value;
    } else if (flag == "--threads") {
      options.threads = std::atoi(value);
    } else {
      fmt::print(stderr, "unknown option {}\n", flag);
      return 1;
    }
    ++i;
  }
  const double hz = clock_hz();
  AlignedBuffer memory(std::size_t{256} << 20);
  for (std::size_t i = 0; i < memory.size(); i += 4096) memory.data()[i] = std::byte{1};
  double bandwidth[2];
  for (int threads : {1, 2}) bandwidth[threads - 1] = read_bandwidth(threads, memory);
  fmt::print("{}, {:.2f} GHz, read bandwidth {:.1f} GB/s with one thread, {:.1f} with two\n", isa_name(options.isa), hz * 1e-9,
             bandwidth[0] * 1e-9, bandwidth[1] * 1e-9);
  memory = AlignedBuffer();
  constexpr DType kOrder[] = {DType::kQ4_1, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K,
                              DType::kQ5_0, DType::kQ5_1, DType::kBf16, DType::kF16,  DType::kF32};
  std::vector<Shape> shapes = {{576, 576}, {1536, 576}, {576, 1536}, {896, 4864}, {49152, 576}, {4096, 4096}};
  if (!options.shape.empty())
    shapes = {{std::atoll(options.shape.c_str()), std::atoll(options.shape.c_str() + options.shape.find('x') + 1)}};
  for (DType dtype : kOrder) {
    if (!options.weight_class.empty() && options.weight_class != dtype_name(dtype)) continue;
    for (Shape shape : shapes) {
      if (shape.k % dtype_info(dtype).block_elements != 0) continue;
      for (int threads : {1, 2}) {
        if (options.threads == 0 || options.threads == threads) bench_shape(options, dtype, shape, threads, hz, bandwidth[threads - 1]);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) { return millrace::run(argc, argv); }
