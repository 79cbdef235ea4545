"""``ai.adadim::MatMulAdaDim``: codes of 2, 3, 4 or 8 bits on both axes, and the function that runs it without a kernel.

docs/reference/matmul-adadim.md is the specification.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx.parser
from onnx import FunctionProto, TensorProto

from exporter.onnx.tensors import Form, Planned, Span, Wire, as_type, node, planned_scale, site
from exporter.onnx.tiles import pack_codes, pack_scales, pack_shared_zero_points, pack_zero_points
from exporter.onnx_cost import tile_shapes
from quantize.store.record import TensorRecord
from quantize.types import Axis, QuantizedTensor

DOMAIN = "ai.adadim"
OP_TYPE = "MatMulAdaDim"
VERSION = 1
LAYOUT = 1

# The body works for every width and both axes, and parts of it are MatMulLevels' too. It starts at DequantizeLinear (scale 1),
# which onnxruntime never folds: after it nothing is constant, so the weights stay packed in memory. Sizes are tensors of one
# element, named for what they count.
OPSETS = '<opset_import: ["" : 24], domain: "ai.adadim">'
ATTRIBUTES = "<K, N, bits, group_size, per_oc, accuracy_level, layout>"
SIZES = """
  k_attribute = Constant <value_int: int = @K> ()
  n_attribute = Constant <value_int: int = @N> ()
  width = Constant <value_int: int = @bits> ()
  size_attribute = Constant <value_int: int = @group_size> ()
  axis_attribute = Constant <value_int: int = @per_oc> ()
  none = Constant <value_ints: ints = [0]> ()
  one = Constant <value_ints: ints = [1]> ()
  two = Constant <value_ints: ints = [2]> ()
  four = Constant <value_ints: ints = [4]> ()
  rest = Constant <value_ints: ints = [-1]> ()
  from = Constant <value_int: int = 0> ()
  by = Constant <value_int: int = 1> ()
  byte = Constant <value_int: int = 8> ()
  unit = Constant <value_float: float = 1.0> ()
  k = Reshape (k_attribute, rest)
  n = Reshape (n_attribute, rest)
  size = Reshape (size_attribute, rest)
  axis = Reshape (axis_attribute, rest)
  per_oc = Cast <to = 9> (axis)
  columns = Where (per_oc, k, n)
  group = Min (size, columns)
  columns_plus = Add (columns, group)
  columns_up = Sub (columns_plus, one)
  groups = Div (columns_up, group)
  grouped = Mul (groups, group)
  outer = Where (per_oc, rest, one)
  inner = Where (per_oc, one, rest)
  spread = Concat <axis = 0> (outer, groups, one, inner)
"""

# low, F32[..., step_count, 16, 4]: what each line of 16 outputs by 4 bytes holds in its low bits, ``width`` of them for a step.
LOW = """
  line = Constant <value_ints: ints = [16, 4]> ()
  lines_shape = Concat <axis = 0> (rest, line_count, one, line)
  low_shape = Concat <axis = 0> (rest, step_count, line)
  place = Constant <value_ints: ints = [-1, 1, 1]> ()
  code_bytes = DequantizeLinear (codes, unit)
  code_integers = Cast <to = 2> (code_bytes)
  lines = Reshape (code_integers, lines_shape)
  low_range = Range (from, used, width)
  low_bytes = Cast <to = 2> (low_range)
  low_places = Reshape (low_bytes, place)
  low_shifted = BitShift <direction = "RIGHT"> (lines, low_places)
  low_masked = BitwiseAnd (low_shifted, mask)
  low_floats = Cast <to = 1> (low_masked)
  low = Reshape (low_floats, low_shape)
"""

# q, F32[outputs, inputs] with filling, from lines of 16 outputs by 4 bytes. Each byte holds a code of every step of its line;
# at 3 bits the two bits above hold steps 6 and 7, low bits in lines 0 and 1, high bits in line 2.
_STEPS = """
  line_count = Reshape (width, rest)
  masks = Constant <value = uint8[9] {0, 0, 3, 7, 15, 0, 0, 0, 255}> ()
  mask = Gather (masks, width)
  used_bits = Constant <value = int64[9] {0, 0, 8, 6, 8, 0, 0, 0, 8}> ()
  used = Gather (used_bits, width)
  step_count = Reshape (used, rest)
