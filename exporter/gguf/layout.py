"""Which file of a GGUF holds which tensor, and where: one file, or several of at most so many bytes.

Several are what llama-gguf-split makes (``quantize.gguf.files``): tensors in the order of the one file, none of them cut, and all
metadata in the first. The others tell their number and their target, by which ``--force`` knows them as ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from exporter.file_size import at_least
from exporter.gguf.tokenizer import Metadata
from quantize.errors import ExportError, asked
from quantize.gguf.container import TensorInfo, Value, alignment_of, encode_header, encode_info, encode_values, padded
from quantize.gguf.files import COUNT, NUMBER, TENSORS, TYPES
from quantize.store.record import TensorRecord

TARGET_KEY = "adadim.target"
MAX_PARTS = 400  # each is open and locked until all are whole, and many systems let a process open 1,024 files


@dataclass(frozen=True)
class Planned:
    """One tensor of the file; ``record`` None for rope_freqs.weight, which is computed."""

    info: TensorInfo
    record: TensorRecord | None


@dataclass(frozen=True)
class Part:
    """One file: ``tensors`` have their offsets in it."""

    metadata: Metadata
    tensors: Sequence[Planned]

    @cached_property
    def header(self) -> bytes:
        """All before the data."""
        return encode_header(self.metadata, [item.info for item in self.tensors])

    @property
    def alignment(self) -> int:
        """Bytes; every tensor is padded to it."""
        return alignment_of(self.metadata)

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return len(self.header) + sum(padded(item.info.nbytes, self.alignment) for item in self.tensors)


def lay_out(forms: Sequence[Planned], metadata: Metadata, most: int | None, where: str) -> list[Part]:
    """The files, of at most ``most`` bytes each if that is given. ``forms``: every tensor, not laid out yet.

    Raises ExportError for a tensor that no such file holds, and where there would be too many.
    """
    whole = _part(metadata, forms)
    if most is None or whole.nbytes <= most:
        return [whole]
    other = {TARGET_KEY: metadata[TARGET_KEY]}
    first, later = (_Room.of(head | _keys(0, 0, 0)) for head in (metadata, other))
    groups = _groups(forms, first, later, most, where)
    if len(groups) > MAX_PARTS:
        raise ExportError(f"{where}: {len(groups):,} files, more than {MAX_PARTS}; ask for a larger {asked('split_size')}")
    heads = [metadata, *[other] * (len(groups) - 1)]
    return [
        _part(head | _keys(number, len(groups), len(forms)), group)
        for number, (head, group) in enumerate(zip(heads, groups, strict=True))
    ]


def _keys(number: int, count: int, tensors: int) -> Metadata:
    held = {NUMBER: number, COUNT: count, TENSORS: tensors}
    return {key: Value.encode(TYPES[key], value) for key, value in held.items()}


def _part(metadata: Metadata, forms: Sequence[Planned]) -> Part:
    """One after another, each padded to the alignment."""
    offset, out = 0, []
    for form in forms:
        out.append(replace(form, info=replace(form.info, offset=offset)))
        offset += padded(form.info.nbytes, alignment_of(metadata))
    return Part(metadata, out)


@dataclass(frozen=True)
class _Room:
    """What a file takes while tensors are added to it: bytes of its header without padding, and of its data."""

    alignment: int
    header: int
    data: int = 0

    @classmethod
    def of(cls, metadata: Metadata) -> _Room:
        return cls(alignment_of(metadata), len(encode_values(metadata, 0)))

    @property
    def nbytes(self) -> int:
        return padded(self.header, self.alignment) + self.data

    def plus(self, info: TensorInfo) -> _Room:
        header, data = len(encode_info(info)), padded(info.nbytes, self.alignment)
        return replace(self, header=self.header + header, data=self.data + data)


def _groups(forms: Sequence[Planned], first: _Room, other: _Room, most: int, where: str) -> list[list[Planned]]:
    """``forms`` as they follow one another, cut where a file is full; the first, which has the metadata, may be left without."""
    largest = max(forms, key=lambda form: form.info.nbytes).info
    alone = other.plus(largest).nbytes
    if max(alone, first.nbytes) > most:
        what = f"{largest.name} takes {largest.nbytes:,} bytes" if alone > most else f"its metadata takes {first.nbytes:,} bytes"
        least = f"ask for {asked('split_size')} of at least {at_least(max(alone, first.nbytes))}"
        raise ExportError(f"{where}: {what}, more than a file of {most:,}, and is not cut; {least}")
    groups, room = [list[Planned]()], first
    for form in forms:
        room = room.plus(form.info)
        if room.nbytes > most:
            groups.append([])
            room = other.plus(form.info)
        groups[-1].append(form)
    return groups
