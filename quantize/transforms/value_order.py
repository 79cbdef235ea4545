"""Order of the channels within each head of the values: rows of v, columns of o."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quantize.architecture.families import FoldSites
from quantize.block import Block
from quantize.fold import Basis, Fold
from quantize.transforms.heads import shared, value_fold
from quantize.transforms.scales import column_norms
from quantize.types import F32


def value_order(block: Block, at: FoldSites) -> Iterator[list[Fold]]:
    """Falling by the norm of o's columns, or by the norm of v's rows."""
    values = at.values
    if values is None:
        return
    made = block.tensors[values.value.weight][values.value.of]
    columns, rows = shared(column_norms([block.tensors[values.output]]), values), column_norms([made.T])
    yield [value_fold(block, Basis.ordered(_falling(key, values.head_dim)), values) for key in (columns, rows)]


def _falling(key: F32, head_dim: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """intp[n]: each head's channels by falling ``key`` F32[n]."""
    heads = -key.reshape(-1, head_dim)
    start = np.arange(0, key.size, head_dim)[:, None]
    return (start + np.argsort(heads, axis=1, kind="stable")).ravel()
