"""Places of a decoder block whose channels may be scaled: those that a norm makes, v, and up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from quantize.architecture.families import FoldSites, Values
from quantize.block import Block
from quantize.fold import Basis, Fold
from quantize.transforms.ffn_scales import ffn_fold
from quantize.transforms.heads import over_heads, value_fold
from quantize.transforms.norm_scales import norm_fold
from quantize.types import F32


class Place(NamedTuple):
    """``fold``: of a factor F32[n] of its channels. ``readers``: the linears that read them, F32[IC]; IC is n, but behind
    ``values`` a channel is read once for each query head of its group."""

    readers: tuple[str, ...]
    fold: Callable[[F32], Fold]
    values: Values | None = None

    def by_channel(self, reduce: np.ufunc, per_column: F32) -> F32:
        """F32[IC] -> F32[n], ``reduce``d over the columns that read a channel."""
        return per_column if self.values is None else over_heads(reduce, per_column, self.values)


Places = Callable[[Block, FoldSites], Iterator[Place]]


def norm_places(block: Block, at: FoldSites) -> Iterator[Place]:
    """Behind each norm that linears read."""
    for norm, linears in at.norms.items():
        yield Place(linears, partial(norm_fold, at, norm))


def value_places(block: Block, at: FoldSites) -> Iterator[Place]:
    """Between v and o."""
    values = at.values
    if values is not None:
        yield Place((values.output,), lambda factor: value_fold(block, Basis.scaled(factor), values), values)


def ffn_places(block: Block, at: FoldSites) -> Iterator[Place]:
    """Between up and down."""
    yield Place((at.mlp.down,), lambda factor: ffn_fold(block, Basis.scaled(factor), at))
