"""``ai.adadim::MatMulAdaDim``: codes of 2, 3, 4 or 8 bits on both axes, and the function that runs it without a kernel.

docs/matmul-adadim.md is the specification.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx.parser
from onnx import FunctionProto, TensorProto

from exporter.onnx_cost import packed_size
from exporter.onnx_tensors import Form, Piece, Planned, Wire, check_affine, node, pack_bits, scale_and_zero, site
from quantize.store import TensorRecord
from quantize.types import Axis, QuantizedTensor

DOMAIN = "ai.adadim"
OP_TYPE = "MatMulAdaDim"
VERSION = 1

# The body works for every width and both axes. It starts at DequantizeLinear (scale 1), which onnxruntime never folds: after
# it nothing is constant, so the weights stay packed in memory. Scales are broadcast over groups and never spread to rows of
# weights, because from constants that would be folded. A group that ends early reads garbage codes that Slice cuts off.
_HEAD = """
<opset_import: ["" : 24], domain: "ai.adadim">
MatMulAdaDim <K, N, bits, group_size, per_oc, accuracy_level, layout> (A, codes, scales, zero_points) => (Y)
{
  k = Constant <value_int: int = @K> ()
  n = Constant <value_int: int = @N> ()
  width = Constant <value_int: int = @bits> ()
  group = Constant <value_int: int = @group_size> ()
  oc = Constant <value_int: int = @per_oc> ()
  zero = Constant <value_int: int = 0> ()
  one = Constant <value_int: int = 1> ()
  eight = Constant <value_int: int = 8> ()
  one_byte = Cast <to = 2> (one)
  seven_byte = Constant <value = uint8 {7}> ()
  unit = Constant <value_float: float = 1.0> ()
  from0 = Constant <value_ints: ints = [0]> ()
  axis1 = Constant <value_ints: ints = [1]> ()
  axis2 = Constant <value_ints: ints = [2]> ()
  any = Constant <value_ints: ints = [-1]> ()
  masks = Constant <value = uint8[9] {0, 1, 3, 7, 15, 31, 63, 127, 255}> ()
  mask = Gather (masks, width)
  k_minus_n = Sub (k, n)
  k_minus_n_or_0 = Mul (k_minus_n, oc)
  cols = Add (n, k_minus_n_or_0)
  cols_plus = Add (cols, group)
  cols_up = Sub (cols_plus, one)
  groups = Div (cols_up, group)
  padded = Mul (groups, group)
  k1 = Reshape (k, any)
  n1 = Reshape (n, any)
  cols1 = Reshape (cols, any)
  groups1 = Reshape (groups, any)
  group1 = Reshape (group, any)
  padded1 = Reshape (padded, any)
"""

# {x} unsigned integers of `width` bits, {count} in a row, from the packed rows {source}: a code may straddle two bytes.
_UNPACK = """
  {x}_float = DequantizeLinear ({source}, unit)
  {x}_bytes = Cast <to = 2> ({x}_float)
  {x}_size = Shape <start = 1> ({source})
  {x}_last = Sub ({x}_size, one)
  {x}_index = Range (zero, {count}, one)
  {x}_bit = Mul ({x}_index, width)
  {x}_byte = Div ({x}_bit, eight)
  {x}_next = Add ({x}_byte, one)
  {x}_low_at = Min ({x}_byte, {x}_last)
  {x}_high_at = Min ({x}_next, {x}_last)
  {x}_shift64 = Mod ({x}_bit, eight)
  {x}_shift = Cast <to = 2> ({x}_shift64)
  {x}_unshift = Sub (seven_byte, {x}_shift)
  {x}_low_byte = Gather <axis = 1> ({x}_bytes, {x}_low_at)
  {x}_high_byte = Gather <axis = 1> ({x}_bytes, {x}_high_at)
  {x}_low = BitShift <direction = "RIGHT"> ({x}_low_byte, {x}_shift)
  {x}_high7 = BitShift <direction = "LEFT"> ({x}_high_byte, {x}_unshift)
  {x}_high = BitShift <direction = "LEFT"> ({x}_high7, one_byte)
  {x}_both = BitwiseOr ({x}_low, {x}_high)
  {x}_masked = BitwiseAnd ({x}_both, mask)
  {x} = Cast <to = 1> ({x}_masked)
"""

_TAIL = """
  grouped = Concat <axis = 0> (from0, groups1, group1)
  flat = Concat <axis = 0> (from0, padded1)
  q3 = Reshape (q, grouped)
  z3 = Unsqueeze (z, axis2)
  s3 = Unsqueeze (scales, axis2)
  centred = Sub (q3, z3)
  scaled = Mul (centred, s3)
  rows = Reshape (scaled, flat)
  weight = Slice (rows, from0, cols1, axis1)
  flat_a = Concat <axis = 0> (any, k1)
  a = Reshape (A, flat_a)
  y = Gemm <transB: int = @per_oc> (a, weight)
  batch = Shape <start = 0, end = -1> (A)
  y_shape = Concat <axis = 0> (batch, n1)
  Y = Reshape (y, y_shape)
}
"""


def adadim_function() -> FunctionProto:
    """The portable body as a model-local function."""
    codes = _UNPACK.format(x="q", source="codes", count="padded")
    zeros = _UNPACK.format(x="z", source="zero_points", count="groups")
    return onnx.parser.parse_function(_HEAD + codes + zeros + _TAIL)


def matmul_adadim(record: TensorRecord, wire: Wire, accuracy_level: int) -> Form:
    """A linear on either axis as one node. Raises ExportError for a grid that is not affine."""
    check_affine(record)
    grid, name = record.grid, record.name
    assert grid is not None
    oc, ic = record.shape
    rows, cols = (oc, ic) if record.axis is Axis.PER_OC else (ic, oc)
    size = min(grid.group_size, cols)
    code_bytes, groups = packed_size(cols, grid.bits), -(-cols // size)
    zero_bytes = packed_size(groups, grid.bits)
    planned = (
        Planned(f"{name}.codes", TensorProto.UINT8, (rows, code_bytes)),
        Planned(f"{name}.scale", TensorProto.FLOAT, (rows, groups)),
        Planned(f"{name}.zero_point", TensorProto.UINT8, (1 if grid.symmetric else rows, zero_bytes)),
    )
    sizes = {"K": ic, "N": oc, "bits": grid.bits, "group_size": size, "per_oc": int(record.axis is Axis.PER_OC)}
    inputs = [wire.x, *(tensor.name for tensor in planned)]
    role = f"{site(name)}/{OP_TYPE}"
    op = node(OP_TYPE, inputs, [wire.y], role, domain=DOMAIN, **sizes, accuracy_level=accuracy_level, layout=0)

    def pour(first: int, chunk: QuantizedTensor) -> Iterator[Piece]:
        scale, zero = scale_and_zero(chunk)
        yield f"{name}.codes", first * code_bytes, pack_bits(chunk.codes, grid.bits).tobytes()
        yield f"{name}.scale", first * groups * 4, scale.tobytes()
        if not grid.symmetric:
            yield f"{name}.zero_point", first * zero_bytes, pack_bits(zero, grid.bits).tobytes()
        elif first == 0:
            yield f"{name}.zero_point", 0, pack_bits(zero[:1], grid.bits).tobytes()

    return Form("matmul_adadim", [op], planned, pour)
