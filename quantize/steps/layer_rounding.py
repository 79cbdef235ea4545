"""AdaDim over one decoder layer: every linear rounded on each axis that it may have, and the better one kept.

The loss is that of what the planned rounder leaves, not of round-to-nearest: GPTQ mends more on one axis than on the other.
A scope loss (arXiv 2309.15531, section 4.2: the output error of the whole attention or MLP) needs the source's layer and its
siblings' axes, so it is asked with round-to-nearest, one linear after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from quantize.blocks import dequantize, unstack
from quantize.errors import CalibrationError
from quantize.float_params import check_params
from quantize.loss import output_loss
from quantize.rounding import ROUNDERS
from quantize.steps.axis_choice import choose_axis, within_slowdown
from quantize.store.tensors import TensorRecord
from quantize.types import F32, Axis, AxisChoice, InputStats, QuantizedTensor, TensorPlan
from quantize.workers import in_threads

if TYPE_CHECKING:
    from quantize.source import LayerRun

Rounded = tuple[QuantizedTensor, TensorRecord]
InSource = Callable[[str, F32], F32]  # (weight name, F32[OC, IC]) -> what stands in for the source's weight
Cost = Mapping[str, Mapping[Axis, float]]  # seconds by weight name
Losses = Mapping[Axis, float]


@dataclass(frozen=True)
class Linear:
    """A weight F32[OC, IC] to be rounded; ``stats`` None where no rounder and no choice needs them."""

    plan: TensorPlan
    weight: F32
    stats: InputStats | None

    def rounded(self, axis: Axis) -> Rounded:
        """The planned rounder's result, or RTN's where that has the lower output loss; the record has the loss, if it is known.

        Raises PlanError for scales that overflow the file's dtype.
        """
        return self.best(self.tried(axis))

    def tried(self, axis: Axis) -> dict[str, QuantizedTensor]:
        """By rounder: the planned one's result, and RTN's beside GPTQ's."""
        rounders = dict.fromkeys((self.plan.rounder, "rtn") if self.plan.rounder == "gptq" else (self.plan.rounder,))
        grid = self.plan.candidates[axis]
        return {name: ROUNDERS[name](self.plan.name, self.weight, grid, axis, self.stats) for name in rounders}

    def best(self, tried: Mapping[str, QuantizedTensor]) -> Rounded:
        """The first of them, or another one of lower output loss. Raises as ``rounded``."""
        losses = {name: self._loss(tensor) for name, tensor in tried.items()}
        rounder = min(losses, key=lambda name: losses[name])
        tensor, plan = tried[rounder], self.plan
        check_params(tensor)
        loss = {} if self.stats is None else {str(tensor.axis): losses[rounder]}
        return tensor, TensorRecord(
            plan.name, plan.shape, tensor.grid, axis=tensor.axis, rounder=rounder, note=plan.note, loss=loss
        )

    def only(self, axis: Axis) -> Linear:
        """The same with one candidate."""
        return replace(self, plan=replace(self.plan, candidates={axis: self.plan.candidates[axis]}))

    def _loss(self, tensor: QuantizedTensor) -> float:
        return 0.0 if self.stats is None else output_loss(self.weight, dequantize(tensor), self.stats)


def round_all(linears: Iterable[Linear]) -> list[dict[Axis, Rounded]]:
    """Each linear on each of its candidate axes; those that share an input one after the other, the others side by side."""
    linears = list(linears)
    sites: dict[int, list[int]] = {}
    for index, linear in enumerate(linears):
        sites.setdefault(index if linear.stats is None else id(linear.stats.hessian), []).append(index)
    longest = sorted(sites.values(), key=lambda indices: -sum(_work(linears[i]) for i in indices))
    found = in_threads(_round_site, [[linears[i] for i in indices] for indices in longest])
    by_index = dict(zip(chain(*longest), chain(*found), strict=True))
    return [by_index[index] for index in range(len(linears))]


def _round_site(linears: list[Linear]) -> list[dict[Axis, Rounded]]:
    """Those that share an input one below the other as far as they round alike: GPTQ then visits that input's channels once."""
    found: list[dict[Axis, Rounded]] = [{} for _ in linears]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by name
        for axis in Axis:
            for alike in _alike(linears, axis):
                for index, rounded in zip(alike, _stacked([linears[i] for i in alike], axis), strict=True):
                    found[index][axis] = rounded
    return found


