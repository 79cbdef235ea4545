"""The quantized model on disk, between quantizing and writing: a directory that is appended one tensor at a time.

::

    STORE/plan.json                         header and one record per tensor, in model order
    STORE/assets/config.json, ...           small files of the source that the writers need, verbatim
    STORE/tensors/NAME.00000.safetensors    "codes" U8[rows, cols] and one entry per param, or "values"

A tensor that is larger than a decoder layer is cut into several files by stored rows, so nobody has to hold it whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from quantize.errors import OutputError, StoreError
from quantize.grids import make_grid
from quantize.model_config import ModelConfig
from quantize.types import Axis, Grid, PlainTensor, QuantizedTensor, RowOrder

FORMAT = 1


@dataclass(frozen=True)
class TensorRecord:
    """What plan.json says of one tensor. ``grid`` None: floats of ``dtype``. ``loss``: every axis that was tried."""

    name: str
    shape: tuple[int, ...]
    grid: Grid | None = None
    dtype: str = "F32"
    axis: Axis = Axis.PER_OC
    rounder: str = ""
    loss: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    chunks: int = 0

    def to_json(self) -> dict[str, Any]:
        """One JSON object; a plain tensor has no grid."""
        out: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "chunks": self.chunks}
        if self.grid is None:
            out["dtype"] = self.dtype
        else:
            grid = self.grid
            out |= {"grid": grid.name, "bits": grid.bits, "group_size": grid.group_size}
            out |= {"symmetric": grid.symmetric, "axis": str(self.axis), "rounder": self.rounder}
            out["loss"] = dict(self.loss)
        return out | ({"note": self.note} if self.note else {})

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TensorRecord:
        """The inverse of ``to_json``."""
        record = cls(str(raw["name"]), tuple(raw["shape"]), note=raw.get("note", ""), chunks=int(raw["chunks"]))
        if "grid" not in raw:
            return replace(record, dtype=str(raw["dtype"]))
        grid = make_grid(raw["grid"], raw["bits"], raw["group_size"], raw["symmetric"])
        return replace(record, grid=grid, axis=Axis(raw["axis"]), rounder=raw["rounder"], loss=raw["loss"])


class StoreWriter:
    """Writes ``path`` through a sibling ``path.partial`` that takes its name only at ``finish``; use as a context manager."""

    def __init__(self, path: Path, force: bool = False) -> None:
        self.path, self._records = path, dict[str, TensorRecord]()
        self._partial = path.with_name(path.name + ".partial")
        if path.exists() and not force:
            raise OutputError(f"{path}: exists already; name another --out or pass --force")
        if path.exists() and not (path / "plan.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise OutputError(f"{path}: is no store, so --force does not replace it; name another --out")
        shutil.rmtree(self._partial, ignore_errors=True)
        (self._partial / "tensors").mkdir(parents=True)
        (self._partial / "assets").mkdir()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, tensor: QuantizedTensor | PlainTensor, record: TensorRecord) -> None:
        """Add a tensor, or the next chunk of rows of the one that was added last (same name)."""
        known = self._records.get(record.name, record)
        arrays = {"values": tensor.values} if isinstance(tensor, PlainTensor) else {"codes": tensor.codes, **tensor.params}
        contiguous = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        try:
            save_file(contiguous, self._partial / "tensors" / _file_name(record.name, known.chunks))
        except SafetensorError as error:  # the library's word for an OSError
            raise OutputError(f"{self.path}: {record.name} cannot be written ({error}); check the free space") from error
        self._records[record.name] = replace(known, chunks=known.chunks + 1)

    def finish(self, header: Mapping[str, Any], assets: Mapping[str, bytes]) -> None:
        """Write the assets and plan.json, then give the store its name."""
        for name, data in assets.items():
            (self._partial / "assets" / name).write_bytes(data)
        plan = {"format": FORMAT, **header, "tensors": [record.to_json() for record in self._records.values()]}
        (self._partial / "plan.json").write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        if self.path.is_dir():
            shutil.rmtree(self.path)
        self._partial.replace(self.path)


class QuantizedStore:
    """A finished store, read one tensor (or one chunk of its rows) at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.header: dict[str, Any] = json.loads((path / "plan.json").read_text(encoding="utf-8"))
            if self.header.get("format") != FORMAT:
                raise StoreError(f"{path}: store format {self.header.get('format')!r}, not {FORMAT}; quantize again")
            records = [TensorRecord.from_json(raw) for raw in self.header.pop("tensors")]
            self.config = ModelConfig.from_hf(json.loads(self.asset("config.json")), str(path / "assets" / "config.json"))
            self.target = str(self.header["target"])
            self.row_order = RowOrder(self.header["row_order"])
        except FileNotFoundError as error:
            raise StoreError(f"{path}: not a store ({error.filename} is missing); make one with `adadim quantize`") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: plan.json is damaged ({error}); quantize again") from error
        self.records = {record.name: record for record in records}

    def asset(self, name: str) -> bytes:
        """One of the source's small files. Raises FileNotFoundError."""
        return (self.path / "assets" / name).read_bytes()

    def asset_names(self) -> list[str]:
        """Names of all assets, sorted."""
        return sorted(item.name for item in (self.path / "assets").iterdir())

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding: then there is no lm_head.weight."""
        return "lm_head.weight" not in self.records

    def chunks(self, name: str) -> Iterator[QuantizedTensor | PlainTensor]:
        """The tensor's stored rows, a chunk at a time. Raises StoreError if a file is missing or damaged."""
        record = self.records[name]
        for index in range(record.chunks):
            path = self.path / "tensors" / _file_name(name, index)
            try:
                arrays = load_file(path)
                if record.grid is None:
                    yield PlainTensor(name, arrays["values"], record.dtype)
                else:
                    yield QuantizedTensor(name, arrays.pop("codes"), record.axis, record.grid, arrays)
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                raise StoreError(f"{path}: cannot be read ({error}); quantize again") from error

    def read(self, name: str) -> QuantizedTensor | PlainTensor:
        """The whole tensor."""
        parts = list(self.chunks(name))
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        if isinstance(first, PlainTensor):
            values = [part.values for part in parts if isinstance(part, PlainTensor)]
            return replace(first, values=np.concatenate(values))
        quantized = [part for part in parts if isinstance(part, QuantizedTensor)]
        params = {key: np.concatenate([part.params[key] for part in quantized]) for key in first.params}
        return replace(first, codes=np.concatenate([part.codes for part in quantized]), params=params)


def _file_name(name: str, chunk: int) -> str:
    return f"{name}.{chunk:05d}.safetensors"
