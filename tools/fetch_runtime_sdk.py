#!/usr/bin/env python3
"""Fetch what the custom op is built and tested against out of pinned npm packages, check it, and print where it lies.

usage: fetch_runtime_sdk.py [--where sdk|arm64]      # --where: only print that folder

::

    $ADADIM_CACHE, else $XDG_CACHE_HOME/adadim-edge, else ~/.cache/adadim-edge
        onnxruntime-0.4.9/headers/                   official headers, API 29
        onnxruntime-0.4.9/android/onnxruntime.aar
        onnxruntime-0.4.9/ios/onnxruntime.xcframework/
        onnxruntime-arm64-1.13.8/libonnxruntime.so   1.28.2 for arm64 Linux, to run under qemu

A folder is there when all of it is: it takes its name last. Needs Python's standard library and npm.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PLUGINS = "package/Plugins"


@dataclass(frozen=True)
class Package:
    """One npm package and what is kept of it: ``unpack`` fills a new folder from the opened tarball."""

    name: str
    version: str
    sha256: str
    folder_name: str
    unpack: Callable[[tarfile.TarFile, Path], None]

    @property
    def spec(self) -> str:
        """As npm reads it."""
        return f"{self.name}@{self.version}"

    @property
    def folder(self) -> Path:
        """Where it lies, fetched or not."""
        return cache_folder() / self.folder_name


def cache_folder() -> Path:
    """What holds every package's folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ADADIM_CACHE") or Path(base) / "adadim-edge")


def fetch(package: Package) -> None:
    """Make the package's folder, if it isn't there. Exits with one line if that cannot be done."""
    target = package.folder
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
        tarball = _download(package, Path(scratch))
        partial = Path(scratch) / "whole"
        partial.mkdir()
        with tarfile.open(tarball) as archive:
            package.unpack(archive, partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was quicker
                raise


def _download(package: Package, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"{package.spec}: npm is not there to fetch it; install npm (bash tools/apt-packages.sh does)")
    command = [npm, "pack", package.spec, "--pack-destination", str(folder), "--loglevel=error"]
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"{package.spec}: npm could not fetch it; see its message above, check the network and try again")
    tarball = folder / f"{package.name}-{package.version}.tgz"
    with tarball.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != package.sha256:
        raise SystemExit(f"{package.spec}: sha256 is {actual}, expected {package.sha256}; it is not the package that was pinned")
    return tarball


def _copy(archive: tarfile.TarFile, source: str, target: Path) -> None:
    """Copy the file or folder ``source`` of the archive."""
    for member in archive.getmembers():
        inside = member.name.removeprefix(source)
        held = archive.extractfile(member) if member.isfile() and inside != member.name else None
        if held is not None and (not inside or inside[0] == "/") and not inside.endswith(".meta"):
            path = target if not inside else target / inside[1:]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(held, file)


def _unpack_sdk(archive: tarfile.TarFile, folder: Path) -> None:
    aar = folder / "android" / "onnxruntime.aar"
    _copy(archive, f"{PLUGINS}/Android/onnxruntime.aar", aar)
    _copy(archive, f"{PLUGINS}/iOS~/onnxruntime.xcframework", folder / "ios" / "onnxruntime.xcframework")
    _copy(archive, "package/LICENSE", folder / "LICENSE")
    with zipfile.ZipFile(aar) as held:
        held.extractall(folder, [name for name in held.namelist() if name.startswith("headers/")])


def _unpack_arm64(archive: tarfile.TarFile, folder: Path) -> None:
    _copy(archive, "package/libonnxruntime.so", folder / "libonnxruntime.so")


PACKAGES = {
    "sdk": Package(
        "com.github.asus4.onnxruntime",
        "0.4.9",
        "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d",
        "onnxruntime-0.4.9",
        _unpack_sdk,
    ),
    "arm64": Package(
        "sherpa-onnx-linux-arm64",
        "1.13.8",
        "e1671ad6e94e51947229a5736d06022780f3fba967da8d917173cd9765902ee8",
        "onnxruntime-arm64-1.13.8",
        _unpack_arm64,
    ),
}


def main() -> None:
    """Fetch what is missing, or only tell."""
    match sys.argv[1:]:
        case []:
            for package in PACKAGES.values():
                fetch(package)
                print(package.folder)
        case ["--where", name] if name in PACKAGES:
            print(PACKAGES[name].folder)
        case arguments:
            raise SystemExit(f"fetch_runtime_sdk.py: {' '.join(arguments)}: it takes --where {'|'.join(PACKAGES)}, or nothing")


if __name__ == "__main__":
    main()
