"""Where a tensor of model.onnx has its values: in the folder, in plain files, and as many as its shape needs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath

from onnx import TensorProto

from quantize.errors import shown
from quantize.outside import LARGEST, open_regular

MOST_DIMS = 16
WIDTHS: dict[int, int] = {  # bits of an element where they are not 8
    **dict.fromkeys((TensorProto.COMPLEX128,), 128),
    **dict.fromkeys((TensorProto.INT64, TensorProto.UINT64, TensorProto.DOUBLE, TensorProto.COMPLEX64), 64),
    **dict.fromkeys((TensorProto.INT32, TensorProto.UINT32, TensorProto.FLOAT), 32),
    **dict.fromkeys((TensorProto.INT16, TensorProto.UINT16, TensorProto.FLOAT16, TensorProto.BFLOAT16), 16),
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
}
_NUMBER = re.compile(r"[0-9]{1,18}")


class Problem(Exception):
    """What is wrong, without the file's name."""


@dataclass(frozen=True)
class Place:
    """Where an initializer's bytes lie: in which file of the folder, from which byte on, how many."""

    location: str
    offset: int
    length: int


def inside(folder: Path, name: str) -> int:
    """How large a file of a folder is. Raises OSError for a link, a name that leads elsewhere, and what is no plain file."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise OSError(f"'{shown(name)}' is no name in the folder")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise OSError(f"{shown(name)} is a link, and what it leads to is not read; put the file itself there")
    try:
        with open_regular(path) as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise OSError(f"{shown(name)}: {error.strerror or error}") from error


def once(names: Iterable[str], what: str) -> None:
    """Raises Problem for a name that is missing or there twice."""
    seen = set[str]()
    for name in names:
        if not name or name in seen:
            raise Problem(f"{what} {f'{shown(name)} is there twice' if name else 'without a name'}")
        seen.add(name)


def check_tensor(tensor: TensorProto, folder: Path, sizes: dict[str, int]) -> Place | None:
    """Where its bytes lie if that is outside of model.onnx. ``sizes``: of the files that were looked at already.

    Raises Problem for a type or a shape that is none, and for bytes that are not there or not in the folder.
    """
    name = shown(tensor.name)
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise Problem(f"tensor {name} is of type {tensor.data_type}, which is none of ONNX's")
    if len(tensor.dims) > MOST_DIMS or any(not 0 <= length <= LARGEST for length in tensor.dims):
        raise Problem(f"tensor {name} has the shape {shown(list(tensor.dims))}")
    size = -(-prod(tensor.dims) * WIDTHS.get(tensor.data_type, 8) // 8)
    external = tensor.data_location == TensorProto.EXTERNAL
    if tensor.data_type == TensorProto.STRING:
        if external or tensor.HasField("raw_data"):
            raise Problem(f"tensor {name} of texts has bytes")
        return None
    if external:
        return _place(tensor, folder, size, sizes)
    held = len(tensor.raw_data)
    if tensor.HasField("raw_data") and held != size:
        raise Problem(f"tensor {name} has {held:,} bytes, its shape {shown(list(tensor.dims))} needs {size:,}")
    if not tensor.HasField("raw_data") and size > 8 * tensor.ByteSize():  # numbers one by one take a byte or more each
        raise Problem(f"tensor {name} has fewer numbers than its shape {shown(list(tensor.dims))} needs")
    return None


def _place(tensor: TensorProto, folder: Path, size: int, sizes: dict[str, int]) -> Place:
    name = shown(tensor.name)
    once((entry.key for entry in tensor.external_data), f"in the external data of {name} the entry")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    for key in ("offset", "length"):
        if not _NUMBER.fullmatch(entries.get(key, "0")):
            raise Problem(f"the external data of {name} has the {key} '{shown(entries[key])}', which is no number")
    location, offset = entries.get("location", ""), int(entries.get("offset", "0"))
    length = int(entries.get("length", size))
    if length != size:
        raise Problem(f"tensor {name} has {length:,} bytes, its shape {shown(list(tensor.dims))} needs {size:,}")
    try:
        held = sizes[location] if location in sizes else inside(folder, location)
    except OSError as error:
        raise Problem(f"the external data of {name}: {error}") from error
    if offset + length > held:
        raise Problem(f"tensor {name} is at [{offset:,}, {offset + length:,}) of {shown(location)}, which has {held:,} bytes")
    sizes[location] = held
    return Place(location, offset, length)
