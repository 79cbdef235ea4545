#!/usr/bin/env bash
# Installs what Debian must provide and is missing here: Python with venv, make, compilers, what the native library is built,
# tested and fetched with, the browser that the web client is tested in, the shells that completion is tested in, and
# what shows the connections that a process tries.
set -euo pipefail

missing=()
need() { # need PACKAGE... -- COMMAND...: the packages are missing if the command fails
  local packages=()
  while [ "$1" != -- ]; do packages+=("$1"); shift; done
  shift
  "$@" >/dev/null 2>&1 || missing+=("${packages[@]}")
}
library() { ldconfig -p | grep -q "$1"; }
python_with_venv() { "$(command -v python3.11 || command -v python3)" -c 'import ensurepip, venv'; }

PATH=$PATH:/sbin:/usr/sbin
need python3 python3-venv -- python_with_venv
need make -- command -v make
need gcc -- command -v gcc
need g++ -- command -v g++
need cmake -- command -v cmake
need ninja-build -- command -v ninja
need libhwy-dev -- test -f /usr/include/hwy/highway.h
need g++-aarch64-linux-gnu -- command -v aarch64-linux-gnu-g++
need qemu-user -- command -v qemu-aarch64
need npm -- command -v npm
need openjdk-17-jre-headless -- command -v java
need libandroid-json-java -- test -f /usr/share/java/com.android.json.jar
need chromium -- command -v chromium
need strace -- command -v strace
need zsh -- command -v zsh
need tcsh -- command -v tcsh
need fish -- command -v fish
need libgomp1 -- library libgomp.so.1
need libstdc++6 -- library libstdc++.so.6

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
echo "installing ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
