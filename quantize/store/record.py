"""What a store says of one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quantize.activations import Activation
from quantize.block_turn import FoundTurn
from quantize.blocks import matrix
from quantize.grids import grid_to_json
from quantize.store.schema import PlainJson, QuantizedJson
from quantize.turn import Rotation
from quantize.types import Axis, Grid


@dataclass(frozen=True)
class TensorRecord:
    """What plan.json says of one tensor. ``grid`` None: floats of ``dtype``. ``loss``: every axis that was tried. ``sha256``:
    of each chunk's file; none in stores of before there were any. ``inputs``: of a part that reads ``shape[1]`` of a weight's
    input channels, how many the weight has; else 0. ``turn``: of its input, or ``found_turn``: in data. ``activation``: what
    rounds that, where not the runtime by itself; ``activation_loss``: in nats per token, of every word that was tried.
    ``float_columns``: of what a tensor may become, the input channels that float16 would keep beside it."""

    name: str
    shape: tuple[int, ...]
    grid: Grid | None = None
    dtype: str = "F32"
    axis: Axis = Axis.PER_OC
    rounder: str = ""
    loss: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    chunks: int = 0
    sha256: tuple[str, ...] = ()
    inputs: int = 0
    turn: Rotation | None = None
    found_turn: FoundTurn | None = None
    activation: Activation | None = None
    activation_loss: Mapping[str, float] = field(default_factory=dict)
    float_columns: int = 0

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Of the weight that it is a part of."""
        return (self.shape[0], self.inputs) if self.inputs else self.shape

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of codes or values: transposed for PER_IC; codes of a stack of experts one below the other."""
        if self.grid is not None:
            rows, cols = matrix(self.shape)
            return (rows, cols) if self.axis is Axis.PER_OC else (cols, rows)
        return self.shape

    def without_loss(self) -> TensorRecord:
        """Of a chunk, whose loss is not the tensor's."""
        return replace(self, loss={})

    def longer(self, sha256: str) -> TensorRecord:
        """With one chunk more, whose file has that digest."""
        return replace(self, chunks=self.chunks + 1, sha256=(*self.sha256, sha256))

    def uncut(self) -> TensorRecord:
        """As before it was written."""
        return replace(self, chunks=0, sha256=())

    def to_json(self) -> dict[str, Any]:
        """One JSON object; a plain tensor has no grid."""
        out: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "chunks": self.chunks}
        if self.grid is None:
            out["dtype"] = self.dtype
        else:
            out |= grid_to_json(self.grid) | {"axis": str(self.axis), "rounder": self.rounder, "loss": dict(self.loss)}
        of_input = {"turn": self.turn, "found_turn": self.found_turn, "activation": self.activation}
        told = {key: value.to_json() for key, value in of_input.items() if value is not None}
        rest: dict[str, Any] = {"inputs": self.inputs, **told, "activation_loss": dict(self.activation_loss)}
        rest["float_columns"] = self.float_columns
        rest |= {"note": self.note, "sha256": list(self.sha256)}
        return out | {key: value for key, value in rest.items() if value}

    @classmethod
    def from_json(cls, raw: PlainJson | QuantizedJson) -> TensorRecord:
        """The inverse of ``to_json``, of what ``read_record`` read."""
        record = cls(raw.name, raw.shape, note=raw.note, chunks=raw.chunks, sha256=tuple(raw.sha256), inputs=raw.inputs)
        if isinstance(raw, PlainJson):
            return replace(record, dtype=raw.dtype)
        loss = {str(axis): loss for axis, loss in raw.loss.items()}
        of_input = {"turn": raw.turn, "found_turn": raw.found_turn, "activation": raw.activation}
        made: dict[str, Any] = {key: value.make() for key, value in of_input.items() if value is not None}
        record = replace(record, activation_loss=raw.activation_loss, float_columns=raw.float_columns, **made)
        return replace(record, grid=raw.make(), axis=raw.axis, rounder=raw.rounder, loss=loss)
