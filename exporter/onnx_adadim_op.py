"""``ai.adadim::MatMulAdaDim``: codes of 2, 3, 4 or 8 bits on both axes, and the function that runs it without a kernel.

docs/matmul-adadim.md is the specification.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx.parser
from onnx import FunctionProto, TensorProto

from exporter.onnx_cost import packed_size
from exporter.onnx_tensors import Form, Piece, Planned, Wire, node, pack_bits, planned_scale, site
from quantize.store import TensorRecord
from quantize.types import Axis, QuantizedTensor

DOMAIN = "ai.adadim"
OP_TYPE = "MatMulAdaDim"
VERSION = 1

# The body works for every width and both axes. It starts at DequantizeLinear (scale 1), which onnxruntime never folds: after
# it nothing is constant, so the weights stay packed in memory. Scales are broadcast over groups and never spread to rows of
# weights, because from constants that would be folded. A last group that ends early is filled up and cut off again.
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
  unit = Constant <value_float: float = 1.0> ()
  from0 = Constant <value_ints: ints = [0]> ()
  axis1 = Constant <value_ints: ints = [1]> ()
  axis2 = Constant <value_ints: ints = [2]> ()
  any = Constant <value_ints: ints = [-1]> ()
  masks = Constant <value = uint32[9] {0, 0, 3, 7, 15, 0, 0, 0, 255}> ()
  mask = Gather (masks, width)
  word_bytes = Constant <value = int64[9] {0, 0, 1, 3, 1, 0, 0, 0, 1}> ()
  word = Gather (word_bytes, width)
  word1 = Reshape (word, any)
  word_bits = Mul (word, eight)
  values = Div (word_bits, width)
  value_indices = Range (zero, values, one)
  value_shifts = Mul (value_indices, width)
  value_column = Unsqueeze (value_shifts, axis1)
  value_places = Cast <to = 12> (value_column)
  three_places = Constant <value_floats: floats = [1.0, 256.0, 65536.0]> ()
  places = Slice (three_places, from0, word1, from0)
  byte_places = Unsqueeze (places, axis1)
  word_shape = Concat <axis = 0> (from0, any, word1)
  across_shape = Concat <axis = 0> (from0, axis1, any)
  row_shape = Concat <axis = 0> (from0, any)
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

# {x} as floats, {count} in a row, from the packed rows {source}. A word is the fewest bytes that whole values fill: 3 bytes at
# 3 bits (8 values), else 1. Its bytes are summed up as floats, which is exact below 2**24, then shifted and masked; words come
# last while that happens, because broadcasts over a long last axis are fast.
_UNPACK = """
  {x}_bytes = DequantizeLinear ({source}, unit)
  {x}_count_plus = Add ({count}, values)
  {x}_count_up = Sub ({x}_count_plus, one)
  {x}_words = Div ({x}_count_up, values)
  {x}_wanted = Mul ({x}_words, word)
  {x}_size = Shape <start = 1> ({source})
  {x}_missing = Sub ({x}_wanted, {x}_size)
  {x}_pads = Concat <axis = 0> (from0, from0, from0, {x}_missing)
  {x}_filled = Pad ({x}_bytes, {x}_pads)
  {x}_by_word = Reshape ({x}_filled, word_shape)
  {x}_sums = MatMul ({x}_by_word, byte_places)
  {x}_integers = Cast <to = 12> ({x}_sums)
  {x}_across = Reshape ({x}_integers, across_shape)
  {x}_shifted = BitShift <direction = "RIGHT"> ({x}_across, value_places)
  {x}_masked = BitwiseAnd ({x}_shifted, mask)
  {x}_floats = Cast <to = 1> ({x}_masked)
  {x}_in_order = Transpose <perm = [0, 2, 1]> ({x}_floats)
  {x}_rows = Reshape ({x}_in_order, row_shape)
  {x}_end = Reshape ({count}, any)
  {x} = Slice ({x}_rows, from0, {x}_end, axis1)
"""

_TAIL = """
  grouped = Concat <axis = 0> (from0, groups1, group1)
  flat = Concat <axis = 0> (from0, padded1)
  q3 = Reshape (q, grouped)
  z3 = Unsqueeze (z, axis2)
  s = Cast <to = 1> (scales)
  s3 = Unsqueeze (s, axis2)
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
    """A linear on either axis as one node."""
    grid, name = record.grid, record.name
    assert grid is not None
    oc, ic = record.shape
    rows, cols = (oc, ic) if record.axis is Axis.PER_OC else (ic, oc)
    size = min(grid.group_size, cols)
    code_bytes, groups = packed_size(cols, grid.bits), -(-cols // size)
    zero_bytes = packed_size(groups, grid.bits)
    planned = (
        Planned(f"{name}.codes", TensorProto.UINT8, (rows, code_bytes)),
        planned_scale(record, (rows, groups)),
        Planned(f"{name}.zero_point", TensorProto.UINT8, (1 if grid.symmetric else rows, zero_bytes)),
    )
    sizes = {"K": ic, "N": oc, "bits": grid.bits, "group_size": size, "per_oc": int(record.axis is Axis.PER_OC)}
    inputs = [wire.x, *(tensor.name for tensor in planned)]
    role = f"{site(name)}/{OP_TYPE}"
    op = node(OP_TYPE, inputs, [wire.y], role, domain=DOMAIN, **sizes, accuracy_level=accuracy_level, layout=0)

    def pour(first: int, chunk: QuantizedTensor) -> Iterator[Piece]:
        scale, zero = chunk.params["scale"], chunk.params["zero_point"]
        yield f"{name}.codes", first * code_bytes, pack_bits(chunk.codes, grid.bits).tobytes()
        yield f"{name}.scale", first * groups * scale.itemsize, scale.tobytes()
        if not grid.symmetric:
            yield f"{name}.zero_point", first * zero_bytes, pack_bits(zero, grid.bits).tobytes()
        elif first == 0:
            yield f"{name}.zero_point", 0, pack_bits(zero[:1], grid.bits).tobytes()

    return Form("matmul_adadim", [op], planned, pour)
