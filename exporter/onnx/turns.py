"""Inputs of linears turned, each once for all linears that read it turned so: by ``ai.adadim::RotateAdaDim``, of which
docs/reference/rotate-adadim.md is the specification, or, found in data, by operators that every runtime has.

::

    x ─┬─ NAME.turned/RotateAdaDim ─┬─ NAME/...         NAME: the first linear that reads x turned so
       └─ ...                       └─ OTHER/...

    x ─ NAME.turned/Reshape blocks ─ MatMul first ─ Reshape channels ─ Gather ─ Reshape others ─ MatMul second ─ Reshape ─┬─ ...

Of these NAME.weight.turn.first and NAME.weight.turn.second are F32[n, n], transposed, since rows are multiplied by them, and
NAME.weight.turn.order is I32[IC]. A graph of float16 multiplies in float32 too, between two Casts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx.parser
from onnx import FunctionProto, NodeProto, TensorProto

from exporter.onnx.adadim_op import DOMAIN
from exporter.onnx.sums import Summand
from exporter.onnx.tensors import Planned, Span, Wire, node, site
from quantize.block_turn import BlockTurn, FoundTurn
from quantize.turn import Rotation
from quantize.types import Array

OP_TYPE = "RotateAdaDim"

_BODY = """
<opset_import: ["" : 24], domain: "ai.adadim">
RotateAdaDim (X, signs, left, right) => (Y)
{
  rest = Constant <value_ints: ints = [-1]> ()
  a = Shape <start = 0, end = 1> (left)
  b = Shape <start = 0, end = 1> (right)
  runs_shape = Concat <axis = 0> (rest, a, b)
  x = Cast <to = 1> (X)
  sign_floats = Cast <to = 1> (signs)
  left_floats = Cast <to = 1> (left)
  right_floats = Cast <to = 1> (right)
  signed = Mul (x, sign_floats)
  runs = Reshape (signed, runs_shape)
  right_columns = Transpose (right_floats)
  by_right = MatMul (runs, right_columns)
  by_both = MatMul (left_floats, by_right)
  size = Mul (a, b)
  size_float = Cast <to = 1> (size)
  length = Sqrt (size_float)
  turned = Div (by_both, length)
  shape = Shape (X)
  y = Reshape (turned, shape)
  Y = CastLike (y, X)
}
"""


def rotate_function() -> FunctionProto:
    """The portable body as a model-local function."""
    return onnx.parser.parse_function(_BODY)


@dataclass(frozen=True)
class Turns:
    """Of one graph: what is turned already, by the value and how; ``constants`` of all these nodes."""

    made: dict[tuple[str, Rotation | FoundTurn], str] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)

    def before(self, part: Summand) -> tuple[Summand, list[NodeProto]]:
        """The part, reading its input turned as its record says, and the node that turns it where none does yet."""
        turn, x = part.record.turn or part.record.found_turn, part.wire.x
        if turn is None:
            return part, []
        known = self.made.get((x, turn))
        stem = f"{site(part.record.name)}.turned"
        own = replace(part, wire=replace(part.wire, x=known or stem))
        if known is not None:
            return own, []
        self.made[x, turn] = stem
        if isinstance(turn, FoundTurn):
            turning = turn_arrays(part.record.name, turn.size, part.record.shape[1])
            return replace(own, turning=turning), self._block_nodes(stem, part.wire, turning)
        channels = part.record.shape[1]
        signs = self._constant(f"signs_{channels}_{turn.size}_{turn.seed}", turn.signs(channels))
        factors = [self._constant(f"hadamard_{len(factor)}", factor) for factor in (turn.left, turn.right)]
        return own, [node(OP_TYPE, [x, signs, *factors], [stem], f"{stem}/{OP_TYPE}", domain=DOMAIN)]

    def _block_nodes(self, stem: str, wire: Wire, turning: tuple[Planned, ...]) -> list[NodeProto]:
        first, second, order = turning
        (size, _), (channels,) = first.shape, order.shape
        as_blocks = self._constant(f"blocks_{channels}_{size}", np.array([-1, channels // size, size], np.int64))
        as_channels = self._constant(f"channels_{channels}", np.array([-1, channels], np.int64))
        halved = wire.kind == TensorProto.FLOAT16
        links: list[tuple[str, str, str]] = [  # role, operator, what it takes beside the value before it
            ("Reshape blocks", "Reshape", as_blocks),
            ("MatMul first", "MatMul", first.name),
            ("Reshape channels", "Reshape", as_channels),
            ("Gather", "Gather", order.name),
            ("Reshape others", "Reshape", as_blocks),
            ("MatMul second", "MatMul", second.name),
            ("Reshape", "Reshape", f"{stem}.shape"),
        ]
        nodes, value = [node("Shape", [wire.x], [f"{stem}.shape"], f"{stem}/Shape")], wire.x
        if halved:
            nodes.append(node("Cast", [value], [f"{stem}.wide"], f"{stem}/Cast", to=TensorProto.FLOAT))
            value = f"{stem}.wide"
        for role, op, beside in links:
            made = stem if role == "Reshape" and not halved else f"{stem}.{role}"
            ends = [value, beside], [made], f"{stem}/{role}"
            nodes.append(node(op, *ends, axis=-1) if op == "Gather" else node(op, *ends))
            value = made
        if halved:
            nodes.append(node("Cast", [value], [stem], f"{stem}/Cast back", to=TensorProto.FLOAT16))
        return nodes

    def _constant(self, key: str, value: Array) -> str:
        self.constants[f"adadim.{key}"] = value
        return f"adadim.{key}"


def turn_arrays(name: str, size: int, channels: int) -> tuple[Planned, Planned, Planned]:
    """Of the turn before the weight ``name``: first, second and order."""
    first, second = (Planned(f"{name}.turn.{which}", TensorProto.FLOAT, (size, size)) for which in ("first", "second"))
    return first, second, Planned(f"{name}.turn.order", TensorProto.INT32, (channels,))


def turn_spans(name: str, turn: BlockTurn) -> Iterator[Span]:
    """What ``turn_arrays`` holds."""
    for planned, value in zip(turn_arrays(name, len(turn.first), len(turn.order)), turn.arrays.values(), strict=True):
        stored = value.T if value.ndim > 1 else value
        yield planned.name, 0, np.ascontiguousarray(stored).astype(stored.dtype.newbyteorder("<")).tobytes()