"""
_CODES = """
  eight = Constant <value_ints: ints = [8]> ()
  above_count = Sub (eight, step_count)
  six = Constant <value = uint8 {6}> ()
  above_lines = Slice (lines, none, above_count, one)
  above_shifted = BitShift <direction = "RIGHT"> (above_lines, six)
  above_low = Cast <to = 1> (above_shifted)
  last_line = Slice (lines, rest, line_count, one)
  high_range = Range (used, byte, by)
  high_bytes = Cast <to = 2> (high_range)
  high_place = Constant <value_ints: ints = [-1, 1, 1, 1]> ()
  high_places = Reshape (high_bytes, high_place)
  high_shifted = BitShift <direction = "RIGHT"> (last_line, high_places)
  high_mask = Constant <value = uint8 {1}> ()
  high_masked = BitwiseAnd (high_shifted, high_mask)
  high = Cast <to = 1> (high_masked)
  high_value = Constant <value_float: float = 4.0> ()
  above_high = Mul (high, high_value)
  above_whole = Add (above_low, above_high)
  above = Squeeze (above_whole, two)
  steps = Concat <axis = 1> (low, above)
  tiles = Shape <start = 0, end = 1> (codes)
  step = Constant <value_ints: ints = [8, 16, 4]> ()
  blocks_shape = Concat <axis = 0> (tiles, rest, step)
  blocks = Reshape (steps, blocks_shape)
  by_output = Transpose <perm = [0, 3, 1, 2, 4]> (blocks)
  tile = Constant <value_ints: ints = [16]> ()
  outputs = Mul (tiles, tile)
  matrix = Concat <axis = 0> (outputs, rest)
  q = Reshape (by_output, matrix)
"""

# s and z, F32[outputs or 1, groups, 1, inputs or 1]: each belongs to one output and all inputs of a group (PER_OC), or to
# one input and all outputs of a group. Zero points are streams of bits; in a PER_OC tile those of 16 outputs, or of one that
# stands for all, alternate after every four bytes.
SCALES = """
  s_floats = Cast <to = 1> (scales)
  s_middle = Where (per_oc, groups, rest)
  s_last = Where (per_oc, rest, one)
  s_shape = Concat <axis = 0> (none, s_middle, s_last)
  s_tiles = Reshape (s_floats, s_shape)
  s_outputs = Transpose <perm = [0, 2, 1]> (s_tiles)
  s = Reshape (s_outputs, spread)
"""
_ZERO_POINTS = """
  z_widths = Constant <value = int64[9] {0, 0, 2, 4, 4, 0, 0, 0, 8}> ()
  z_width = Gather (z_widths, width)
  z_masks = Constant <value = uint8[9] {0, 0, 3, 15, 15, 0, 0, 0, 255}> ()
  z_mask = Gather (z_masks, width)
  z_packed = DequantizeLinear (zero_points, unit)
  z_integers = Cast <to = 2> (z_packed)
  z_columns = Unsqueeze (z_integers, two)
  z_range = Range (from, byte, z_width)
  z_places = Cast <to = 2> (z_range)
  z_shifted = BitShift <direction = "RIGHT"> (z_columns, z_places)
  z_masked = BitwiseAnd (z_shifted, z_mask)
  z_floats = Cast <to = 1> (z_masked)
  z_in_byte = Shape <start = 2> (z_floats)
  z_bytes = Shape <start = 1> (zero_points)
  z_values = Mul (z_bytes, z_in_byte)
  z_in_word = Mul (z_in_byte, four)
  z_groups_plus = Add (groups, z_in_word)
  z_groups_up = Sub (z_groups_plus, one)
  z_words = Div (z_groups_up, z_in_word)
  z_run = Where (per_oc, z_in_word, z_values)
  z_runs = Where (per_oc, z_words, one)
  z_tile_shape = Concat <axis = 0> (none, z_runs, rest, z_run)
  z_tiles = Reshape (z_floats, z_tile_shape)
  z_outputs = Transpose <perm = [0, 2, 1, 3]> (z_tiles)
  z_length = Mul (z_runs, z_run)
  z_matrix = Concat <axis = 0> (rest, z_length)
  z_rows = Reshape (z_outputs, z_matrix)
  z_shared = Equal (z_bytes, one)
  z_inputs = Where (z_shared, one, z_values)
  z_end = Where (per_oc, groups, z_inputs)
  z_kept = Slice (z_rows, none, z_end, one)
  z = Reshape (z_kept, spread)
