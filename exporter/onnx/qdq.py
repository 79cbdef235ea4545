"""A linear whose input has a scale in the file: integers times integers, as QuantizeLinear and DequantizeLinear say it.

docs/reference/static-activations.md is the specification.

::

    x ─ NAME.rounded/QuantizeLinear ─ NAME.rounded/DequantizeLinear ─┬─ NAME/MatMul by NAME/DequantizeLinear of its codes
                                                                     └─ OTHER/MatMul by OTHER/DequantizeLinear of its codes

NAME is the first linear that reads x rounded so. onnxruntime makes one MatMulIntegerToFloat of each MatMul. Codes are U8 around
128: those of I8 saturate unseen on x86 without VNNI.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import NodeProto, TensorProto

from exporter.onnx.sums import Summand
from exporter.onnx.tensors import Form, Planned, Span, Wire, node, site
from quantize.activations import Activation
from quantize.errors import ExportError, asked
from quantize.store.record import TensorRecord
from quantize.types import Array, QuantizedTensor

MIDDLE = 128  # the code of 0 in a symmetric grid of bytes
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Inputs:
    """Of one graph: what is rounded already, by the value and how; ``constants`` of all these nodes."""

    made: dict[tuple[str, Activation], str] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)

    def before(self, part: Summand) -> tuple[Summand, list[NodeProto]]:
        """The part, reading its input rounded as its record says, and the nodes that round it where none do yet.

        Raises ExportError for a graph of float16.
        """
        how, x = part.record.activation, part.wire.x
        if how is None or not how.grid.static:
            return part, []
        if part.wire.kind != TensorProto.FLOAT:
            told = f"{part.record.name}: its input is rounded by a scale that is written for float32 alone"
            raise ExportError(f"{told}; leave {asked('onnx_dtype')} out")
        known, stem = self.made.get((x, how)), f"{site(part.record.name)}.rounded"
        own = replace(part, wire=replace(part.wire, x=known or stem))
        if known is not None:
            return own, []
        self.made[x, how] = stem
        scale, zero, codes = f"{stem}.scale", f"{stem}.zero_point", f"{stem}.codes"
        self.constants[scale], self.constants[zero] = np.array(how.scale, np.float32), np.array(how.zero_point, np.uint8)
        return own, [
            node(QUANTIZE, [x, scale, zero], [codes], f"{stem}/{QUANTIZE}"),
            node(DEQUANTIZE, [codes, scale, zero], [stem], f"{stem}/{DEQUANTIZE}"),
        ]


def static_linear(record: TensorRecord, wire: Wire) -> Form:
    """A linear over codes U8[IC, OC] and scales F32[OC], whose input is rounded before."""
    oc, ic = record.shape
    codes, scale = (
        Planned(f"{record.name}.codes", TensorProto.UINT8, (ic, oc)),
        Planned(f"{record.name}.scale", TensorProto.FLOAT, (oc,)),
    )
    middle, stem = f"adadim.middle_{oc}", site(record.name)
    weight = f"{stem}.weight.values"
    nodes = [
        node(DEQUANTIZE, [codes.name, scale.name, middle], [weight], f"{stem}/{DEQUANTIZE}", axis=1),
        node("MatMul", [wire.x, weight], [wire.y], f"{stem}/MatMul"),
    ]

    def pour(first: int, chunk: QuantizedTensor) -> Iterator[Span]:
        columns = np.ascontiguousarray(chunk.codes.T)
        whole = len(chunk.codes) == oc
        for channel, values in enumerate([columns] if whole else columns):
            yield codes.name, channel * oc + first, values.tobytes()
        yield scale.name, first * 4, chunk.params["scale"].astype(np.float32).tobytes()

    return Form("qdq", nodes, (codes, scale), pour, {middle: np.full(oc, MIDDLE, np.uint8)})
