"""Installing with and without the native library, by a cmake that does what it is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = "exporter/custom_op/libadadim_ort.so"
WORKS = """#!/bin/sh
case "$1" in
  --install) mkdir -p "$4/exporter/custom_op" && echo library > "$4/exporter/custom_op/libadadim_ort.so" ;;
esac
"""
LACKS_HEADERS = """#!/bin/sh
echo "CMake Error:
  ONNX Runtime's headers are not there" >&2
exit 1
"""


@pytest.fixture
def source(tmp_path) -> Path:
    """What a checkout has of the packages, with a library of yesterday that must not slip in."""
    pytest.importorskip("setuptools")
    copy = tmp_path / "source"
    for folder in ("quantize", "exporter", "runtime_checks"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    (copy / LIBRARY).write_text("of yesterday")
    return copy


def wheel(source: Path, cmake: str) -> tuple[zipfile.ZipFile, str]:
    """The wheel and all that pip printed."""
    tools = source.parent / "bin"
    tools.mkdir()
    (tools / "cmake").write_text(cmake)
    (tools / "cmake").chmod(0o755)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        source.parent / "out",
        source,
    ]
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (source.parent / "out").iterdir()
    return zipfile.ZipFile(path), done.stdout + done.stderr


def files(held: zipfile.ZipFile) -> list[str]:
    return [name for name in held.namelist() if name.startswith("exporter/custom_op")]


def test_a_library_makes_a_wheel_for_any_python_on_this_platform(source):
    held, printed = wheel(source, WORKS)
    assert files(held) == [LIBRARY]
    assert held.read(LIBRARY) == b"library\n"
    assert "-py3-none-linux_" in str(held.filename)
    assert "without the native library" not in printed


def test_without_headers_the_wheel_is_pure_and_it_is_said_once(source):
    held, printed = wheel(source, LACKS_HEADERS)
    assert files(held) == []
    assert str(held.filename).endswith("-py3-none-any.whl")
    assert printed.count("without the native library") == 1
    line = next(line for line in printed.splitlines() if "without the native library" in line)
    assert line.strip().endswith("(docs/reference/custom-op.md): CMake Error: ONNX Runtime's headers are not there")
