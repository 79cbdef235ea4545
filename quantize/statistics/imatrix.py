"""llama.cpp's importance matrices: the mean square of each input channel, read in both of their forms, written in the newer.

GGUF, for each weight (named as in a GGUF model)::

    NAME.in_sum2  F32[IC]   sum over the tokens of x**2
    NAME.counts   F32[1]    tokens
    general.type "imatrix" | imatrix.datasets [string] | imatrix.chunk_count u32 | imatrix.chunk_size u32

The older binary form, little-endian throughout::

    i32 entries | each: i32 length, name | i32 calls | i32 values | F32[values], calls times the mean of x**2
    i32 calls | i32 length, name of the text                   # not in the oldest files

(``save_imatrix`` and ``save_imatrix_legacy`` of llama.cpp's tools/imatrix; the oldest files hold plain sums, which differ
by a factor that all values share.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from quantize.checkpoint import Checkpoint
from quantize.config import DataSpec
from quantize.errors import CalibrationError
from quantize.gguf.container import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    Cursor,
    GgufHeader,
    TensorInfo,
    Value,
    ValueType,
    encode_header,
    map_file,
    padded,
    parse_header,
)
from quantize.gguf.names import to_gguf_name, to_source_name
from quantize.kinds import readable
from quantize.model_config import EMBEDDING, HEAD
from quantize.progress import track
from quantize.statistics.by_template import TemplateRun, check_passes
from quantize.statistics.calibration import Coverage, calibration_data, rank_poor
from quantize.statistics.experts import ExpertStats
from quantize.statistics.measured import Walk, blocks_of
from quantize.store.outputs import new_file
from quantize.types import F32, I64, InputStats, TensorSpec

SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNKS, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


@dataclass(frozen=True, eq=False)
class Entry:
    """Of one weight: ``squares`` F32[channels], and ``tokens`` I64[1] or I64[experts] over which they are means."""

    squares: F32
    tokens: I64

    def of(self, experts: int) -> ExpertStats:
        """Of a stack."""
        return ExpertStats(self.squares.reshape(experts, -1), np.broadcast_to(self.tokens, (experts,)))


_Found = tuple[dict[str, Entry], list[str], int]  # entries, texts, chunks


@dataclass(frozen=True)
class Imatrix:
    """What a file says: by GGUF name the mean squares F32[IC], of a stack F32[experts * IC], and the tokens of each."""

    path: Path
    sha256: str
    entries: Mapping[str, Entry]
    datasets: list[str]
    chunks: int

    def for_model(self, specs: Mapping[str, TensorSpec], wanted: Iterable[str]) -> dict[str, InputStats | ExpertStats]:
        """The statistics by weight name of a model.

        Raises CalibrationError for an entry that is not the model's and for one of ``wanted`` without any.
        """
        found = dict[str, InputStats | ExpertStats]()
        for name, entry in self.entries.items():
            weight = to_source_name(name)
            spec = specs.get(EMBEDDING if weight == HEAD and HEAD not in specs else weight)
            if spec is None:
                raise self._misfit(f"{name} is no weight of this model")
            experts = spec.shape[0] if len(spec.shape) == 3 else 1
            if len(entry.squares) != experts * spec.shape[-1] or len(entry.tokens) not in (1, experts):
                raise self._misfit(f"{name} has {len(entry.squares)} channels, this model's has {experts * spec.shape[-1]}")
            found[weight] = entry.of(experts) if len(spec.shape) == 3 else InputStats(entry.squares, int(entry.tokens[0]))
        for name in wanted:
            if name not in found:
                raise self._misfit(f"nothing in it on {to_gguf_name(name)}")
        return found

    def to_json(self) -> dict[str, Any]:
        """For the store's header."""
        return {"name": readable(self.path.name), "sha256": self.sha256, "datasets": self.datasets, "chunks": self.chunks}

    def _misfit(self, reason: str) -> CalibrationError:
        return CalibrationError(f"{self.path}: {reason}; use one that was made from this very model, as `adadim imatrix` does")


def read_imatrix(path: Path) -> Imatrix:
    """Read a file of either form. Raises CalibrationError for one that is missing, truncated, damaged or something else."""
    try:
        data = map_file(path)
        entries, datasets, chunks = (_parse_gguf if data[:4] == MAGIC else _parse_binary)(data)
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror}); name an importance matrix") from error
    except ValueError as error:
        raise CalibrationError(f"{path}: no intact importance matrix ({error}); make one with `adadim imatrix`") from error
    return Imatrix(path, hashlib.sha256(data).hexdigest(), entries, datasets, chunks)


