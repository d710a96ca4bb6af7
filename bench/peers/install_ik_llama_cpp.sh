#!/usr/bin/env bash
# Builds ik_llama.cpp's benchmark programs for this CPU (-march=native) into build/peers: from the PyPI source package ik-llama-cpp-python
# (MIT), which carries the C++ sources, or from a source tree. Nothing of it is part of this repository. Prints the directory of the programs.
#
# usage: install_ik_llama_cpp.sh [SOURCE_DIR]
set -euo pipefail
source_dir=${1:+$(realpath "$1")}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
version=0.1.5
sha256=33c67eb99e4dcab5e611050433243815709b8b3067753f9ce18375013cf002ad
programs="llama-bench llama-batched-bench llama-cli"
dir=$PWD/build/peers/ik_llama.cpp-${source_dir:+source}
[ -n "$source_dir" ] || dir+=$version
mkdir -p "$dir"
if [ "$(cat "$dir/built" 2>/dev/null)" != "$programs $source_dir" ]; then
  if [ -z "$source_dir" ]; then
    source_dir=$dir/vendor/ik_llama.cpp
    if [ ! -d "$source_dir" ]; then
      python3 -m pip download -q --no-deps --no-binary ik-llama-cpp-python -d "$dir" "ik-llama-cpp-python==$version"
      echo "$sha256  $dir/ik_llama_cpp_python-$version.tar.gz" | sha256sum -c --quiet
      tar xzf "$dir/ik_llama_cpp_python-$version.tar.gz" -C "$dir" --strip-components=1
    fi
    # The package lacks the script that writes the build's number and commit; neither is known.
    mkdir -p "$source_dir/common/cmake"
    cat > "$source_dir/common/cmake/build-info-gen-cpp.cmake" <<'CMAKE'
file(WRITE "${CMAKE_CURRENT_LIST_DIR}/../build-info.cpp"
     "int LLAMA_BUILD_NUMBER = 0;\nchar const * LLAMA_COMMIT = \"unknown\";\nchar const * LLAMA_COMPILER = \"\";\nchar const * LLAMA_BUILD_TARGET = \"\";\n")
CMAKE
    programs_note="$programs "
  else
    programs_note="$programs $source_dir"
  fi
  [ -n "${CMAKE_GENERATOR:-}" ] || { command -v ninja >/dev/null && export CMAKE_GENERATOR=Ninja; }
  # Without the q4 key-value types, which are not measured: they are most of the build's time.
  cmake -S "$source_dir" -B "$dir/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DGGML_NATIVE=ON -DGGML_CCACHE=OFF \
        -DGGML_IQK_FA_ALL_QUANTS=OFF -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=ON -DLLAMA_BUILD_SERVER=OFF \
        > "$dir/configure.log" 2>&1
  # shellcheck disable=SC2086  # one word a program
  cmake --build "$dir/build" --target $programs -j "$(nproc)" > "$dir/build.log" 2>&1 || { tail -20 "$dir/build.log" >&2; exit 1; }
  echo "$programs_note" > "$dir/built"
fi
echo "$dir/build/bin"
