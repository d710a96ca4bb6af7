# Sourced by ./run and ./test: what a Debian-like machine needs, installed when missing. Functions only; nothing runs on sourcing.

setup_say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
setup_die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# The newest Boost of at least 1.81 that is installed or that apt offers, as "1.81". Debian 12 has 1.81 beside its default 1.74,
# Debian 13 and Ubuntu 24.04 have 1.83.
setup_boost_version() {
  {
    dpkg-query -W -f '${Package} ${Status}\n' 'libboost-json1.*-dev' 2>/dev/null | sed -n 's/^libboost-json\(1\.[0-9]*\)-dev install ok installed$/\1/p' | sort -V | tail -1
    apt-cache pkgnames libboost-json1. 2>/dev/null | sed -n 's/^libboost-json\(1\.[0-9]*\)-dev$/\1/p' | sort -rV
  } | awk -F. '$2 >= 81' | head -1
}

setup_packages_build() {
  local boost; boost=$(setup_boost_version)
  echo build-essential cmake ninja-build ccache pkg-config python3 python3-venv python3-pip ca-certificates \
       "libboost${boost:-1.83}-dev" "libboost-json${boost:-1.83}-dev" libssl-dev libpcre2-dev libcli11-dev libfmt-dev libcurl4-openssl-dev
}
setup_packages_test() { echo libgtest-dev libgmock-dev libbenchmark-dev; }
# For the browser tests. Ubuntu has Chromium as a snap only: there they are counted as not run.
setup_packages_full() { [ -n "$(apt-cache search --names-only '^chromium$' 2>/dev/null)" ] && echo chromium fonts-dejavu-core; true; }

setup_missing() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || echo "$package"
  done
}

# Installs what is missing of the named packages, as root or with sudo that asks nothing; otherwise says what to type.
setup_install() {
  command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
    setup_die "this is no Debian-like system (no apt-get); install the equivalents of: $*"
  local missing; missing=$(setup_missing "$@")
  [ -z "$missing" ] && return 0
  # shellcheck disable=SC2086
  set -- $missing
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      as_root=(sudo -n)
    else
      setup_die "packages are missing and this user may not install them. Run this once, then try again:
  sudo apt-get update && sudo apt-get install --no-install-recommends -y $*"
    fi
  fi
  setup_say "installing $*"
  local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q --no-install-recommends --no-remove -y -o DPkg::Lock::Timeout=600 "$@")
  "${install[@]}" >"$SETUP_LOG" 2>&1 && return 0
  "${as_root[@]}" apt-get update -q >>"$SETUP_LOG" 2>&1 || true  # the lists may name versions that are gone
  "${install[@]}" >>"$SETUP_LOG" 2>&1 || { tail -20 "$SETUP_LOG" >&2; setup_die "apt-get install failed (the whole output: $SETUP_LOG)"; }
}

# apt's package lists, when there are none or Boost cannot be found in them: needed before names can be looked up.
setup_refresh_lists() {
  [ -n "$(setup_boost_version)" ] && return 0
  local as_root=()
  [ "$(id -u)" -ne 0 ] && as_root=(sudo -n)
  "${as_root[@]}" apt-get update -q >"$SETUP_LOG" 2>&1 || true
}

setup_system() {  # setup_system build|test|full
  mkdir -p build
  SETUP_LOG=$PWD/build/setup.log
  setup_refresh_lists
  local packages; packages=$(setup_packages_build)
  case "$1" in test|full) packages="$packages $(setup_packages_test)" ;; esac
  [ "$1" = full ] && packages="$packages $(setup_packages_full)"
  # shellcheck disable=SC2086
  setup_install $packages
}

# A Python virtual environment in build/venv with the pinned requirements of the files given.
setup_venv() {
  local stamp=build/venv/.installed want
  want=$(cat "$@" 2>/dev/null | sha256sum)
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && return 0
  [ -x build/venv/bin/python ] || python3 -m venv build/venv || setup_die "python3 -m venv failed"
  local file
  for file in "$@"; do
    setup_say "installing Python packages of $file"
    build/venv/bin/python -m pip install -q --disable-pip-version-check -r "$file" || setup_die "pip install -r $file failed"
  done
  echo "$want" > "$stamp"
}

setup_build() {  # setup_build PRESET [--no-tests] [target...]
  local preset=$1; shift
  # Checkouts at different paths share compiled objects.
  export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
  [ -n "${CMAKE_GENERATOR:-}" ] || { command -v ninja >/dev/null && export CMAKE_GENERATOR=Ninja; }
  local tests=ON
  [ "${1:-}" = --no-tests ] && { tests=OFF; shift; }
  # The tests stay on once ./test switched them on; a user who only runs it needs no test libraries.
  if { [ ! -f "build/$preset/build.ninja" ] && [ ! -f "build/$preset/Makefile" ]; } || { [ $tests = ON ] && ! grep -q '^MILLRACE_TESTS:BOOL=ON' "build/$preset/CMakeCache.txt"; }; then
    setup_say "configuring the $preset build"
    cmake --preset "$preset" "-DMILLRACE_TESTS=$tests" > "build/configure-$preset.log" 2>&1 || { cat "build/configure-$preset.log" >&2; setup_die "cmake --preset $preset failed"; }
  fi
  setup_say "building ($preset): seconds when little changed, the first time some minutes (progress: build/build-$preset.log)"
  local targets=()
  [ $# -gt 0 ] && targets=(--target "$@")
  cmake --build --preset "$preset" -j "$(nproc)" "${targets[@]}" > "build/build-$preset.log" 2>&1 ||
    { tail -40 "build/build-$preset.log" >&2; setup_die "the $preset build failed (the whole output: build/build-$preset.log)"; }
}
