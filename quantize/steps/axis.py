"""AdaDim (arXiv 2309.15531, section 4.2): both axes are tried for a linear, and the one with the lower loss is kept.

The loss is that of what the planned rounder leaves, not of round-to-nearest: GPTQ mends more on one axis than on the other.
A scope loss (the output error of the whole attention or MLP) needs the source's block and its siblings' axes, so it is asked
before rounding, with round-to-nearest, one linear after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from quantize.block import AxisChoice, Block, Kit
from quantize.blocks import matrix
from quantize.errors import CalibrationError
from quantize.float_params import check_params
from quantize.rounding import NEAREST
from quantize.types import Axis, Need

Losses = Mapping[Axis, float]
TAKEN_BACK = "taken_back"  # key of a block's report


@dataclass(frozen=True)
class ChooseByScope:
    """The axis of every linear by scope losses; siblings count as quantized once their axis is chosen."""

    needs: Need = Need.BLOCK

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step."""
        losses: dict[str, Losses] = {name: self._losses(block, name, kit) for name in names}
        return replace(block, choices={**block.choices, **_choices(block, losses, kit)})

    def _losses(self, block: Block, name: str, kit: Kit) -> Losses:
        grids = block.plans[name].candidates
        if len(grids) == 1:
            return {}
        assert kit.run is not None, f"{name}: a scope loss needs the source's block"
        nearest, values = kit.rounders[NEAREST], {}
        for axis, grid in grids.items():
            tensor = nearest(name, block.tensors[name], grid, axis, block.stats.get(name))
            check_params(tensor)
            values[axis] = kit.orders.to_source(name, block.in_source_basis(name, block.stored(name, tensor).dense()))
        losses = dict(zip(grids, kit.run.scope_loss(name, list(values.values())), strict=True))
        kit.run.commit(name, values[choose_axis(losses).axis])
        return losses


@dataclass(frozen=True)
class ChooseAxis:
    """Of what was tried the axis that loses least, for linears without a choice, and of every linear its result."""

    needs: Need = Need.WEIGHTS

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step. Raises CalibrationError for losses that overflow."""
        losses = {
            name: {axis: rounded.loss for axis, rounded in block.tried[name].items() if rounded.loss is not None}
            for name in names
            if name not in block.choices
        }
        choices = {**block.choices, **_choices(block, losses, kit)}
        rounded = {name: block.tried[name][choices[name].axis] for name in names}
        taken_back = [name for name in names if _lower(choices[name])]
        return replace(block, choices=choices, rounded=rounded).reporting(TAKEN_BACK, *taken_back)


def _choices(block: Block, losses: Mapping[str, Losses], kit: Kit) -> dict[str, AxisChoice]:
    """For each of ``losses``, within the slowdown."""
    choices, cost = dict[str, AxisChoice](), dict[str, dict[Axis, float]]()
    for name, loss in losses.items():
        plan = block.plans[name]
        if not np.isfinite(list(loss.values())).all():
            raise CalibrationError(f"{name}: its outputs on the calibration text overflow; does the source itself run?")
        several, shape = len(plan.candidates) > 1, matrix(plan.shape)
        choices[name] = choose_axis(loss) if several else AxisChoice(next(iter(plan.candidates)), loss)
        cost[name] = {axis: kit.target.decode_cost(grid, axis, shape, plan.turn) for axis, grid in plan.candidates.items()}
    return within_slowdown(choices, cost, kit.max_slowdown)


def _lower(choice: AxisChoice) -> bool:
    """Whether another axis loses less than the one that was kept."""
    return bool(choice.loss) and min(choice.loss.values()) < choice.loss[choice.axis]


def choose_axis(loss: Mapping[Axis, float]) -> AxisChoice:
    """The candidate with the smallest loss; a tie goes to PER_OC, which every runtime holds natively."""
    axis = min(loss, key=lambda candidate: (loss[candidate], candidate is not Axis.PER_OC))
    return AxisChoice(axis, dict(loss))


def within_slowdown(
    choices: Mapping[str, AxisChoice], cost: Mapping[str, Mapping[Axis, float]], max_slowdown: float
) -> dict[str, AxisChoice]:
    """Take back the PER_IC choices that buy least per second until one decoder block's decode time fits.

    ``cost``: estimated seconds per tensor and candidate axis. The bound is ``max_slowdown`` times the block's time with
    every axis PER_OC that may be. Scope losses compare across tensors: each is the error of what attention or MLP adds
    to the residual stream. Output losses compare only roughly.
    """
    kept = dict(choices)
    budget = max_slowdown * sum(per_axis.get(Axis.PER_OC, min(per_axis.values())) for per_axis in cost.values())

    def total() -> float:
        return sum(cost[name][choice.axis] for name, choice in kept.items())

    def gain_per_second(name: str) -> float:
        loss, seconds = kept[name].loss, cost[name]
        extra = seconds[Axis.PER_IC] - seconds[Axis.PER_OC]
        return (loss[Axis.PER_OC] - loss[Axis.PER_IC]) / max(extra, 1e-12)

    both = [name for name, choice in kept.items() if choice.axis is Axis.PER_IC and Axis.PER_OC in choice.loss]
    for name in sorted(both, key=gain_per_second):
        if total() <= budget:
            break
        kept[name] = AxisChoice(Axis.PER_OC, kept[name].loss)
    return kept
