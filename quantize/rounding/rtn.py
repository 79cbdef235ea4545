"""Round to nearest: every weight goes to the closest value of its group's grid."""

from __future__ import annotations

import numpy as np

from quantize.blocks import spread, to_blocks, to_rows
from quantize.types import F32, Axis, Grid, LayerStats, QuantizedTensor

CHUNK_WEIGHTS = 1 << 17  # encoded at a time: their scales, one for each weight, stay in the cache


def rtn(name: str, weight: F32, grid: Grid, axis: Axis, stats: LayerStats | None = None) -> QuantizedTensor:
    """Quantize F32[OC, IC] without looking at data (``stats`` is not used)."""
    rows = to_rows(weight, axis)
    params = grid.fit(to_blocks(rows, grid.block_size))
    scale, zero = grid.scale_zero(params)
    codes, cols = np.empty(rows.shape, np.uint8), rows.shape[1]
    step = max(1, CHUNK_WEIGHTS // cols)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        own = (spread(value[part], grid.group_size, cols) for value in (scale, zero))
        codes[part] = grid.encode(rows[part], *own)
    return QuantizedTensor(name, codes, axis, grid, params)
