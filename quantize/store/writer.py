"""A store while it is written: part by part, so that a run that was interrupted goes on where it stopped.

::

    .STORE.DIGITS.adadim/tensors/...         as in the store
    .STORE.DIGITS.adadim/parts/00012.json    of a part that is whole: its tensors' records, and what it reports to the header

DIGITS are of what the run is made from (``run_digest``), so another run never goes on with these. At the end parts/ is
removed and the folder takes its name.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from quantize.block_turn import BlockTurn
from quantize.blocks import joined
from quantize.errors import OutputError, StoreError
from quantize.kinds import STORE_MARK, is_store
from quantize.model_config import weight_name
from quantize.outside import LARGEST, Door, sha256_of
from quantize.store.arrays import READS, TURN
from quantize.store.chunks import TENSORS, file_name, held_turn, holds_turn, read_chunk
from quantize.store.output_place import PARTS
from quantize.store.outputs import Unfinished, check_folder
from quantize.store.record import TensorRecord
from quantize.store.schema import read_record
from quantize.store.seal import OPEN, closed
from quantize.store.tensors import FORMAT, SEAL, Piece
from quantize.types import PlainTensor
from quantize.weight import Part, StoredWeight

OURS = re.compile(r"plan\.json|tensors(/.+\.\d{5}\.safetensors)?|assets(/[\w.]+\.(json|jinja|gguf|onnx))?")
PART_DOOR = Door(StoreError, "remove it", LARGEST)
Report = Mapping[str, Any]


class PartJson(msgspec.Struct):
    """A part's file."""

    tensors: list[dict[str, Any]]
    reports: list[dict[str, Any]]


