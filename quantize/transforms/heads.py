"""Channels between v and o: one of v's is read by every query head of its group (GQA)."""

from __future__ import annotations

import numpy as np

from quantize.architecture.families import Values
from quantize.block import Block
from quantize.fold import Basis, Fold
from quantize.transforms.rows import made_rows
from quantize.types import F32


def shared(per_column: F32, at: Values) -> F32:
    """F32 of o's columns [heads * head_dim], above 0 -> of v's rows [kv_heads * head_dim], the group's geometric mean."""
    groups = np.log(per_column).reshape(at.kv_heads, -1, at.head_dim)
    out: F32 = np.exp(groups.mean(1)).ravel()
    return out


def over_heads(reduce: np.ufunc, per_column: F32, at: Values) -> F32:
    """F32 of o's columns -> of v's rows, ``reduce``d over the query heads that read them."""
    out: F32 = reduce.reduce(per_column.reshape(at.kv_heads, -1, at.head_dim), axis=1).ravel()
    return out


def value_fold(block: Block, basis: Basis, at: Values) -> Fold:
    """The fold of a basis of v's rows, which stay in their heads."""
    rows = np.arange(len(basis.order)).reshape(at.kv_heads, 1, at.head_dim)
    per_group = block.tensors[at.output].shape[1] // len(basis.order)
    source = np.repeat(rows, per_group, axis=1).ravel()  # v's row that each column of o reads
    start = np.arange(len(source)) // at.head_dim * at.head_dim
    read = Basis(start + basis.order[source] % at.head_dim, basis.factor[source])
    return Fold(made_rows(block, basis, at.value), {at.output: read})
