"""GGUF version 3, read from its bytes (ggml's docs/gguf.md): no gguf-py, nothing of ours but ``reference``.

::

    "GGUF" | u32 version | i64 n_tensors | i64 n_kv
    n_kv       x  string key | i32 type | value            (string = u64 length + bytes; array = i32 type, u64 n, values)
    n_tensors  x  string name | u32 n_dims | i64 dims[], innermost first | i32 type | u64 offset
    padding | data, each tensor padded to general.alignment

Of several files, as llama-gguf-split writes them, each is such a one; NAME-00001-of-00003.gguf has the pairs of them all.
Every count and length is checked against the bytes that are left before anything is taken.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime_checks.reference.cursor import Cursor
from runtime_checks.reference.decode import (
    BLOCK_BYTES,
    F32,
    FLOAT_BYTES,
    U8,
    Array,
    DamagedFileError,
    block_codes,
    block_weights,
    decode_blocks,
    decode_floats,
)

TYPE_NAMES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    30: "BF16",
    35: "TQ2_0",
    39: "MXFP4",
}
MAX_NAME, MAX_DIMS, DEFAULT_ALIGNMENT = 63, 4, 32
LEAST_PAIR, LEAST_TENSOR = 14, 32  # bytes that one takes
SPLIT_KEYS = SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
U16, U32, I32 = 2, 4, 5
KINDS = {"general.alignment": U32, SPLIT_NUMBER: U16, SPLIT_COUNT: U16, SPLIT_TENSORS: I32}


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """One tensor: ``kind`` is ggml's name of its type, ``shape`` in torch's order, ``data`` U8[rows, row bytes] (mapped)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: U8

    def rows(self, start: int, stop: int) -> GgufTensor:
        """The same tensor cut to some of its stored rows."""
        data = self.data[start:stop]
        return replace(self, data=data, shape=(data.shape[0], *self.shape[-1:]) if len(self.shape) > 1 else self.shape)


@dataclass(frozen=True)
class GgufPart:
    """One of its files: the data's first byte, and the byte after the last tensor's padding."""

    path: Path
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class GgufFile:
    """``metadata``: key -> int, float, bool, str, list of str or array of numbers or bools, without what only says how it is
    split; ``tensors`` in file order; ``parts``: its files, of which there is one if it is not split."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    parts: tuple[GgufPart, ...]


@dataclass(frozen=True)
class _Info:
    name: str
    dims: tuple[int, ...]  # innermost first
    kind: int
    offset: int


def read_gguf(path: Path) -> GgufFile:
    """The whole file, with all that is split off it; tensors mapped and not copied. Raises DamagedFileError."""
    metadata, tensors, part = _read_part(path)
    parts, count = [part], _check_first(path, metadata)
    total = metadata.get(SPLIT_TENSORS)
    for number in range(1, count):
        other = _part_path(path, number, count)
        if not other.exists():
            raise DamagedFileError(f"{other}: not there, and {path.name} is split into {count} files")
        said, found, part = _read_part(other)
        held, wanted = [said.get(key) for key in SPLIT_KEYS], [number, count, total]
        if held != wanted:
            raise DamagedFileError(f"{other}: {SPLIT_NUMBER}, count and tensors.count are {held}, not {wanted} as in {path.name}")
        twice = next((name for name in found if name in tensors), None)
        if twice is not None:
            raise DamagedFileError(f"{other}: tensor {twice} is in a file before it")
        tensors |= found
        parts.append(part)
    if count > 1 and total != len(tensors):
        raise DamagedFileError(f"{path}: {SPLIT_TENSORS} is {total}, its {count} files have {len(tensors)}")
    return GgufFile(_unsplit(metadata), tensors, tuple(parts))


def read_metadata(path: Path) -> dict[str, Any]:
    """The key-value pairs alone, whatever the types of the tensors; of a split file its first has them.

    Raises DamagedFileError.
    """
    metadata = _read_header(path)[0]
    _check_first(path, metadata)
    return _unsplit(metadata)


def _unsplit(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in SPLIT_KEYS}


def _check_first(path: Path, metadata: dict[str, Any]) -> int:
    """Of how many files ``path`` is the first; 1 if it is not split. Raises DamagedFileError if another is."""
    count, number = metadata.get(SPLIT_COUNT, 1), metadata.get(SPLIT_NUMBER, 0)
    if count < 2:
        return 1
    if number:
        raise DamagedFileError(f"{path}: is file {number + 1} of {count} that belong together, not the first")
    if _part_path(path, 0, count) != path:
        raise DamagedFileError(f"{path}: is the first of {count} files, but its name does not end in {_ending(0, count)}")
    return int(count)


def _part_path(first: Path, number: int, count: int) -> Path:
    return first.with_name(first.name.removesuffix(_ending(0, count)) + _ending(number, count))


def _ending(number: int, count: int) -> str:
    """As llama.cpp's ``llama_split_path`` writes it."""
    return f"-{number + 1:05d}-of-{count:05d}.gguf"


