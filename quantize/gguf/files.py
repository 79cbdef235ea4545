"""A GGUF of one file, or of several, as llama-gguf-split writes them.

::

    NAME-00001-of-00003.gguf    all metadata, and some of the tensors or none
    NAME-00002-of-00003.gguf    split.no, split.count, split.tensors.count, and other tensors
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from quantize.gguf.container import GgufHeader, TensorInfo, Value, ValueType, map_file, parse_header
from quantize.gguf.parts import Buffer
from quantize.types import U8

NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
TYPES = {NUMBER: ValueType.U16, COUNT: ValueType.U16, TENSORS: ValueType.I32}


def part_paths(whole: Path, count: int) -> list[Path]:
    """What the files are called into which ``whole``, NAME.gguf, is split."""
    name = whole.name.removesuffix(".gguf")
    return [whole.with_name(f"{name}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]


def named_parts(path: Path) -> list[Path]:
    """``path``, and if it is called as the first of several, all of them; nothing is read."""
    found = NAME.fullmatch(path.name)
    if found is None or int(found[2]) != 1:
        return [path]
    return part_paths(path.with_name(f"{found[1]}.gguf"), int(found[3]))


class Misplaced(ValueError):
    """A file of a split GGUF that is sound, and not where the others look for it, or not the first; says what to do."""


@dataclass(frozen=True, eq=False)
class GgufFiles:
    """``metadata``: without what only says how it is split. ``tensors``: of all files; each file's are in ``_of``."""

    paths: tuple[Path, ...]
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    _of: Mapping[str, tuple[Buffer, int]]

    def bytes_of(self, info: TensorInfo) -> U8:
        """A tensor's bytes, mapped."""
        data, start = self._of[info.name]
        begin = start + info.offset
        return np.frombuffer(data, np.uint8)[begin : begin + info.nbytes]

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.paths)

    @cached_property
    def sha256(self) -> str:
        """Digest of the file; of several, one after the other. Raises OSError."""
        digest = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        return digest.hexdigest()


def open_files(path: Path) -> GgufFiles:
    """``path`` with all that is split off it. Raises OSError, Misplaced, and ValueError that says what is wrong."""
    first = map_file(path)
    header = parse_header(first)
    count = _number(header, COUNT, 0)
    paths, opened = [path], list[tuple[Buffer, GgufHeader]]([(first, header)])
    if count > 1:
        paths = _paths(path, _number(header, NUMBER, 0), count)
        for number, other in enumerate(paths[1:], 1):
            opened.append(_open_part(other, number, count))
    tensors, places = dict[str, TensorInfo](), dict[str, tuple[Buffer, int]]()
    for where, (data, held) in zip(paths, opened, strict=True):
        for name, info in held.tensors.items():
            if name in tensors:
                raise ValueError(f"tensor {name} is in {where.name} and in a file before it")
            tensors[name], places[name] = info, (data, held.data_start)
    wanted = _number(header, TENSORS, len(tensors))
    if count > 1 and wanted != len(tensors):
        raise ValueError(f"its {count} files hold {len(tensors)} tensors, where {TENSORS} is {wanted}")
    metadata = {key: value for key, value in header.metadata.items() if key not in TYPES}
    return GgufFiles(tuple(paths), metadata, tensors, places)


def _paths(path: Path, number: int, count: int) -> list[Path]:
    """Of all files, of which ``path`` has to be the first."""
    found = NAME.fullmatch(path.name)
    if found is None or int(found[2]) != number + 1 or int(found[3]) != count:
        ending = f"-{number + 1:05d}-of-{count:05d}.gguf"
        raise Misplaced(f"is file {number + 1} of {count} of a split GGUF, but not called so; let its name end in {ending}")
    paths = part_paths(path.with_name(f"{found[1]}.gguf"), count)
    if number:
        raise Misplaced(f"is file {number + 1} of {count} of a split GGUF; name the first: {paths[0].name}")
    missing = [other.name for other in paths if not other.is_file()]
    if missing:
        raise Misplaced(f"is split into {count} files, {len(missing)} of which are missing; put {missing[0]} beside it")
    return paths


def _open_part(path: Path, number: int, count: int) -> tuple[Buffer, GgufHeader]:
    try:
        data = map_file(path)
        header = parse_header(data)
    except (OSError, ValueError) as error:
        raise ValueError(f"its part {path.name} cannot be read ({error})") from error
    held = _number(header, NUMBER, -1), _number(header, COUNT, -1)
    if held != (number, count):
        raise ValueError(f"its part {path.name} says that it is file {held[0] + 1} of {held[1]}")
    return data, header


def _number(header: GgufHeader, key: str, default: int) -> int:
    value = header.metadata.get(key)
    if value is None:
        return default
    if value.type is not TYPES[key]:
        raise ValueError(f"metadata key {key} is of type {value.described}, not {TYPES[key].name.lower()}")
    return int(value.decode())