def make_imatrix(source: Checkpoint, out: Path, data: DataSpec, force: bool = False) -> Coverage:
    """Run ``source`` over the calibration text of ``data`` and write what llama-quantize reads; returns what was run over.

    The same inputs give the same bytes. Raises CalibrationError, ConfigError and OutputError.
    """
    with new_file(out, force) as file:
        check_passes(source, data)
        tokens, coverage = calibration_data(data, source)
        sums: dict[str, F32] = {}
        poor = list[str]()
        for run in track(blocks_of(source, tokens, "none", Walk(memory=data.max_memory)), "measuring"):
            poor += rank_poor(run.stats, run.sites)
            for name, stats in run.stats.items():
                sums[to_gguf_name(name) + SUMS] = stats.importance * np.float32(stats.n_tokens)
                sums[to_gguf_name(name) + COUNTS] = np.array([stats.n_tokens], np.float32)
            for name, own in run.experts.items() if isinstance(run, TemplateRun) else ():
                counts = own.tokens.astype(np.float32)
                sums[to_gguf_name(name) + SUMS] = np.einsum("eii->ei", own.squares) * counts[:, None]
                sums[to_gguf_name(name) + COUNTS] = counts
        for part in _encode(sums, coverage):
            file.write(part)
    return replace(coverage, rank_poor=tuple(poor))


def _parse_gguf(data: memoryview) -> _Found:
    header = parse_header(data)
    entries = {}
    for stored in header.tensors:
        name, _, part = stored.rpartition(".")
        if f".{part}" in (SUMS, COUNTS) and name not in entries:
            entries[name] = _mean_square(name, *(_floats(data, header, name + suffix) for suffix in (SUMS, COUNTS)))
    if not entries:
        raise ValueError(f"a GGUF without a tensor NAME{SUMS}")
    datasets, chunks = header.metadata.get(DATASETS), header.metadata.get(CHUNKS)
    if datasets is not None and datasets.items is not ValueType.STRING:
        raise ValueError(f"{DATASETS} is of type {datasets.described}, not array of string")
    if chunks is not None and chunks.type is not ValueType.U32:
        raise ValueError(f"{CHUNKS} is of type {chunks.described}, not u32")
    return entries, [] if datasets is None else datasets.decode(), 0 if chunks is None else chunks.decode()


def _floats(data: memoryview, header: GgufHeader, name: str) -> F32:
    info = header.tensors.get(name)
    if info is None or info.type is not GGMLQuantizationType.F32:
        raise ValueError(f"no {name}" if info is None else f"{name} is {info.type.name}, not F32")
    return np.frombuffer(data, "<f4", info.nbytes // 4, header.data_start + info.offset)


def _parse_binary(data: memoryview) -> _Found:
    cursor = Cursor(data, 0)
    entries: dict[str, Entry] = {}
    for _ in range(_at_least(1, "entries", cursor)):
        name = cursor.take(_at_least(1, "bytes of a name", cursor)).decode()
        if name in entries:
            raise ValueError(f"{name} is twice in it")
        calls = max(1, _at_least(0, f"calls of {name}", cursor))
        values = np.frombuffer(cursor.take(4 * _at_least(1, f"values of {name}", cursor)), "<f4")
        entries[name] = _mean_square(name, values, np.array([calls], np.float32))
    if cursor.position == len(data):
        return entries, [], 0
    chunks = _at_least(0, "calls", cursor)
    dataset = cursor.take(_at_least(0, "bytes of a text's name", cursor)).decode()
    if cursor.position != len(data):
        raise ValueError(f"it goes on for {len(data) - cursor.position} bytes after its end")
    return entries, [dataset] if dataset else [], chunks


def _at_least(least: int, what: str, cursor: Cursor) -> int:
    number = cursor.number("i")
    if number < least:
        raise ValueError(f"{number} {what}")
    return number


def _mean_square(name: str, sums: F32, counts: F32) -> Entry:
    """Of a stack some experts may have seen nothing."""
    if not counts.size or sums.size % counts.size:
        raise ValueError(f"{name} has {sums.size} values of {counts.size} experts")
    if not 1 <= counts.max() < np.inf or not (counts >= 0).all():
        raise ValueError(f"{name}: its count is {counts[0]:g}, so nothing was measured")
    wrong = np.flatnonzero(~((sums >= 0) & (sums < np.inf)))
    if wrong.size:
        raise ValueError(f"{name}: value {wrong[0]} is {sums[wrong[0]]:g}, no sum of squares")
    means = sums.reshape(counts.size, -1) / np.maximum(counts, np.float32(1))[:, None]
    return Entry(means.ravel().astype(np.float32), counts.astype(np.int64))


def _encode(tensors: Mapping[str, F32], coverage: Coverage) -> Iterator[bytes]:
    """The file, part by part; every tensor starts at a multiple of the alignment."""
    metadata = {
        "general.type": Value.encode(ValueType.STRING, "imatrix"),
        DATASETS: Value.encode_array(ValueType.STRING, [coverage.text]),
        CHUNKS: Value.encode(ValueType.U32, coverage.tokens // coverage.sequence),
        CHUNK_SIZE: Value.encode(ValueType.U32, coverage.sequence),
    }
    infos, offset = [], 0
    for name, values in tensors.items():
        infos.append(TensorInfo(name, GGMLQuantizationType.F32, values.shape, offset))
        offset += padded(values.nbytes, DEFAULT_ALIGNMENT)
    yield encode_header(metadata, infos)
    for values in tensors.values():
        data = values.tobytes()
        yield data.ljust(padded(len(data), DEFAULT_ALIGNMENT), b"\0")
