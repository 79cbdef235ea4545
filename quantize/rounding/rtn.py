"""Round to nearest: every weight goes to the closest value of its group's grid."""

from __future__ import annotations

import numpy as np

from quantize.blocks import spread, to_blocks, to_rows
from quantize.types import F32, U8, Axis, Grid, InputStats, Params, QuantizedTensor

CHUNK_WEIGHTS = 1 << 17  # encoded at a time: their scales, one for each weight, stay in the cache
EVEN = np.ones(1, np.float32)  # of output channels of which nothing is known one matters like the other


def rtn(name: str, weight: F32, grid: Grid, axis: Axis, stats: InputStats | None = None) -> QuantizedTensor:
    """Quantize F32[OC, IC]; ``stats`` have every group's params searched for the least error by their importance."""
    params = fit_groups(weight, grid, axis, stats)
    codes = nearest_codes(to_rows(weight, axis), grid, params, None if stats is None else along(stats, axis))
    return QuantizedTensor(name, codes, axis, grid, params)


def nearest_codes(rows: F32, grid: Grid, params: Params, importance: F32 | None = None) -> U8:
    """Of F32[rows, cols], whose groups run along the last axis; ``importance`` F32[cols]."""
    scale, zero = grid.scale_zero(params)
    codes, cols = np.empty(rows.shape, np.uint8), rows.shape[1]
    step = max(1, CHUNK_WEIGHTS // cols)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        own = [spread(value[part], grid.group_size, cols) for value in (scale, zero)]
        codes[part] = grid.encode(rows[part], own[0], own[1], importance)
    return codes


def fit_groups(weight: F32, grid: Grid, axis: Axis, stats: InputStats | None) -> Params:
    """The params of F32[OC, IC] as it is."""
    importance = None if stats is None else block_importance(stats, grid, axis)
    return grid.fit(to_blocks(to_rows(weight, axis), grid.block_size), importance)


def block_importance(stats: InputStats, grid: Grid, axis: Axis) -> F32:
    """What each weight of a block matters, F32[n_blocks, block_size] for every row, or EVEN."""
    known = along(stats, axis)
    return EVEN if known is None else to_blocks(known, grid.block_size)


def along(stats: InputStats, axis: Axis) -> F32 | None:
    """What each weight of a row matters, F32[cols], if it is known: a PER_OC row runs along input channels."""
    return stats.importance if axis is Axis.PER_OC else stats.row_weight
