"""Levels of a tensor's own, by k-means of its weights, where the target has tables of levels (CMPQ, arXiv 2410.13056)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantize.blocks import one_group
from quantize.grids import make_grid
from quantize.grids.levels import LEAST_GROUP, LEVEL_GRIDS, Levels, own_levels
from quantize.types import F32, Axis, Grid, Need, Target, TensorPlan


@dataclass(frozen=True)
class MakeLevels:
    """For each part a table of as many levels as its int grid has, and a scale a row; a grid of which anything was asked stays.

    Which channels a part has, the text tells later: its levels are those of the whole weight at its width.
    """

    needs: Need = Need.WEIGHTS

    def planned(self, plan: TensorPlan, weight: F32, target: Target) -> TensorPlan:
        """See PlanStep."""
        ((axis, first),) = plan.candidates.items()
        if not _is_open(first, axis, plan.shape, target):
            return plan

        def own(grid: Grid, count: int) -> Levels:
            return own_levels(weight, grid.bits, one_group(count, LEAST_GROUP))

        parts = tuple(replace(part, grid=part.grid and own(part.grid, part.count)) for part in plan.parts)
        whole = (parts[0].grid if parts else None) or own(first, plan.shape[1])
        return replace(plan, candidates={axis: whole}, parts=parts)


def _is_open(grid: Grid, axis: Axis, shape: tuple[int, ...], target: Target) -> bool:
    """Whether this is the grid that is taken where nobody says which, and the target has levels instead."""
    levels = LEVEL_GRIDS[grid.bits - 2]
    held = target.lacks(levels, axis) is None and target.refuses(levels, axis, shape) is None
    return held and grid == make_grid("int", grid.bits, target.default_group_size)
