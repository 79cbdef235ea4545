"""Channels between v and o: one of v's is read by every query head of its group (GQA)."""

from __future__ import annotations

import numpy as np

from quantize.architecture.families import FoldSites, bias_of
from quantize.fold import Basis, Fold
from quantize.types import F32


def shared(per_column: F32, at: FoldSites) -> F32:
    """F32 of o's columns [heads * head_dim], above 0 -> of v's rows [kv_heads * head_dim], the group's geometric mean."""
    groups = np.log(per_column).reshape(at.kv_heads, -1, at.head_dim)
    out: F32 = np.exp(groups.mean(1)).ravel()
    return out


def value_fold(basis: Basis, at: FoldSites, columns: int) -> Fold:
    """The fold of a basis of v's rows, which stay in their heads; o has so many ``columns``."""
    rows = np.arange(len(basis.order)).reshape(at.kv_heads, 1, at.head_dim)
    per_group = columns // len(basis.order)
    source = np.repeat(rows, per_group, axis=1).ravel()  # v's row that each column of o reads
    start = np.arange(len(source)) // at.head_dim * at.head_dim
    read = Basis(start + basis.order[source] % at.head_dim, basis.factor[source])
    return Fold(dict.fromkeys((at.value, bias_of(at.value)), basis), {at.output: read})
