"""``ai.adadim::MatMulLevels``: codes that stand for levels of a short table, of one weight or of two, and its portable body.

docs/reference/matmul-levels.md is the specification.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import onnx.parser
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto

from exporter.onnx.adadim_op import ATTRIBUTES, DOMAIN, GROUPED, LAYOUT, LOW, OPSETS, PRODUCT, SCALES, SIZES
from exporter.onnx.tensors import Form, Planned, Span, Wire, node, planned_scale, site
from exporter.onnx.tiles import pack_codes, pack_pairs, pack_scales
from exporter.onnx_cost import tile_shapes
from quantize.errors import ExportError
from quantize.grids.levels import OWN, Levels
from quantize.store.record import TensorRecord
from quantize.types import U8, Axis, QuantizedTensor

OP_TYPE, FORM = "MatMulLevels", "matmul_levels"
NO_POINT = 255  # of two codes that are no pair

# points, I32[outputs, codes] with filling, from lines of 16 outputs by 4 bytes. Each byte holds a code of every step of its line.
# At 3 and 6 bits the two bits above, of three lines, are one or two steps more: a sum of four numbers, the last line's two bits
# apart.
_STEPS = """
  line_counts = Constant <value = int64[7] {0, 0, 1, 3, 1, 0, 3}> ()
  line_count_of = Gather (line_counts, width)
  line_count = Reshape (line_count_of, rest)
  masks = Constant <value = uint8[7] {0, 0, 3, 7, 15, 0, 63}> ()
  mask = Gather (masks, width)
  used_bits = Constant <value = int64[7] {0, 0, 8, 6, 8, 0, 6}> ()
  used = Gather (used_bits, width)
  low_counts = Constant <value = int64[7] {0, 0, 4, 6, 2, 0, 3}> ()
  low_count_of = Gather (low_counts, width)
  step_count = Reshape (low_count_of, rest)
  above_counts = Constant <value = int64[7] {0, 0, 0, 2, 0, 0, 1}> ()
  above_count_of = Gather (above_counts, width)
  above_count = Reshape (above_count_of, rest)
"""
_CODES = """
  six = Constant <value = uint8 {6}> ()
  bit = Constant <value = uint8 {1}> ()
  tops_shape = Constant <value_ints: ints = [0, -1, 64]> ()
  tops = BitShift <direction = "RIGHT"> (lines, six)
  last_line = Sub (line_count, one)
  first_lines = Constant <value_ints: ints = [0, 1]> ()
  top_lines = Min (first_lines, last_line)
  top_01 = Gather <axis = 1> (tops, top_lines)
  top_2 = Gather <axis = 1> (tops, rest)
  top_2_low = BitwiseAnd (top_2, bit)
  top_2_high = BitShift <direction = "RIGHT"> (top_2, bit)
  top_parts = Concat <axis = 1> (top_01, top_2_low, top_2_high)
  top_floats = Cast <to = 1> (top_parts)
  top_rows = Reshape (top_floats, tops_shape)
  three_values = Constant <value = float[2, 4] {1.0, 0.0, 4.0, 0.0, 0.0, 1.0, 0.0, 4.0}> ()
  six_values = Constant <value = float[2, 4] {1.0, 4.0, 16.0, 32.0, 0.0, 0.0, 0.0, 0.0}> ()
  three = Constant <value_int: int = 3> ()
  is_three = Equal (width, three)
  top_values = Where (is_three, three_values, six_values)
  top_steps = MatMul (top_values, top_rows)
  above_rows = Slice (top_steps, none, above_count, one)
  above_lines = Constant <value_ints: ints = [0, 0, 16, 4]> ()
  above = Reshape (above_rows, above_lines)
  steps = Concat <axis = 1> (low, above)
  tiles = Shape <start = 0, end = 1> (codes)
  step = Constant <value_ints: ints = [16, 4]> ()
  blocks_shape = Concat <axis = 0> (tiles, rest, step)
  blocks = Reshape (steps, blocks_shape)
  by_output = Transpose <perm = [0, 2, 1, 3]> (blocks)
  tile = Constant <value_ints: ints = [16]> ()
  outputs = Mul (tiles, tile)
  matrix = Concat <axis = 0> (outputs, rest)
  point_floats = Reshape (by_output, matrix)
  points = Cast <to = 6> (point_floats)
