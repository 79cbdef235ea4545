"""Safetensors headers, parsed here: the library copies every tensor and numpy has no BF16.

::

    u64 n | n bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}} | data
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.floats import FLOATS
from quantize.errors import CheckpointError
from quantize.types import Array, TensorSpec

MAX_HEADER = 100_000_000  # bytes; the library's own limit
AGAIN = "download it again"


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


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file. Raises CheckpointError for anything that does not add up."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise CheckpointError(f"{path}: truncated or no safetensors file ({size} bytes); {AGAIN}")
            entries = json.loads(file.read(length), object_pairs_hook=lambda pairs: _unique(pairs, path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: header is not JSON ({error}); {AGAIN}") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: header is not a JSON object; {AGAIN}")
    entries.pop("__metadata__", None)
    tensors = {name: _stored(name, entry, path, 8 + length) for name, entry in entries.items()}
    _check_layout(list(tensors.values()), path, 8 + length, size)
    return tensors


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise CheckpointError(f"{path}: {name} is in the header twice; {AGAIN}")
    return dict(pairs)


def _stored(name: str, entry: Any, path: Path, data: int) -> StoredTensor:  # noqa: ANN401 - unchecked JSON
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        sound = all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {name}: damaged header entry; {AGAIN}") from error
    if dtype not in FLOATS:
        raise CheckpointError(f"{path}: {name} is {dtype}; supported: {', '.join(FLOATS)}; convert it, or use the original model")
    spec = TensorSpec(name, dtype, shape)
    if not sound or end - begin != math.prod(shape) * FLOATS[dtype].itemsize:
        raise CheckpointError(f"{path}: {name}: {dtype} {shape} does not fit bytes {begin} to {end}; {AGAIN}")
    return StoredTensor(spec, path, data + begin, data + end)


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
