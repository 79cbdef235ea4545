#!/usr/bin/env bash
# Builds the native library where the package looks for it, and its variants for the tests: under sanitizers, and for arm64
# if there is a cross compiler. Without cmake or ONNX Runtime's headers nothing is built, which is an error under CI only: the
# package works without it.
set -euo pipefail
cd "$(dirname "$0")/.."

without() {
  if [ -n "${CI:-}" ]; then
    echo "the native library cannot be built: $1 (docs/reference/custom-op.md)" >&2
    exit 1
  fi
  echo "going on without the native library: $1 (docs/reference/custom-op.md)"
  exit 0
}
command -v cmake >/dev/null || without "cmake is not there"
[ -d "$(python3 tools/fetch_runtime_sdk.py --where sdk)" ] || without "tools/fetch_runtime_sdk.py was not run"

build() {
  (cd exporter/custom_op && cmake --preset "$1" -DADADIM_DRIVER=ON >/dev/null)
  cmake --build "build/custom_op/$1"
}
build host
cmake --install build/custom_op/host --prefix . --strip >/dev/null
build sanitize
build sanitize-threads
if command -v aarch64-linux-gnu-g++ >/dev/null; then
  build linux-arm64
else
  echo "going on without the library for arm64: aarch64-linux-gnu-g++ is not there (docs/reference/custom-op.md)"
fi
