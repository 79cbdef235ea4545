"""The size of a matrix's groups by its weights alone, after FineQuant (arXiv 2308.09723).

Groups are the smallest to begin with. Two neighbours are merged as long as that costs less than ``alpha`` of the error that is
left then. On the int grid the error is the mean of the largest magnitude in a weight's group, to which the distance of two values
is proportional. From coarse to fine a long row stays whole: its first halving always saves little. A ggml format has groups of
its own. There the choice is among formats of as many bits, from the largest file to the smallest, by their error on a sample of
the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from quantize.blocks import dequantize, matrix, to_blocks, to_rows
from quantize.grids import BLOCK_GRIDS
from quantize.grids.int_affine import IntAffine
from quantize.rounding.rtn import rtn
from quantize.types import F32, Axis, Grid, Need, Target, TensorPlan

SAMPLE = 1 << 16  # weights that a ggml format is tried on, about


@dataclass(frozen=True)
class ChooseGroups:
    """Of as many bits the coarsest grid up to which no step costs ``alpha`` of the error."""

    alpha: float
    needs: Need = Need.WEIGHTS

    def planned(self, plan: TensorPlan, weight: F32, target: Target) -> TensorPlan:
        """See PlanStep."""
        own = weight.reshape(-1, weight.shape[-1])
        grids = {axis: self._grid(grid, axis, plan, own, target) for axis, grid in plan.candidates.items()}
        return replace(plan, candidates=grids)

    def _grid(self, grid: Grid, axis: Axis, plan: TensorPlan, weight: F32, target: Target) -> Grid:
        rows = to_rows(weight, axis)
        if isinstance(grid, IntAffine):
            sizes, left = halved(rows, target.default_group_size)
            return replace(grid, group_size=sizes[merged(left, self.alpha)], symmetric=True)
        sample = rows[:: max(1, rows.size // SAMPLE)]
        best = dict[float, tuple[float, Grid]]()  # of each size
        for other in BLOCK_GRIDS.values():
            if other.bits != grid.bits or target.lacks(other, axis) is not None:
                continue
            if target.refuses(other, axis, matrix(plan.shape)) is None:
                found, size = (_error(sample, other), other), other.bits_per_weight
                best[size] = min(best.get(size, found), found, key=lambda pair: pair[0])
        ladder = [best[size] for size in sorted(best)]
        return ladder[merged([error for error, _ in ladder], self.alpha)][1]


def merged(left: Sequence[float], alpha: float) -> int:
    """Of what is left with each option, from coarse to fine: the index of the coarsest up to which each step costs less than
    ``alpha`` of what is left then.

    An option that leaves more than a coarser one is none. ``alpha`` 0 gives the last of the others, infinity the first.
    """
    kept = [index for index in range(len(left)) if left[index] <= min(left[:index], default=math.inf)]
    for coarse, fine in reversed(list(pairwise(kept))):
        if left[coarse] - left[fine] >= alpha * left[coarse]:
            return fine
    return kept[0]


def _error(rows: F32, grid: Grid) -> float:
    """Root mean square of what rounding F32[rows, cols] to nearest leaves."""
    return math.sqrt(np.square(rows - dequantize(rtn("", rows, grid, Axis.PER_OC))).mean())


def halved(rows: F32, least: int) -> tuple[list[int], list[float]]:
    """Sizes of groups of F32[rows, cols], powers of two from a whole row to ``least``, and each one's mean largest magnitude."""
    cols, size = rows.shape[1], least
    largest = np.abs(to_blocks(rows, size)).max(-1)
    sizes, left = list[int](), list[float]()
    while True:
        counts = np.minimum(size, cols - size * np.arange(largest.shape[1]))
        sizes.append(size)
        left.append(float((largest @ counts).mean(dtype=np.float64) / cols))
        if size >= cols:
            return sizes[::-1], left[::-1]
        largest, size = to_blocks(largest, 2).max(-1), 2 * size