"""

# The filling gives way to that of whole groups, and that to none.
GROUPED = """
  far = Constant <value_ints: ints = [4611686018427387904]> ()
  more_rows = Where (per_oc, none, group)
  more_columns = Where (per_oc, group, none)
  pads = Concat <axis = 0> (none, none, more_rows, more_columns)
  q_padded = Pad (q, pads)
  row_end = Where (per_oc, far, grouped)
  column_end = Where (per_oc, grouped, far)
  ends = Concat <axis = 0> (row_end, column_end)
  corner = Constant <value_ints: ints = [0, 0]> ()
  both = Constant <value_ints: ints = [0, 1]> ()
  q_whole = Slice (q_padded, corner, ends, both)
  q_shape = Concat <axis = 0> (outer, groups, group, inner)
  q_grouped = Reshape (q_whole, q_shape)
"""
_CENTRED = """
  centred = Sub (q_grouped, z)
  scaled = Mul (centred, s)
"""
PRODUCT = """
  rows = Where (per_oc, rest, grouped)
  row = Where (per_oc, grouped, rest)
  flat = Concat <axis = 0> (rows, row)
  whole = Reshape (scaled, flat)
  sides = Concat <axis = 0> (n, k)
  weight = Slice (whole, corner, sides, both)
  flat_a = Concat <axis = 0> (rest, k)
  a_floats = Cast <to = 1> (A)
  a = Reshape (a_floats, flat_a)
  y = Gemm <transB = 1> (a, weight, bias)
  batch = Shape <start = 0, end = -1> (A)
  y_shape = Concat <axis = 0> (batch, n)
  y_floats = Reshape (y, y_shape)
  Y = CastLike (y_floats, A)
"""


def adadim_function() -> FunctionProto:
    """The portable body as a model-local function."""
    head = f"{OPSETS}{OP_TYPE} {ATTRIBUTES} (A, codes, scales, zero_points, bias) => (Y)"
    body = SIZES + _STEPS + LOW + _CODES + SCALES + _ZERO_POINTS + GROUPED + _CENTRED + PRODUCT
    return onnx.parser.parse_function(f"{head} {{{body}}}")


def matmul_adadim(record: TensorRecord, wire: Wire, accuracy_level: int) -> Form:
    """A linear on either axis as one node, in layout 1."""
    grid, name, axis = record.grid, record.name, record.axis
    assert grid is not None
    oc, ic = record.shape
    codes_shape, scales_shape, zeros_shape = tile_shapes(grid, axis, (oc, ic))
    planned = (
        Planned(f"{name}.codes", TensorProto.UINT8, codes_shape),
        planned_scale(record, scales_shape, wire.kind),
        Planned(f"{name}.zero_point", TensorProto.UINT8, zeros_shape),
    )
    sizes = {"K": ic, "N": oc, "bits": grid.bits, "group_size": grid.group_size, "per_oc": int(axis is Axis.PER_OC)}
    inputs = [wire.x, *(tensor.name for tensor in planned)]
    role = f"{site(name)}/{OP_TYPE}"
    op = node(OP_TYPE, inputs, [wire.y], role, domain=DOMAIN, **sizes, accuracy_level=accuracy_level, layout=LAYOUT)

    def pour(first: int, chunk: QuantizedTensor) -> Iterator[Span]:
        """Tiles span rows, so a linear comes whole."""
        assert first == 0 and chunk.codes.shape == record.stored_shape, (name, first, chunk.codes.shape)
        zero = chunk.params["zero_point"]
        yield f"{name}.codes", 0, pack_codes(chunk.codes, grid.bits, axis).tobytes()
        yield f"{name}.scale", 0, pack_scales(as_type(chunk.params["scale"], planned[1].data_type), axis).tobytes()
        if grid.symmetric:
            yield f"{name}.zero_point", 0, pack_shared_zero_points(zero[:1], grid.bits, axis).tobytes()
        else:
            yield f"{name}.zero_point", 0, pack_zero_points(zero, grid.bits, axis).tobytes()

    return Form("matmul_adadim", [op], planned, pour)
