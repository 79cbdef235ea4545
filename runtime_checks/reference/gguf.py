"""GGUF version 3, read from its bytes (ggml's docs/gguf.md): no gguf-py, nothing of ours but ``reference``.

::

    "GGUF" | u32 version | i64 n_tensors | i64 n_kv
    n_kv       x  string key | i32 type | value            (string = u64 length + bytes; array = i32 type, u64 n, values)
    n_tensors  x  string name | u32 n_dims | i64 dims[], innermost first | i32 type | u64 offset
    padding | data, each tensor padded to general.alignment

Every count and length is checked against the bytes that are left before anything is taken.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

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
    20: "IQ4_NL",
    23: "IQ4_XS",
    30: "BF16",
    35: "TQ2_0",
    39: "MXFP4",
}
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"}
U32, BOOL, STRING, ARRAY = 4, 7, 8, 9
MAX_NAME, MAX_DIMS, DEFAULT_ALIGNMENT = 63, 4, 32
MAX_COUNT = 1 << 16  # of tensors, and of pairs
MAX_HEADER = 1 << 27  # bytes
LEAST_PAIR, LEAST_TENSOR = 14, 32  # bytes that one takes


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


@dataclass(frozen=True, eq=False)
class GgufFile:
    """``metadata``: key -> int, float, bool, str, list of str or array of numbers or bools; ``tensors`` in file order;
    ``start``: the data's first byte."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    start: int


@dataclass(frozen=True)
class _Info:
    name: str
    dims: tuple[int, ...]  # innermost first
    kind: int
    offset: int


def read_gguf(path: Path) -> GgufFile:
    """The whole file, tensors mapped and not copied. Raises DamagedFileError."""
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
    return GgufFile(metadata, tensors, start)


def read_metadata(path: Path) -> dict[str, Any]:
    """The key-value pairs alone, whatever the types of the tensors. Raises DamagedFileError."""
    return _read_header(path)[0]


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


def _read_header(path: Path) -> tuple[dict[str, Any], list[_Info], _Cursor]:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DamagedFileError(f"{path}: no regular file")
    if found.st_size < 24:
        raise DamagedFileError(f"{path}: {found.st_size} bytes are no GGUF file")
    cursor = _Cursor(path, np.asarray(np.memmap(path, np.uint8, "r")))
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
        if key == "general.alignment" and kind != U32:
            raise DamagedFileError(f"{path}: general.alignment is of type {kind}, not {U32}")
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


class _Cursor:
    """A place in the mapped file that never passes its end."""

    def __init__(self, path: Path, data: U8) -> None:
        self.path, self.data, self.position = path, data, 0

    def take(self, count: int) -> U8:
        """The next ``count`` bytes."""
        if count > self.data.size - self.position:
            raise DamagedFileError(f"{self.path}: {count} bytes wanted at {self.position}, past the end; it is truncated")
        if self.position + count > MAX_HEADER:
            raise DamagedFileError(f"{self.path}: a header of more than {MAX_HEADER} bytes, which no model has")
        taken = self.data[self.position : self.position + count]
        self.position += count
        return taken

    def scalar(self, dtype: str) -> int:
        """One integer."""
        return int(self.take(np.dtype(dtype).itemsize).view(dtype)[0])

    def string(self) -> str:
        """Length and UTF-8 bytes; bytes that are none survive as surrogates."""
        return self.take(self.scalar("<u8")).tobytes().decode("utf-8", "surrogateescape")

    def check_room(self, count: int, least: int) -> None:
        """Raises DamagedFileError where ``count`` things of at least so many bytes cannot be in what is left."""
        if count * least > self.data.size - self.position:
            raise DamagedFileError(f"{self.path}: {count} entries at {self.position} go past the end; it is truncated")
        if count > MAX_COUNT:
            raise DamagedFileError(f"{self.path}: {count} entries, which no model has")

    def value(self, kind: int) -> object:
        """A value of that type as Python's own; arrays of numbers and bools as numpy's, of strings as lists."""
        if kind == ARRAY:
            kind, count = self.scalar("<i4"), self.scalar("<u8")
            return self._strings(count) if kind == STRING else self._numbers(kind, count)
        return self.string() if kind == STRING else self._numbers(kind, 1)[0].item()

    def _numbers(self, kind: int, count: int) -> Array:
        if kind not in SCALARS:
            raise DamagedFileError(f"{self.path}: value of type {kind} at {self.position} is unknown here")
        items: Array = self.take(count * np.dtype(SCALARS[kind]).itemsize).view(SCALARS[kind])
        return items != 0 if kind == BOOL else items

    def _strings(self, count: int) -> list[str]:
        if 8 * count > min(self.data.size, MAX_HEADER) - self.position:
            raise DamagedFileError(f"{self.path}: {count} strings at {self.position} go past the end; it is truncated")
        out: list[str] = []
        data, position, end = self.data.data, self.position, min(self.data.size, MAX_HEADER)
        for _ in range(count):
            start = position + 8
            position = start + int.from_bytes(data[position:start], "little")
            if position > end or start > end:
                raise DamagedFileError(f"{self.path}: string {len(out)} of {count} goes past the end; it is truncated")
            out.append(str(data[start:position], "utf-8", "surrogateescape"))
        self.position = position
        return out
