"""Order of the channels within each head of the values: rows of v, columns of o."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quantize.transforms.fold import Basis, Fold
from quantize.transforms.heads import MADE, OUTPUT, shared, value_fold
from quantize.transforms.layer import DecoderLayer
from quantize.transforms.scales import column_norms
from quantize.types import F32


def value_order(layer: DecoderLayer) -> Iterator[list[Fold]]:
    """Falling by the norm of o's columns, or by the norm of v's rows."""
    columns, rows = shared(column_norms([layer.tensors[OUTPUT]]), layer.config), column_norms([layer.tensors[MADE[0]].T])
    yield [value_fold(Basis.ordered(_falling(key, layer.config.head_dim)), layer.config) for key in (columns, rows)]


def _falling(key: F32, head_dim: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """intp[n]: each head's channels by falling ``key`` F32[n]."""
    heads = -key.reshape(-1, head_dim)
    start = np.arange(0, key.size, head_dim)[:, None]
    return (start + np.argsort(heads, axis=1, kind="stable")).ravel()
