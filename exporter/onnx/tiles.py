"""Layout 1 of MatMulAdaDim and MatMulLevels: codes, scales and zero points in the order in which its kernels read them.

docs/reference/matmul-adadim.md and matmul-levels.md are the specifications. Rows are OC for PER_OC, IC for PER_IC; a tile is 16
output channels, a block 32 input channels; both are filled up with zeros.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from exporter.onnx.tensors import pack_bits, pad_last
from exporter.onnx_cost import BLOCK, TILE, stored_bits
from quantize.types import U8, Axis

Number = TypeVar("Number", bound=np.generic)


def pack_codes(codes: U8, bits: int, axis: Axis) -> U8:
    """U8[rows, columns] -> U8[tiles, blocks * bits * 64]."""
    outputs = _pad_rows(pad_last(codes if axis is Axis.PER_OC else codes.T, BLOCK))
    steps = outputs.reshape(len(outputs) // TILE, TILE, -1, BLOCK // 4, 4).transpose(0, 2, 3, 1, 4)
    lines = _lines_of_3_bits(steps) if bits == 3 else _lines(steps, bits, bits)
    return lines.reshape(len(steps), -1)


def _lines(steps: U8, bits: int, count: int) -> U8:
    """U8[..., steps, 16, 4] below 2**bits -> U8[..., count, 16, 4]: a line holds 8 / bits steps of four codes.

    ::

        bits = 4    line 0: step 0 | step 1 << 4    line 1: step 2 | step 3 << 4    ...
    """
    lines = steps.reshape(*steps.shape[:-3], count, 8 // bits, TILE, 4)
    return pack_bits(np.moveaxis(lines, -3, -1), bits)[..., 0]


def _lines_of_3_bits(steps: U8) -> U8:
    """U8[..., 8, 16, 4] below 8 -> U8[..., 3, 16, 4]: two steps in each line; the two bits above them hold steps 6 and 7.

    ::

        bits       7 6            5 4 3     2 1 0
        line 0     low of step 6  step 1    step 0
        line 1     low of step 7  step 3    step 2
        line 2     high of 7, 6   step 5    step 4
    """
    even, odd, six, seven = steps[..., 0:6:2, :, :], steps[..., 1:6:2, :, :], steps[..., 6, :, :], steps[..., 7, :, :]
    high = six >> np.uint8(2) | seven >> np.uint8(2) << np.uint8(1)
    above = np.stack([six & np.uint8(3), seven & np.uint8(3), high], axis=-3)
    lines: U8 = even | odd << np.uint8(3) | above << np.uint8(6)
    return lines


def pack_pairs(points: U8, bits: int) -> U8:
    """Codes of pairs along IC, U8[OC, IC / 2] below 2**bits, 4 or 6 -> U8[tiles, blocks * lines * 64]: four steps of four."""
    outputs = _pad_rows(pad_last(points, BLOCK // 2))
    steps = outputs.reshape(len(outputs) // TILE, TILE, -1, BLOCK // 8, 4).transpose(0, 2, 3, 1, 4)
    lines = _lines_of_6_bits(steps) if bits == 6 else _lines(steps, bits, bits // 2)
    return lines.reshape(len(steps), -1)


def _lines_of_6_bits(steps: U8) -> U8:
    """U8[..., 4, 16, 4] below 64 -> U8[..., 3, 16, 4]: a step in each line; the two bits above them hold step 3.

    ::

        bits       7 6            5 4 3 2 1 0
        line 0     0, 1 of step 3 step 0
        line 1     2, 3 of step 3 step 1
        line 2     4, 5 of step 3 step 2
    """
    last = steps[..., 3:4, :, :] >> np.array([0, 2, 4], np.uint8)[:, None, None] & np.uint8(3)
    lines: U8 = steps[..., :3, :, :] | last << np.uint8(6)
    return lines


def pack_scales(scales: NDArray[Any], axis: Axis) -> NDArray[Any]:
    """[rows, groups] -> [tiles, groups * 16] for PER_OC, [groups, blocks * 32] for PER_IC."""
    if axis is Axis.PER_IC:
        return np.ascontiguousarray(pad_last(scales.T, BLOCK))
    return _by_tile(_pad_rows(scales)[..., None])


def pack_zero_points(zero_points: U8, bits: int, axis: Axis) -> U8:
    """U8[rows, groups] -> bit streams: of words, U8[tiles, words * 64], for PER_OC, U8[groups, bytes] for PER_IC."""
    width = stored_bits(bits)
    if axis is Axis.PER_IC:
        return pack_bits(pad_last(zero_points.T, BLOCK), width)
    streams = pack_bits(pad_last(_pad_rows(zero_points), 32 // width), width)
    return _by_tile(streams.reshape(len(streams), -1, 4))


def pack_shared_zero_points(zero_points: U8, bits: int, axis: Axis) -> U8:
    """U8[1, groups] -> U8[1, words * 4] for PER_OC, U8[groups, 1] for PER_IC."""
    width = stored_bits(bits)
    return pack_bits(pad_last(zero_points, 32 // width), width) if axis is Axis.PER_OC else zero_points.T


def _by_tile(values: NDArray[Number]) -> NDArray[Number]:
    """[outputs, count, items] -> [tiles, count * 16 * items]: the items of a tile's 16 outputs side by side."""
    tiles = len(values) // TILE
    return np.ascontiguousarray(values.reshape(tiles, TILE, *values.shape[1:]).swapaxes(1, 2)).reshape(tiles, -1)


def _pad_rows(values: NDArray[Number]) -> NDArray[Number]:
    """Zeros below, up to whole tiles."""
    return np.pad(values, [(0, -len(values) % TILE), (0, 0)])
