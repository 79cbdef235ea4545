"""The fetcher against an npm that hands out small tarballs: what it keeps, and what it leaves when something goes wrong."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tools.fetch_runtime_sdk import PACKAGES, fetch

NPM = """#!/bin/sh
[ "$1" = pack ] && [ "$3" = --pack-destination ] || exit 2
echo "$2" >> {log}
cp {tarball} "$4"/
"""


def aar() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("headers/onnxruntime_c_api.h", "api")
        archive.writestr("jni/arm64-v8a/libonnxruntime.so", "so")
    return buffer.getvalue()


XCFRAMEWORK = "package/Plugins/iOS~/onnxruntime.xcframework"
FILES = {
    "sdk": {
        "package/LICENSE": b"MIT",
        "package/LICENSE.meta": b"unity",
        "package/Plugins/Android/onnxruntime.aar": aar(),
        "package/Plugins/Android/onnxruntime.aar.meta": b"unity",
        f"{XCFRAMEWORK}/Info.plist": b"plist",
        f"{XCFRAMEWORK}/Info.plist.meta": b"unity",
        f"{XCFRAMEWORK}/ios-arm64/onnxruntime.framework/onnxruntime": b"arm64",
        "package/Plugins/Windows/x64/onnxruntime.dll": b"dll",
    },
    "arm64": {"package/libonnxruntime.so": b"so", "package/sherpa-onnx.node": b"node"},
}
KEPT = {
    "sdk": {
        "LICENSE": b"MIT",
        "android/onnxruntime.aar": aar(),
        "headers/onnxruntime_c_api.h": b"api",
        "ios/onnxruntime.xcframework/Info.plist": b"plist",
        "ios/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/onnxruntime": b"arm64",
    },
    "arm64": {"libonnxruntime.so": b"so"},
}


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A package by its key, served by the only npm that can be found, and the log of what npm was asked for."""
    monkeypatch.setenv("ADADIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    log = tmp_path / "asked"

    def serve(key: str):
        package = PACKAGES[key]
        tarball = tmp_path / f"{package.name}-{package.version}.tgz"
        with tarfile.open(tarball, "w:gz") as archive:
            for name, data in FILES[key].items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        npm = tmp_path / "bin" / "npm"
        npm.write_text(NPM.format(log=log, tarball=tarball))
        npm.chmod(0o755)
        return replace(package, sha256=hashlib.sha256(tarball.read_bytes()).hexdigest()), log

    return serve


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*"))


@pytest.mark.parametrize("key", PACKAGES)
def test_a_package_is_unpacked_once(served, key):
    package, log = served(key)
    for _ in range(2):
        fetch(package)
    files = [path for path in package.folder.rglob("*") if path.is_file()]
    assert {path.relative_to(package.folder).as_posix(): path.read_bytes() for path in files} == KEPT[key]
    assert log.read_text().splitlines() == [package.spec]
    assert left_in(package.folder.parent) == [package.folder_name]


def test_another_tarball_than_the_pinned_one_is_refused(served):
    package, _ = served("arm64")
    with pytest.raises(SystemExit, match=rf"{package.spec}: sha256 is [0-9a-f]{{64}}, expected {'0' * 64}"):
        fetch(replace(package, sha256="0" * 64))
    assert left_in(package.folder.parent) == []


def test_npm_that_fails_leaves_nothing(served, tmp_path):
    package, _ = served("arm64")
    (tmp_path / f"{package.name}-{package.version}.tgz").unlink()
    with pytest.raises(SystemExit, match=f"{package.spec}: npm could not fetch it"):
        fetch(package)
    assert left_in(package.folder.parent) == []


def test_without_npm(served, monkeypatch):
    package, _ = served("arm64")
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(SystemExit, match=f"{package.spec}: npm is not there to fetch it; install npm"):
        fetch(package)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HOME": "/h"}, "/h/.cache/adadim-edge"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/adadim-edge"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x", "ADADIM_CACHE": "/a"}, "/a"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, folder):
    for name in ("HOME", "XDG_CACHE_HOME", "ADADIM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert PACKAGES["sdk"].folder.parent == Path(folder)
