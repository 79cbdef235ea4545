"""Round to nearest: every weight goes to the closest value of its group's grid."""

from __future__ import annotations

from quantize.blocks import spread, to_blocks, to_rows
from quantize.types import F32, Axis, Grid, LayerStats, QuantizedTensor


def rtn(name: str, weight: F32, grid: Grid, axis: Axis, stats: LayerStats | None = None) -> QuantizedTensor:
    """Quantize F32[OC, IC] without looking at data (``stats`` is not used)."""
    rows = to_rows(weight, axis)
    params = grid.fit(to_blocks(rows, grid.block_size))
    scale, zero = (spread(value, grid.group_size, rows.shape[1]) for value in grid.scale_zero(params))
    return QuantizedTensor(name, grid.encode(rows, scale, zero), axis, grid, params)
