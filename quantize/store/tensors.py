"""The quantized model on disk, between quantizing and writing: a directory that is appended one tensor at a time.

::

    STORE/plan.json                         header and one record per tensor, in model order
    STORE/assets/config.json, ...           small files of the source that the writers need, verbatim
    STORE/tensors/NAME.00000.safetensors    "codes" U8[rows, cols] and one entry per param, or "values";
                                            of a part also "reads" I32[n]; of the first linear that reads an
                                            input turned in blocks "turn.first", "turn.second", "turn.order"

plan.json holds the sha256 of every other file and, as its last key, its own seal; what is read is checked against them.
A tensor that is larger than a decoder block is cut into several files by stored rows, so nobody has to hold it whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.blocks import joined
from quantize.checkpoint.gguf_sizes import METADATA_ASSET, sizes_from_gguf
from quantize.checkpoint.gguf_values import GgufValues
from quantize.checkpoint.template import SKELETON_ASSET
from quantize.errors import CheckpointError, StoreError, shown
from quantize.gguf.container import parse_header
from quantize.kinds import STORE_MARK, Wanted, is_store, mistaken
from quantize.model_config import EMBEDDING, ModelConfig, ModelSizes, weight_name, with_ids_of
from quantize.store.agreement import disagreement
from quantize.store.chunks import CHANGED, held_turn, read_chunk
from quantize.store.record import TensorRecord
from quantize.store.schema import ASSET_DOOR, PLAN_DOOR, PlanJson, read_record
from quantize.store.seal import holds
from quantize.turn import Turn
from quantize.types import PlainTensor, Tensor
from quantize.weight import Index, Part, StoredWeight, divides

if TYPE_CHECKING:
    from quantize.onnx.template import Skeleton

FORMAT = 1
CONFIG_ASSET = "config.json"
SEAL = "sha256"  # key of plan.json
STRANGE = "is no part of the store"


Piece = tuple[Part, TensorRecord]


class QuantizedStore:
    """A finished store, read one tensor (or one chunk of its rows) at a time."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError for what is no store, and for one that is damaged or has changed."""
        if not is_store(path):
            raise StoreError(mistaken(path, Wanted.STORE))
        self.path, where = path, path / STORE_MARK
        text = PLAN_DOOR.read(where)
        self.header = PLAN_DOOR.json(text, where, dict[str, Any])
        if self.header.get("format") != FORMAT:
            raise StoreError(f"{path}: store format {shown(self.header.get('format'))}, not {FORMAT}; quantize again")
        plan = PLAN_DOOR.convert(self.header, where, PlanJson)
        self.target, self.row_order = plan.target, plan.row_order
        self._digests = self.header.pop("assets", {})
        self._check_seals(text)
        raws = enumerate(self.header.pop("tensors"))
        records = [TensorRecord.from_json(read_record(raw, PLAN_DOOR, f"{where}: tensors[{index}]")) for index, raw in raws]
        self.records = {record.name: record for record in records}
        self._beside: dict[str, list[TensorRecord]] = {}
        for record in records:
            if weight_name(record.name) != record.name:
                self._beside.setdefault(weight_name(record.name), []).append(record)
        self.config = self._sizes()
        problem = disagreement(plan, records, self.config)
        if problem is not None:
            raise PLAN_DOOR.refused(where, problem)

    def _sizes(self) -> ModelSizes:
        """By config.json; of a GGUF of any architecture there is none, but its metadata."""
        if METADATA_ASSET in self.asset_names() and CONFIG_ASSET not in self.asset_names():
            where = str(self.path / "assets" / METADATA_ASSET)
            try:
                values = GgufValues(parse_header(self.asset(METADATA_ASSET)).metadata, where)
                return sizes_from_gguf(values, self.records[EMBEDDING].shape[0], where)
            except (ValueError, KeyError, CheckpointError) as error:
                raise StoreError(f"{where}: cannot be read ({shown(error)}); quantize again") from error
        where = str(self.path / "assets" / CONFIG_ASSET)
        raw = ASSET_DOOR.json(self.asset(CONFIG_ASSET), where, dict[str, Any])
        if self.skeleton is None:
            return ModelConfig.from_hf(raw, where)
        rows = self.records[EMBEDDING].shape[0]
        return self.skeleton.facts.sizes(rows, with_ids_of(raw, rows))

    @cached_property
    def skeleton(self) -> Skeleton | None:
        """The graph of the template that it was made of, if that was an ONNX folder; not to be changed. Raises StoreError,
        CheckpointError."""
        if SKELETON_ASSET not in self.asset_names():
            return None
        from quantize.onnx.template import Skeleton, facts_of, parse_skeleton  # imports onnx, which few stores need

        where = self.path / "assets" / SKELETON_ASSET
        model = parse_skeleton(self.asset(SKELETON_ASSET), where)
        facts = facts_of(model, where)
        if facts is None:
            raise StoreError(f"{where}: says nothing of its model; quantize again")
        return Skeleton(model, facts)

    def asset(self, name: str) -> bytes:
        """One of the source's small files. Raises StoreError if it is missing, too large or has changed."""
        path = self.path / "assets" / name
        if not path.exists():
            raise StoreError(f"{path}: missing, so the store is damaged; quantize again")
        data = ASSET_DOOR.read(path)
        if self._digests and hashlib.sha256(data).hexdigest() != self._digests.get(name):
            raise StoreError(f"{path}: {CHANGED if name in self._digests else STRANGE}; quantize again")
        return data

    def _check_seals(self, text: bytes) -> None:
        """plan.json's own and those of all assets, which are small, and which some readers open by themselves."""
        digits = self.header.pop(SEAL, None)
        sealed = bool(self._digests) or digits is not None  # unlike stores of before there were seals
        if sealed and not holds(text, str(digits)):
            raise StoreError(f"{self.path / STORE_MARK}: {CHANGED}; quantize again")
        for name in {**self._digests, **dict.fromkeys(self.asset_names())} if self._digests else ():
            self.asset(name)

    def asset_names(self) -> list[str]:
        """Names of all assets, sorted."""
        return sorted(item.name for item in (self.path / "assets").iterdir())

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding: then there is no lm_head.weight."""
        return "lm_head.weight" not in self.records

    def chunks(self, name: str) -> Iterator[Tensor]:
        """The tensor's stored rows, a chunk at a time. Raises StoreError if a file is missing or damaged."""
        record, rows = self.records[name], 0
        for index in range(record.chunks):
            chunk = read_chunk(self.path, record, index).weight
            rows += len(chunk.values if isinstance(chunk, PlainTensor) else chunk.codes)
            if rows > record.stored_shape[0]:  # before anybody writes them somewhere
                raise self._misfit(name)
            yield chunk
        if rows != record.stored_shape[0]:
            raise self._misfit(name)

    def read(self, name: str) -> Tensor:
        """The whole tensor, or part."""
        return joined(list(self.chunks(name)))

    def beside(self, name: str) -> list[TensorRecord]:
        """Of the parts of a weight after its first."""
        return self._beside.get(name, [])

    def reads(self, name: str) -> Index | None:
        """The input channels that a part reads, None for all. Raises StoreError."""
        record = self.records[name]
        return read_chunk(self.path, record, 0).reads if record.inputs else None

    def weight(self, name: str) -> StoredWeight:
        """All parts of a weight. Raises StoreError."""
        self.check_reads(name)
        record = self.records[name]
        first = Part(self.read(name), self.reads(name), self.turn(name), record.activation)
        return StoredWeight((first, *(read_chunk(self.path, record, 0) for record in self.beside(name))))

    def turn(self, name: str) -> Turn | None:
        """Of a weight's input. Raises StoreError."""
        return held_turn(self.path, self.records[name], self.records)

    def check_reads(self, name: str) -> None:
        """Raises StoreError for parts of which no one reads all, if they do not read each input channel once."""
        inputs = self.records[name].inputs if weight_name(name) == name else 0
        names = [name, *(record.name for record in self.beside(name))] if inputs else []
        if names and not divides([reads for part in names if (reads := self.reads(part)) is not None], inputs):
            raise StoreError(f"{self.path}: {name}: its parts do not read each of {inputs} input channels once; quantize again")

    def _misfit(self, name: str) -> StoreError:
        return StoreError(f"{self.path}: {name} is not of the shape {self.records[name].shape} of plan.json; quantize again")