class StoreWriter:
    """Writes a store that takes the name ``path`` only at ``finish``; use as a context manager.

    ``run``: digits of what it is made from. What an interrupted run of the same digits left is taken over: ``done`` says what
    each of its parts reported. Without digits nothing is. Raises OutputError if ``path`` is there without ``force``, or is
    neither an empty folder nor a store without other files.
    """

    def __init__(self, path: Path, force: bool = False, run: str = "") -> None:
        check_store_output(path, force)
        self.path, self._records = path, dict[str, TensorRecord]()
        self.done = list[Sequence[Report]]()
        self._unfinished = Unfinished(path, True, force, _foreign, run)

    @property
    def _folder(self) -> Path:
        return self._unfinished.path

    def __enter__(self) -> StoreWriter:
        self._unfinished.__enter__()
        try:
            for name in (TENSORS, PARTS):
                (self._folder / name).mkdir(exist_ok=True)
            self._unfinished.resumable = bool(self._unfinished.key)
            for part in self._left():
                self._records |= {record.name: record for record in map(_record, part.tensors)}
                self.done.append(part.reports)
        except BaseException as error:
            self._unfinished.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._unfinished.__exit__(kind, error, trace)

    def add(self, pieces: Iterable[Piece], reports: Sequence[Report] = ()) -> None:
        """The next part: tensors, each whole or in chunks of its rows, and what it has to say. An interruption leaves it."""
        names = list(dict.fromkeys(self.append(part, record) for part, record in pieces))
        part = {"tensors": [self._records[name].to_json() for name in names], "reports": list(reports)}
        path = self._part(len(self.done))
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(part), encoding="utf-8")
        unfinished.replace(path)
        self.done.append(reports)

    def append(self, part: Part, record: TensorRecord) -> str:
        """Add a tensor, or the next chunk of rows of the one that was added last (same name), which is returned."""
        known, tensor = self._records.get(record.name, record), part.weight
        arrays = {"values": tensor.values} if isinstance(tensor, PlainTensor) else {"codes": tensor.codes, **tensor.params}
        if part.reads is not None:
            arrays |= {READS: part.reads.astype(np.int32)}
        if isinstance(part.turn, BlockTurn) and holds_turn(record, known.chunks):
            arrays |= {f"{TURN}{key}": value for key, value in part.turn.arrays.items()}
        contiguous = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        path = self._folder / TENSORS / file_name(record.name, known.chunks)
        try:
            save_file(contiguous, path)
        except SafetensorError as error:  # the library's word for an OSError
            raise OutputError(f"{self.path}: {record.name} cannot be written ({error}); check the free space") from error
        self._records[record.name] = known.longer(sha256_of(path))
        return record.name

    def weight(self, name: str) -> StoredWeight:
        """A weight that was added, with all its parts."""
        return StoredWeight(tuple(self._part_of(record) for part, record in self._records.items() if weight_name(part) == name))

    def _part_of(self, record: TensorRecord) -> Part:
        chunks = [read_chunk(self._folder, record, index) for index in range(record.chunks)]
        turn = held_turn(self._folder, record, self._records)
        return replace(chunks[0], weight=joined([chunk.weight for chunk in chunks]), turn=turn)

    def pieces(self) -> Iterator[Piece]:
        """All that was added so far, every tensor whole, with its record as it was before it was cut."""
        for record in self._records.values():
            yield self._part_of(record), record.uncut()

    def rewrite(self, pieces: Iterable[Piece]) -> None:
        """All tensors anew. From now on an interrupted run begins again."""
        self._unfinished.resumable = False
        shutil.rmtree(self._folder / PARTS)
        old, self._records = self._records, {}
        for part, record in pieces:
            self.append(part, record)
        for record in old.values():
            for index in range(self._records[record.name].chunks, record.chunks):
                (self._folder / TENSORS / file_name(record.name, index)).unlink()

    def finish(self, header: Mapping[str, Any], assets: Mapping[str, bytes]) -> None:
        """Write the assets and plan.json, then give the store its name."""
        self._unfinished.resumable = False
        shutil.rmtree(self._folder / PARTS, ignore_errors=True)
        write_headers(self._folder, header, self._records.values(), assets)
        self._unfinished.finish()

    def _part(self, number: int) -> Path:
        return self._folder / PARTS / f"{number:05d}.json"

    def _left(self) -> Iterator[PartJson]:
        """Parts that are whole, up to the first that is not."""
        for number in count():
            path = self._part(number)
            if not path.is_file():
                return
            try:
                part = PART_DOOR.load(path, PartJson)
                whole = all(map(self._holds, map(_record, part.tensors)))
            except (StoreError, OSError):
                return
            if not whole:
                return
            yield part

    def _holds(self, record: TensorRecord) -> bool:
        """Whether every chunk is as it was written. Raises OSError for one that is missing."""
        paths = [self._folder / TENSORS / file_name(record.name, index) for index in range(record.chunks)]
        return record.sha256 == tuple(map(sha256_of, paths))


def write_headers(folder: Path, header: Mapping[str, Any], records: Iterable[TensorRecord], assets: Mapping[str, bytes]) -> None:
    """All of a store but its tensors: what the writers plan a file from."""
    (folder / "assets").mkdir(exist_ok=True)
    for name, data in assets.items():
        (folder / "assets" / name).write_bytes(data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in assets.items()}
    plan = {"format": FORMAT, **header, "assets": digests, "tensors": [record.to_json() for record in records], SEAL: OPEN}
    text = json.dumps(plan, indent=1) + "\n"
    (folder / STORE_MARK).write_bytes(closed(text.encode(), f'"{SEAL}": "'.encode()))


def check_store_output(path: Path, force: bool) -> None:
    """Raises OutputError for what a new store would not replace."""
    check_folder(path, force, _foreign)


def _foreign(folder: Path) -> str | None:
    """Why a folder is no store, or holds what no store does."""
    if not is_store(folder):
        return "is no store"
    names = sorted(item.relative_to(folder).as_posix() for item in folder.rglob("*"))
    return next((f"{name} in it is no part of a store" for name in names if not OURS.fullmatch(name)), None)


def _record(raw: dict[str, Any]) -> TensorRecord:
    return TensorRecord.from_json(read_record(raw, PART_DOOR, str(raw.get("name"))))
