"""Codes of another tool, carried over: a weight that lies on the grid is stored as it is, and nothing is rounded."""

from __future__ import annotations

import numpy as np

from quantize.blocks import dequantize, to_blocks, to_rows
from quantize.rounding.rtn import nearest_codes
from quantize.types import F32, Axis, Grid, QuantizedTensor

EXACT = "exact"  # what a store calls it, beside the rounders
SAMPLES = 3  # rows that say no of nearly every weight that lies on no grid


def exact(name: str, weight: F32, grid: Grid, axis: Axis) -> QuantizedTensor | None:
    """Codes and params that stand for F32[OC, IC] bit for bit; None if the grid has none, or they are not found."""
    rows = to_rows(weight, axis)
    if grid.exact(to_blocks(rows[:: max(1, len(rows) // SAMPLES)], grid.block_size)) is None:
        return None
    params = grid.exact(to_blocks(rows, grid.block_size))
    if params is None:
        return None
    tensor = QuantizedTensor(name, nearest_codes(rows, grid, params), axis, grid, params)
    return tensor if np.array_equal(dequantize(tensor), weight) else None
