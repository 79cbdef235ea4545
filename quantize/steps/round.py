"""Every linear of a block rounded by its method, on each axis that it may have."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from quantize.block import Block, Kit, Rounded, as_multiplied
from quantize.blocks import dequantize, unstack
from quantize.float_params import check_params
from quantize.loss import output_loss
from quantize.rounding import Rounder
from quantize.rounding.exact import EXACT, exact
from quantize.rounding.gptq import with_visits
from quantize.types import F32, Axis, Grid, InputStats, Need, QuantizedTensor
from quantize.weight import turned
from quantize.workers import in_threads


@dataclass(frozen=True)
class Round:
    """By ``rounder``; on the chosen axis where there is a choice, else on all candidates.

    A weight whose input is turned is rounded as the turned input is multiplied by it, and so ``tried`` has it.
    """

    rounder: Rounder

    @property
    def needs(self) -> Need:
        """What the rounder does."""
        return self.rounder.needs

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step. Raises PlanError for scales that overflow the file's dtype."""
        stats = as_multiplied({name: block.stats[name] for name in names if name in block.stats}, block.plans)
        linears = [self._linear(block, name, stats.get(name)) for name in names]
        found = {linear.name: held for linear in linears if (held := linear.exact())}
        others = [linear for linear in linears if linear.name not in found]
        found |= zip((linear.name for linear in others), round_all(others, block.sites), strict=True)
        return replace(block, tried={**block.tried, **found})

    def _linear(self, block: Block, name: str, stats: InputStats | None) -> Linear:
        plan, choice = block.plans[name], block.choices.get(name)
        grids = plan.candidates
        grids = grids if choice is None else {choice.axis: grids[choice.axis]}
        return Linear(name, turned(block.tensors[name], plan.turn), stats, grids, self.rounder)


@dataclass(frozen=True)
class Linear:
    """A weight F32[OC, IC] to be rounded on the grid of each axis; ``stats`` None where no rounder and no choice needs them."""

    name: str
    weight: F32
    stats: InputStats | None
    grids: Mapping[Axis, Grid]
    rounder: Rounder

    def exact(self) -> dict[Axis, Rounded]:
        """On the axes whose grid holds the weight as it is."""
        held = {axis: exact(self.name, self.weight, grid, axis) for axis, grid in self.grids.items()}
        loss = None if self.stats is None else 0.0
        return {axis: Rounded(tensor, EXACT, loss) for axis, tensor in held.items() if tensor is not None}

    def rounded(self, axis: Axis) -> Rounded:
        """The rounder's result, or what it started from where that has the lower output loss.

        Raises PlanError for scales that overflow the file's dtype.
        """
        return self.best(self.tried(axis))

    def tried(self, axis: Axis) -> dict[str, QuantizedTensor]:
        """By rounder: this one's result, and what it started from."""
        return self.rounder.tried(self.name, self.weight, self.grids[axis], axis, self.stats)

    def best(self, tried: Mapping[str, QuantizedTensor]) -> Rounded:
        """The first of them, or another one of lower output loss. Raises as ``rounded``."""
        losses = {name: self._loss(tensor) for name, tensor in tried.items()}
        rounder = min(losses, key=lambda name: losses[name])
        check_params(tried[rounder])
        return Rounded(tried[rounder], rounder, None if self.stats is None else losses[rounder])

    @property
    def in_turn(self) -> bool:
        """Whether its input channels are rounded one after the other, so that those who share them may be rounded together."""
        return self.rounder.needs >= Need.HESSIAN

    def _loss(self, tensor: QuantizedTensor) -> float:
        return 0.0 if self.stats is None else output_loss(self.weight, dequantize(tensor), self.stats)


def round_all(linears: list[Linear], sites: Iterable[Collection[str]] = ()) -> list[dict[Axis, Rounded]]:
    """Each linear on each of its axes; those of one of the ``sites`` one after the other, the others side by side."""
    site_of = {name: index for index, names in enumerate(sites) for name in names}
    groups: dict[object, list[int]] = {}
    for index, linear in enumerate(linears):
        groups.setdefault(site_of.get(linear.name, linear.name), []).append(index)
    longest = sorted(groups.values(), key=lambda indices: -sum(_work(linears[i]) for i in indices))
    found = in_threads(_round_site, [[linears[i] for i in indices] for indices in longest])
    by_index = dict(zip(chain(*longest), chain(*found), strict=True))
    return [by_index[index] for index in range(len(linears))]


def _round_site(linears: list[Linear]) -> list[dict[Axis, Rounded]]:
    """Those that share an input one below the other as far as they round alike: GPTQ then visits that input's channels once."""
    if any(linear.in_turn for linear in linears):
        visits = with_visits({linear.name: linear.stats for linear in linears if linear.stats is not None})
        linears = [replace(linear, stats=visits.get(linear.name)) for linear in linears]
    found: list[dict[Axis, Rounded]] = [{} for _ in linears]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by name
        for axis in Axis:
            for alike in _alike(linears, axis):
                for index, rounded in zip(alike, _stacked([linears[i] for i in alike], axis), strict=True):
                    found[index][axis] = rounded
    return found


def _alike(linears: list[Linear], axis: Axis) -> list[list[int]]:
    """Indices of linears that may be stacked: on one grid, channel by channel, and PER_IC of whole groups of output channels."""
    stacks: dict[object, list[int]] = {}
    for index, linear in enumerate(linears):
        grid = linear.grids.get(axis)
        if grid is not None:
            whole = axis is Axis.PER_OC or len(linear.weight) % grid.block_size == 0
            stats = linear.stats
            seen = None if stats is None else (stats.row_weight is not None, id(stats.hessian))
            key = (grid, seen) if whole and linear.in_turn else index
            stacks.setdefault(key, []).append(index)
    return list(stacks.values())


def _stacked(linears: list[Linear], axis: Axis) -> list[Rounded]:
    first, *others = linears
    if not others or first.stats is None:
        return [linear.rounded(axis) for linear in linears]
    weights = [linear.stats.row_weight for linear in linears if linear.stats is not None and linear.stats.row_weight is not None]
    stats = replace(first.stats, row_weight=np.concatenate(weights) if weights else None)
    tried = replace(first, weight=np.concatenate([linear.weight for linear in linears]), stats=stats).tried(axis)
    outs = [len(linear.weight) for linear in linears]
    parts = {name: unstack(tensor, outs) for name, tensor in tried.items()}
    return [
        linear.best({name: replace(tensors[index], name=linear.name) for name, tensors in parts.items()})
        for index, linear in enumerate(linears)
    ]


def _work(linear: Linear) -> int:
    """What its matrix products take, in some unit."""
    return int(len(linear.grids) * linear.weight.size * linear.weight.shape[1])