"""

# q, F32[outputs, inputs]: the levels of a code are those of as many neighbouring inputs.
_LEVELS = """
  level_floats = Cast <to = 1> (levels)
  by_side = Gather <axis = 1> (level_floats, points)
  by_input = Transpose <perm = [1, 2, 0]> (by_side)
  q = Reshape (by_input, matrix)
"""

_SCALED = """
  scaled = Mul (q_grouped, s)
"""


def levels_function() -> FunctionProto:
    """The portable body as a model-local function."""
    head = f"{OPSETS}{OP_TYPE} {ATTRIBUTES} (A, codes, scales, levels, bias) => (Y)"
    return onnx.parser.parse_function(
        f"{head} {{{SIZES + _STEPS + LOW + _CODES + _LEVELS + SCALES + GROUPED + _SCALED + PRODUCT}}}"
    )


def matmul_levels(record: TensorRecord, wire: Wire, accuracy_level: int) -> Form:
    """A linear on either axis as one node, in layout 1; pairs PER_OC alone."""
    grid, name, axis = record.grid, record.name, record.axis
    assert isinstance(grid, Levels)
    oc, ic = record.shape
    codes_shape, scales_shape, _ = tile_shapes(grid, axis, (oc, ic))
    planned = Planned(f"{name}.codes", TensorProto.UINT8, codes_shape), planned_scale(record, scales_shape)
    levels = f"{name}.levels" if grid.name == OWN else f"adadim.levels_{grid.name}"
    bits = grid.bits * grid.dims
    sizes = {"K": ic, "N": oc, "bits": bits, "group_size": grid.group_size, "per_oc": int(axis is Axis.PER_OC)}
    inputs = [wire.x, *(tensor.name for tensor in planned), levels]
    role = f"{site(name)}/{OP_TYPE}"
    op = node(OP_TYPE, inputs, [wire.y], role, domain=DOMAIN, **sizes, accuracy_level=accuracy_level, layout=LAYOUT)

    def pour(first: int, chunk: QuantizedTensor) -> Iterator[Span]:
        """Tiles span rows, so a linear comes whole."""
        assert first == 0 and chunk.codes.shape == record.stored_shape, (name, first, chunk.codes.shape)
        packed = pack_codes(chunk.codes, bits, axis) if grid.dims == 1 else pack_pairs(points_of(chunk, grid), bits)
        yield f"{name}.codes", 0, packed.tobytes()
        yield f"{name}.scale", 0, pack_scales(chunk.params["d"], axis).tobytes()

    return Form(FORM, [op], planned, pour, {levels: np.array(grid.levels, np.int8)})


def points_of(tensor: QuantizedTensor, grid: Levels) -> U8:
    """Which point of the grid each pair of codes is, U8[rows, cols / 2]. Raises ExportError for one that is none."""
    points: U8 = _points(grid)[tensor.codes[:, ::2], tensor.codes[:, 1::2]]
    if (points == NO_POINT).any():
        row, pair = np.argwhere(points == NO_POINT)[0]
        told = f"codes {2 * pair} and {2 * pair + 1} of row {row} are no pair of grid {grid.name}"
        raise ExportError(f"{tensor.name}: {told}; quantize again")
    return points


@cache
def _points(grid: Levels) -> NDArray[np.uint8]:
    """By both codes the point, or NO_POINT; of equal points the first."""
    words = grid.formula.words
    assert words is not None
    out = np.full((len(grid.values),) * 2, NO_POINT, np.uint8)
    for point in reversed(range(words.codes.shape[1])):
        out[words.codes[0, point], words.codes[1, point]] = point
    return out
