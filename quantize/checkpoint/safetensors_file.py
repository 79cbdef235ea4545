"""Safetensors headers, parsed here: the library copies every tensor and numpy has no BF16.

::

    u64 n | n bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}} | data
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.floats import FLOATS
from quantize.errors import CheckpointError, shown
from quantize.foreign import LFS
from quantize.outside import open_regular, parsed
from quantize.types import Array, TensorSpec

MAX_HEADER = 100_000_000  # bytes; the library's own limit
SMALL_HEADER = 1 << 20  # bytes; a larger one has more data than header behind it
MAX_DIMS = 8  # of a shape; weights have one or two
MAX_TENSORS = 100_000  # of one file; the largest decoders have some thousands
AGAIN = "download it again"
FLOAT_BYTES = {word: dtype.itemsize for word, dtype in FLOATS.items()}
CODES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8}
QUANTIZED_BYTES = FLOAT_BYTES | CODES  # what quantized checkpoints hold


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: bytes [begin, end) of ``file``."""

    spec: TensorSpec
    file: Path
    begin: int
    end: int

    def map(self) -> Array:
        """The tensor as a read-only map, F32, F16 or (BF16) uint16; nothing is read yet."""
        mapped = np.memmap(self.file, np.uint8, "r", offset=self.begin, shape=(self.end - self.begin,))
        values: Array = mapped.view(FLOATS[self.spec.dtype]).reshape(self.spec.shape)
        return values


def read_header(path: Path, sizes: Mapping[str, int] = FLOAT_BYTES) -> dict[str, StoredTensor]:
    """Every tensor of one file; ``sizes``: bytes of the dtypes that may be there.

    Raises CheckpointError for anything that does not add up.
    """
    header, size = _read(path)
    try:
        entries = parsed(header)
    except ValueError as error:
        raise CheckpointError(f"{path}: header is not JSON ({shown(error)}); {AGAIN}") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: header is not a JSON object; {AGAIN}")
    metadata = entries.pop("__metadata__", None)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        raise CheckpointError(f"{path}: __metadata__ of its header is no object of texts; {AGAIN}")
    tensors = {name: _stored(name, entry, path, sizes) for name, entry in entries.items()}
    data = 8 + len(header)
    tensors = {name: replace(one, begin=data + one.begin, end=data + one.end) for name, one in tensors.items()}
    _check_layout(list(tensors.values()), path, data, size)
    return tensors


def _read(path: Path) -> tuple[bytes, int]:
    """(the header's JSON, bytes of the file): compared with one another before anything is made of them."""
    try:
        with open_regular(path) as file:
            size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
            if length == int.from_bytes(LFS[:8], "little"):
                raise CheckpointError(f"{path}: a Git LFS pointer, not the weights; fetch them: git lfs pull, or hf download")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise CheckpointError(f"{path}: truncated or no safetensors file ({size} bytes); {AGAIN}")
            if length > max(SMALL_HEADER, size - 8 - length):
                raise CheckpointError(f"{path}: a header of {length} bytes for {size - 8 - length} bytes of tensors; {AGAIN}")
            header = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if (count := header.count(b'"data_offsets"')) > MAX_TENSORS:
        raise CheckpointError(f"{path}: {count} tensors, which no decoder here has; {AGAIN}")
    return header, size


def _stored(name: str, entry: Any, path: Path, sizes: Mapping[str, int]) -> StoredTensor:  # noqa: ANN401 - unchecked JSON
    """Its bytes counted from where the data begin."""
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        sound = (
            isinstance(dtype, str)
            and isinstance(entry["shape"], list)
            and all(type(number) is int for number in (*shape, begin, end))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {name}: damaged header entry; {AGAIN}") from error
    if not sound or len(shape) > MAX_DIMS:
        raise CheckpointError(f"{path}: {name}: damaged header entry; {AGAIN}")
    if dtype not in sizes:
        raise CheckpointError(f"{path}: {name} is {dtype}; supported: {', '.join(sizes)}; convert it, or use the original model")
    spec = TensorSpec(name, dtype, shape)
    if min((*shape, 1)) < 1 or begin < 0 or end - begin != math.prod(shape) * sizes[dtype]:
        raise CheckpointError(f"{path}: {name}: {dtype} {shape} does not fit bytes {begin} to {end}; {AGAIN}")
    return StoredTensor(spec, path, begin, end)


def _check_layout(tensors: list[StoredTensor], path: Path, data: int, size: int) -> None:
    """Tensors follow one another without gaps up to the file's end: neither overlap nor hidden bytes nor truncation."""
    position = data
    for tensor in sorted(tensors, key=lambda item: (item.begin, item.end)):
        if tensor.begin != position:
            raise CheckpointError(f"{path}: {tensor.spec.name} begins at byte {tensor.begin}, expected {position}; {AGAIN}")
        position = tensor.end
    if position != size:
        word = "truncated" if position > size else "too long"
        raise CheckpointError(f"{path}: {word}: the header describes {position} bytes, the file has {size}; {AGAIN}")
