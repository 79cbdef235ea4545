"""A weight of several parts in the graph: each reads its input channels, and what they give is added.

::

    x ─┬─ NAME/...                                      all input channels, or behind NAME/Gather those of NAME.weight.reads
       ├─ NAME.part1/Gather ─ NAME.part1/...            those of NAME.part1.weight.reads
       └─ ...                                           NAME.sum/Sum of all
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto, TensorProto

from exporter.onnx.tensors import Form, Planned, Wire, node, site
from quantize.store.record import TensorRecord


@dataclass(frozen=True)
class Summand:
    """A part and where it stands in the graph; ``x``: the weight's input, which it takes channels of if it is not whole.
    ``turning``: what turns that input, where this is the first that reads it turned so."""

    record: TensorRecord
    wire: Wire
    x: str
    turning: tuple[Planned, ...] = ()

    def form(self, form: Form) -> Form:
        """Of its tensor, on ``wire``, with the channels that it reads taken before."""
        form = replace(form, planned=(*form.planned, *self.turning))
        if not self.record.inputs:
            return form
        reads = reads_of(self.record)
        gather = node("Gather", [self.x, reads.name], [self.wire.x], f"{site(self.record.name)}/Gather", axis=-1)
        return replace(form, nodes=[gather, *form.nodes], planned=(*form.planned, reads))


def reads_of(record: TensorRecord) -> Planned:
    """Of a part: the numbers of the input channels of its columns."""
    return Planned(f"{record.name}.reads", TensorProto.INT32, record.shape[1:])


def summed(records: Sequence[TensorRecord], wire: Wire) -> tuple[list[Summand], list[NodeProto]]:
    """Where each part of a weight stands between the two ends of ``wire``, and the node that adds them, if there are several."""
    if len(records) == 1:
        return [Summand(records[0], wire, wire.x)], []
    parts = [_summand(record, wire) for record in records]
    total = f"{site(records[0].name)}.sum"
    return parts, [node("Sum", [part.wire.y for part in parts], [wire.y], f"{total}/Sum")]


def _summand(record: TensorRecord, wire: Wire) -> Summand:
    stem = site(record.name)
    return Summand(record, replace(wire, x=f"{stem}.x" if record.inputs else wire.x, y=f"{stem}.y"), wire.x)
