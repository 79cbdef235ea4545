"""Source floats: bits to F32 and back, and the refusal of what is not finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantize.errors import CheckpointError
from quantize.types import F32, Array

FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}  # BF16 as bits, which numpy lacks
CHUNK = 1 << 22  # weights that are checked together


def to_f32(values: Array, dtype: str) -> F32:
    """``values`` of dtype word "F32", "F16" or "BF16" (uint16 bits) as F32, exactly; itself where it is F32 already."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def from_f32(values: F32, dtype: str) -> Array:
    """The inverse of ``to_f32``: rounded to F16; cut to BF16, which is exact for values that came from it."""
    if dtype == "BF16":
        return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.asarray(values, FLOATS[dtype])


def check_finite(values: Array, dtype: str, name: str, where: str) -> None:
    """Raises CheckpointError that names the tensor and the first NaN or infinity. ``values`` as for ``to_f32``."""
    rows = values.reshape(len(values), -1)
    step = max(1, CHUNK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        bad = ~np.isfinite(to_f32(rows[start : start + step], dtype))
        if bad.any():
            row, column = (int(index[0]) for index in np.nonzero(bad))
            spot = f"row {start + row}" + (f", column {column}" if values.ndim > 1 else "")
            raise CheckpointError(f"{where}: {name} holds NaN or infinity (first at {spot}); get an intact copy of the model")
