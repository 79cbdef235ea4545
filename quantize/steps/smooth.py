"""Loud input channels made quieter, and their weights larger: the scales of SmoothQuant (arXiv 2211.10438), folded unasked.

::

    s_j = max|x_j|**alpha / max|w_j|**(1 - alpha)        x / s is read by w s
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import numpy as np

from quantize.architecture.families import FoldSites
from quantize.block import Block, Kit
from quantize.fold import Basis, Fold
from quantize.steps.fold import APPLIED, foldable, touched
from quantize.transforms.heads import shared, value_fold
from quantize.transforms.norm_scales import norm_fold
from quantize.transforms.rows import made_rows
from quantize.transforms.scales import TINY, bounded
from quantize.types import F32, Need

Place = Callable[[Block, FoldSites], Fold]


@dataclass(frozen=True)
class Smooth:
    """Wherever the block takes scales: from a norm to what reads it, from v to o, from up to down; ``alpha`` of the power."""

    alpha: float
    needs: Need = Need.HESSIAN
    name: str = "smooth"

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step."""
        at, before = foldable(block), len(block.folds)
        if at is None:
            return block
        places: list[Place] = [*(partial(self._norm, norm=norm) for norm in at.norms), self._values, self._hidden]
        for place in places:
            fold = place(block, at)  # of the block as those before it left it
            if not set(names).isdisjoint(touched(block, fold)):
                block = block.folded(fold)
        return block.reporting(APPLIED, self.name) if len(block.folds) > before else block

    def _norm(self, block: Block, at: FoldSites, norm: str) -> Fold:
        return norm_fold(at, norm, self._factor(block, at.norms[norm]))

    def _values(self, block: Block, at: FoldSites) -> Fold:
        values = at.values
        if values is None:
            return Fold()
        factor = bounded(shared(self._factor(block, [values.output]), values))
        return value_fold(block, Basis.scaled(factor), values)

    def _hidden(self, block: Block, at: FoldSites) -> Fold:
        _, up, down = at.mlp
        basis = Basis.scaled(self._factor(block, [down]))
        return Fold(made_rows(block, basis, up), {down: basis})

    def _factor(self, block: Block, linears: Collection[str]) -> F32:
        """F32[n]: 1 / s of the channels that ``linears`` read, their geometric mean 1."""
        first, *_ = linears
        inputs = block.stats[first].inputs
        assert inputs is not None, f"{first}: no sample of its input was kept"
        loud = _above_zero(inputs.peak)
        large = _above_zero(np.max([np.abs(block.tensors[name]).max(0) for name in linears], axis=0))
        return bounded(np.exp((1 - self.alpha) * np.log(large) - self.alpha * np.log(loud)))


def _above_zero(sizes: F32) -> F32:
    """Those of dead channels too."""
    out: F32 = np.maximum(sizes, TINY * sizes.max() + np.finfo(np.float32).tiny)
    return out