def _read_part(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor], GgufPart]:
    """What one file holds by itself. Raises DamagedFileError."""
    metadata, infos, cursor = _read_header(path)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if alignment <= 0 or alignment & (alignment - 1):
        raise DamagedFileError(f"{path}: general.alignment {alignment} is not a power of two")
    start = cursor.position + -cursor.position % alignment
    tensors: dict[str, GgufTensor] = {}
    expected = 0
    for info in infos:
        if info.name in tensors:
            raise DamagedFileError(f"{path}: tensor {info.name} is listed twice")
        if info.offset != expected:
            raise DamagedFileError(
                f"{path}: tensor {info.name} is at {info.offset}, not at {expected} where the one before it ends"
            )
        rows, row_bytes = _layout(path, info)
        size = rows * row_bytes
        data = cursor.data[start + expected : start + expected + size]
        if data.size != size:
            raise DamagedFileError(f"{path}: tensor {info.name} needs {size} bytes, the file has {data.size}; it is truncated")
        shape = tuple(reversed(info.dims))
        tensors[info.name] = GgufTensor(info.name, TYPE_NAMES[info.kind], shape, data.reshape(rows, row_bytes))
        expected += size + -size % alignment
    return metadata, tensors, GgufPart(path, start, start + expected)


def decode_gguf(tensor: GgufTensor) -> F32:
    """The weights as F32 of ``tensor.shape`` ([IC, OC] for a ``.weight_ic``)."""
    decode = decode_floats if tensor.kind in FLOAT_BYTES else decode_blocks
    return decode(tensor.kind, tensor.data).reshape(tensor.shape)


def gguf_codes(tensor: GgufTensor) -> tuple[U8, dict[str, Array]]:
    """(codes U8[rows, cols], params) of a quantized tensor, as stored: see ``block_codes``."""
    return block_codes(tensor.kind, tensor.data)


def _layout(path: Path, info: _Info) -> tuple[int, int]:
    """(rows, bytes of one row). Raises DamagedFileError for an unknown type or a row that is no whole number of blocks."""
    kind = TYPE_NAMES.get(info.kind)
    if kind is None:
        raise DamagedFileError(f"{path}: tensor {info.name} has ggml type {info.kind}, which the reference does not decode")
    rows = math.prod(info.dims[1:])
    if kind in FLOAT_BYTES:
        return rows, info.dims[0] * FLOAT_BYTES[kind]
    block = block_weights(kind)
    if info.dims[0] % block:
        raise DamagedFileError(f"{path}: tensor {info.name} has rows of {info.dims[0]}, no multiple of {block}, as {kind}")
    return rows, info.dims[0] // block * BLOCK_BYTES[kind]


def _read_header(path: Path) -> tuple[dict[str, Any], list[_Info], Cursor]:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DamagedFileError(f"{path}: no regular file")
    if found.st_size < 24:
        raise DamagedFileError(f"{path}: {found.st_size} bytes are no GGUF file")
    cursor = Cursor(path, np.asarray(np.memmap(path, np.uint8, "r")))
    if cursor.take(4).tobytes() != b"GGUF":
        raise DamagedFileError(f"{path}: does not begin with GGUF")
    version = cursor.scalar("<u4")
    if version not in (2, 3):
        raise DamagedFileError(f"{path}: GGUF version {version}, expected 3")
    n_tensors, n_pairs = cursor.scalar("<u8"), cursor.scalar("<u8")
    cursor.check_room(n_tensors, LEAST_TENSOR)
    cursor.check_room(n_pairs, LEAST_PAIR)
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = cursor.string()
        if not key or key in metadata:
            raise DamagedFileError(f"{path}: key {key[:80]!r} is empty or there twice")
        kind = cursor.scalar("<i4")
        if kind != KINDS.get(key, kind):
            raise DamagedFileError(f"{path}: {key} is of type {kind}, not {KINDS[key]}")
        metadata[key] = cursor.value(kind)
    infos = []
    for _ in range(n_tensors):
        name, n_dims = cursor.string(), cursor.scalar("<u4")
        if not 1 <= n_dims <= MAX_DIMS or not 1 <= len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME:
            raise DamagedFileError(f"{path}: tensor {name[:80]!r} has {n_dims} dimensions or a name of a wrong length")
        dims = tuple(cursor.scalar("<i8") for _ in range(n_dims))
        if min(dims) <= 0:
            raise DamagedFileError(f"{path}: tensor {name} has shape {dims}")
        infos.append(_Info(name, dims, cursor.scalar("<i4"), cursor.scalar("<u8")))
    return metadata, infos, cursor