def _alike(linears: list[Linear], axis: Axis) -> list[list[int]]:
    """Indices of linears that may be stacked: on one grid by GPTQ, and for PER_IC of whole groups of output channels."""
    stacks: dict[object, list[int]] = {}
    for index, linear in enumerate(linears):
        grid = linear.plan.candidates.get(axis)
        if grid is not None:
            whole = axis is Axis.PER_OC or len(linear.weight) % grid.block_size == 0
            weighed = linear.stats is not None and linear.stats.row_weight is not None
            key = (grid, weighed) if whole and linear.plan.rounder == "gptq" else index
            stacks.setdefault(key, []).append(index)
    return list(stacks.values())


def _stacked(linears: list[Linear], axis: Axis) -> list[Rounded]:
    first, *others = linears
    if not others or first.stats is None:
        return [linear.rounded(axis) for linear in linears]
    weights = [linear.stats.row_weight for linear in linears if linear.stats is not None and linear.stats.row_weight is not None]
    stats = replace(first.stats, row_weight=np.concatenate(weights) if weights else None)
    tried = Linear(first.plan, np.concatenate([linear.weight for linear in linears]), stats).tried(axis)
    outs = [len(linear.weight) for linear in linears]
    parts = {name: unstack(tensor, outs) for name, tensor in tried.items()}
    return [
        linear.best({name: replace(tensors[index], name=linear.plan.name) for name, tensors in parts.items()})
        for index, linear in enumerate(linears)
    ]


def _work(linear: Linear) -> int:
    """What its matrix products take, in some unit."""
    return int(len(linear.plan.candidates) * linear.weight.size * linear.weight.shape[1])


def round_layer(linears: list[Linear], cost: Cost, max_slowdown: float) -> dict[str, Rounded]:
    """Every linear of a decoder layer, by name, on the axis whose rounding loses least, within the slowdown."""
    options = round_all(linears)
    losses = {
        linear.plan.name: {axis: record.loss[str(axis)] for axis, (_, record) in tried.items() if record.loss}
        for linear, tried in zip(linears, options, strict=True)
    }
    return _kept(_choose(linears, losses, cost, max_slowdown), options)


def round_layer_by_scope(
    linears: list[Linear], cost: Cost, max_slowdown: float, run: LayerRun, in_source: InSource
) -> dict[str, Rounded]:
    """The same by ``run``'s scope losses; siblings count as quantized once their axis is chosen."""
    losses = dict[str, Losses]()
    for linear in linears:
        name, tried = linear.plan.name, linear.plan.candidates
        if len(tried) == 1:
            losses[name] = {}
            continue
        rounded = [ROUNDERS["rtn"](name, linear.weight, grid, axis, linear.stats) for axis, grid in tried.items()]
        for tensor in rounded:
            check_params(tensor)
        values = [in_source(name, dequantize(tensor)) for tensor in rounded]
        losses[name] = dict(zip(tried, run.scope_loss(name, values), strict=True))
        run.commit(name, dict(zip(tried, values, strict=True))[choose_axis(losses[name]).axis])
    choices = _choose(linears, losses, cost, max_slowdown)
    return _kept(choices, round_all(linear.only(choices[linear.plan.name].axis) for linear in linears))


def _choose(linears: list[Linear], losses: Mapping[str, Losses], cost: Cost, max_slowdown: float) -> dict[str, AxisChoice]:
    choices = dict[str, AxisChoice]()
    for linear in linears:
        name, loss = linear.plan.name, losses[linear.plan.name]
        if not np.isfinite(list(loss.values())).all():
            raise CalibrationError(f"{name}: its outputs on the calibration text overflow; does the source itself run?")
        several = len(linear.plan.candidates) > 1
        choices[name] = choose_axis(loss) if several else AxisChoice(next(iter(linear.plan.candidates)), loss)
    return within_slowdown(choices, cost, max_slowdown)


def _kept(choices: Mapping[str, AxisChoice], options: list[dict[Axis, Rounded]]) -> dict[str, Rounded]:
    """Of each linear's options the chosen one, its record with the loss of every axis that was tried."""
    kept = dict[str, Rounded]()
    for (name, choice), tried in zip(choices.items(), options, strict=True):
        tensor, record = tried[choice.axis]
        kept[name] = tensor, replace(record, loss={str(axis): value for axis, value in choice.loss.items()})
    return kept
