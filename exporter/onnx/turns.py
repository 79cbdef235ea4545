"""``ai.adadim::RotateAdaDim``: inputs of linears turned, each once for all linears that read it turned so.

docs/reference/rotate-adadim.md is the specification.

::

    x ─┬─ NAME.turned/RotateAdaDim ─┬─ NAME/...         NAME: the first linear that reads x turned so
       └─ ...                       └─ OTHER/...
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import onnx.parser
from onnx import FunctionProto, NodeProto

from exporter.onnx.adadim_op import DOMAIN
from exporter.onnx.sums import Summand
from exporter.onnx.tensors import node, site
from quantize.turn import I8, Rotation
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

    made: dict[tuple[str, Rotation], str] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)

    def before(self, part: Summand) -> tuple[Summand, list[NodeProto]]:
        """The part, reading its input turned as its record says, and the node that turns it where none does yet."""
        turn, x = part.record.turn, part.wire.x
        if turn is None:
            return part, []
        known = self.made.get((x, turn))
        stem = f"{site(part.record.name)}.turned"
        own = replace(part, wire=replace(part.wire, x=known or stem))
        if known is not None:
            return own, []
        self.made[x, turn] = stem
        channels = part.record.shape[1]
        signs = self._constant(f"signs_{channels}_{turn.size}_{turn.seed}", turn.signs(channels))
        factors = [self._constant(f"hadamard_{len(factor)}", factor) for factor in (turn.left, turn.right)]
        return own, [node(OP_TYPE, [x, signs, *factors], [stem], f"{stem}/{OP_TYPE}", domain=DOMAIN)]

    def _constant(self, key: str, value: I8) -> str:
        self.constants[f"adadim.{key}"] = value
        return f"adadim.{key}"
