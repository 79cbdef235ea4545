"""Layout 1 of MatMulAdaDim against literal bytes."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.onnx.tiles import pack_codes, pack_scales, pack_shared_zero_points, pack_zero_points
from exporter.onnx_cost import tile_bytes, tile_shapes
from quantize import Axis, make_grid

# codes[n, k] of output 1, inputs 0 to 31: their order shows in the bytes
RAMP = {8: np.arange(32), 4: np.arange(32) % 16, 3: np.arange(32) % 8, 2: np.arange(32) % 4}
# the bytes 4 to 7 (of output 1) of each line, from docs/reference/matmul-adadim.md
LINES = {
    8: [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]],
    4: [[0x40, 0x51, 0x62, 0x73], [0xC8, 0xD9, 0xEA, 0xFB], [0x40, 0x51, 0x62, 0x73], [0xC8, 0xD9, 0xEA, 0xFB]],
    # even steps are 0 1 2 3, odd ones 4 5 6 7: i | (4 + i) << 3, above them the low bits of step 6 and 7, then 0 and 1 << 7
    3: [[0x20, 0x69, 0xB2, 0xFB], [0x20, 0x69, 0xB2, 0xFB], [0xA0, 0xA9, 0xB2, 0xBB]],
    2: [[0x00, 0x55, 0xAA, 0xFF], [0x00, 0x55, 0xAA, 0xFF]],
}


@pytest.mark.parametrize("axis", Axis)
@pytest.mark.parametrize("bits", LINES)
def test_codes(bits, axis):
    outputs = np.zeros((3, 40), np.uint8)
    outputs[1, :32] = RAMP[bits]
    outputs[2, 39] = 1
    packed = pack_codes(outputs if axis is Axis.PER_OC else outputs.T, bits, axis)
    assert packed.shape == (1, 2 * bits * 64)
    lines = packed.reshape(2, bits, 16, 4)
    assert lines[0, : len(LINES[bits]), 1].tolist() == LINES[bits]
    assert np.argwhere(lines[0]).shape[0] == np.count_nonzero(lines[0, :, 1])  # nothing in other outputs
    first = {8: 1, 4: 16, 3: 8, 2: 4}[bits]  # input 39 is number 7 of the second block: byte 3 of step 1
    assert np.argwhere(lines[1]).tolist() == [[int(bits == 8), 2, 3]]
    assert lines[1].max() == first


def test_scales():
    scales = np.arange(6, dtype=np.float16).reshape(3, 2)
    per_oc = pack_scales(scales, Axis.PER_OC)  # 3 outputs, 2 groups
    assert per_oc.tolist() == [[0, 2, 4, *[0] * 13, 1, 3, 5, *[0] * 13]]
    per_ic = pack_scales(scales, Axis.PER_IC)  # 3 inputs, 2 groups
    assert per_ic.tolist() == [[0, 2, 4, *[0] * 29], [1, 3, 5, *[0] * 29]]


@pytest.mark.parametrize(
    ("bits", "per_oc", "per_ic"),
    [(8, [1, 3], [1, 0, 2]), (4, [0x31, 0], [0x01, 0x02]), (3, [0x31, 0], [0x01, 0x02]), (2, [0x0D, 0], [0x21, 0])],
)
def test_zero_points(bits, per_oc, per_ic):
    zero_points = np.array([[1, 3], [0, 0], [2, 1]], np.uint8)  # 3 rows, 2 groups
    tiles = pack_zero_points(zero_points, bits, Axis.PER_OC)
    assert tiles.shape == (1, 64)
    assert tiles[0, :2].tolist() == per_oc
    assert pack_zero_points(zero_points, bits, Axis.PER_IC)[0, : len(per_ic)].tolist() == per_ic
    assert pack_shared_zero_points(zero_points[:1], bits, Axis.PER_OC).tolist() == [[*per_oc, 0, 0]]
    assert pack_shared_zero_points(zero_points[:1], bits, Axis.PER_IC).tolist() == [[1], [3]]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("axis", Axis)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_sizes_are_those_of_the_packed_arrays(bits, axis, symmetric):
    grid = make_grid("int", bits, 16, symmetric)
    oc, ic = 50, 70
    rows, groups = (oc, 5) if axis is Axis.PER_OC else (ic, 4)
    zero_points = np.zeros((rows, groups), np.uint8)
    packed = (
        pack_codes(np.zeros((rows, oc + ic - rows), np.uint8), bits, axis),
        pack_scales(np.zeros((rows, groups), np.float16), axis),
        pack_shared_zero_points(zero_points[:1], bits, axis) if symmetric else pack_zero_points(zero_points, bits, axis),
    )
    assert tuple(item.shape for item in packed) == tile_shapes(grid, axis, (oc, ic))
    assert sum(item.nbytes for item in packed) == tile_bytes(grid, axis, (oc, ic))
