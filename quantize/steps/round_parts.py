"""A weight in parts, each of other input channels: which these are, and each part rounded so that others make up for its errors.

Parts are rounded one after the other, those of the quietest channels first: GPTQ (arXiv 2210.17323), a part for its column.
With H = E[x xT], part p of the channels p, what is rounded already of f, and what is to come of the channels l::

    H' = H - H[:, l] H[l, l]^-1 H[l, :]                 what errors cost when the later parts make up for them
    W' = W[:, p] + E[:, f] H'[f, p] H'[p, p]^-1         E = W - Q: so this part makes up for those before it

W' is rounded under H'[p, p] by any rounder; float16 just stores it. Where several parts are rounded, all are made once more with
the others as they are (l is empty, f are all others), and the better of the two is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from quantize.block import Block, Kit, Rounded
from quantize.loss import output_loss
from quantize.model_config import part_name
from quantize.rounding.gptq import visit_of
from quantize.steps.columns import absorbed, absorbing, in_float16
from quantize.steps.round import Linear, Round, round_all
from quantize.types import F32, InputStats, QuantizedTensor, Tensor, TensorPlan
from quantize.weight import Index, Part, StoredWeight
from quantize.workers import Once, in_threads


@dataclass(frozen=True, eq=False)
class Divided:
    """``weight`` F32[OC, IC] before rounding and its ``stats``; what the first part ``reads``, and the parts after it."""

    weight: F32
    stats: InputStats
    reads: Index
    others: tuple[Part, ...]

    def stored(self, name: str, rounded: Tensor) -> StoredWeight:
        """See Beside."""
        return StoredWeight((Part(rounded, self.reads), *self.others))

    def loss(self, stored: F32) -> float:
        """See Beside."""
        return output_loss(self.weight, stored, self.stats)


@dataclass(frozen=True)
class RoundParts(Round):
    """Part by part; a weight of one part is rounded as Round has it. ``quiet_first``: GPTQ visits the channels of a decoder
    block's linears by rising size, as the parts come; else by falling size within each."""

    quiet_first: bool = False

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step. Raises PlanError for scales and floats that overflow the file's dtype."""
        whole = [name for name in names if not block.plans[name].parts]
        stats = self._in_order(block, whole)
        tried = dict(super().__call__(replace(block, stats=stats), whole, kit).tried)
        sites, beside = list(_sites(block, names)), dict(block.beside)
        for site, held in zip(sites, self._rounds(sites), strict=True):
            for name, plan in site.plans.items():
                losses = [site.loss(name, made[name]) for made in held]
                made = held[losses.index(min(losses))][name]
                (begin, rounder), others = made[0], tuple(one.part for one in made[1:])
                assert isinstance(begin.weight, QuantizedTensor) and begin.reads is not None, name
                tried[name] = {next(iter(plan.candidates)): Rounded(begin.weight, rounder, min(losses))}
                beside[name] = Divided(site.weights[name], site.stats[name], begin.reads, others)
        return replace(block, tried=tried, beside=beside)

    def _in_order(self, block: Block, names: Collection[str]) -> Mapping[str, InputStats]:
        """The block's statistics, with the visits of those that share an input."""
        stats = dict(block.stats)
        for site in block.sites if self.quiet_first else ():
            visit = Once(partial(visit_of, stats[site[0]].hessian, order=rising(stats[site[0]].importance)))
            stats |= {name: replace(stats[name], visit=visit) for name in site if name in names}
        return stats

    def _rounds(self, sites: Sequence[_Site]) -> list[list[_Held]]:
        """Of each site all its parts, and what comes of another round over them."""
        rounds = [[made] for made in self._swept(sites, [{name: [] for name in site.plans} for site in sites])]
        again = [index for index, site in enumerate(sites) if site.rounds_several]
        made = self._swept([sites[index] for index in again], [rounds[index][0] for index in again])
        for index, other in zip(again, made, strict=True):
            rounds[index].append(other)
        return rounds

    def _swept(self, sites: Sequence[_Site], before: Sequence[_Held]) -> list[_Held]:
        """Every part of every weight once, beside what there was ``before``: no part yet, or all."""
        held: list[_Held] = [{name: list(made) for name, made in one.items()} for one in before]
        for turn in range(max((len(site.channels) for site in sites), default=0)):
            turns = [_Turn(site, one, turn) for site, one in zip(sites, held, strict=True) if turn < len(site.channels)]
            wanted = in_threads(_Turn.wanted, turns)
            linears = [self._linears(one, want) for one, want in zip(turns, wanted, strict=True)]
            flat = [linear for own in linears for linear in own]
            found = iter(round_all(flat, [[linear.name for linear in own] for own in linears]))
            rounded = {linear.name: next(iter(next(found).values())) for linear in flat}
            for one, want in zip(turns, wanted, strict=True):
                one.take(want, rounded)
        return held

    def _linears(self, turn: _Turn, wanted: _Wanted) -> list[Linear]:
        """What is to be rounded under one Hessian, by the names of the parts."""
        order = rising(turn.site.importance[turn.site.channels[turn.number]])
        visit = Once(partial(visit_of, wanted.hessian, order=order)) if self.quiet_first else None
        return [
            Linear(
                turn.part_of(name),
                weight,
                replace(turn.site.stats[name], hessian=wanted.hessian, visit=visit),
                {next(iter(turn.site.plans[name].candidates)): grid},
                self.rounder,
            )
            for name, weight in wanted.weights.items()
            if (grid := turn.site.plans[name].parts[turn.number].grid) is not None
        ]


class _Made(NamedTuple):
    """A part, and by which rounder."""

    part: Part
    rounder: str


_Held = dict[str, list[_Made]]  # by weight: its parts so far


@dataclass(frozen=True, eq=False)
class _Site:
    """Linears that share an input, and which of its channels each part has, intp[n] rising."""

    plans: Mapping[str, TensorPlan]
    weights: Mapping[str, F32]
    stats: Mapping[str, InputStats]
    channels: tuple[Index, ...]

    @property
    def hessian(self) -> F32:
        """Of the input."""
        return next(iter(self.stats.values())).hessian

    @property
    def rounds_several(self) -> bool:
        """Whether more than one part is rounded: float16 makes up for what it can the first time."""
        return any(sum(part.grid is not None for part in plan.parts) > 1 for plan in self.plans.values())

    @property
    def importance(self) -> F32:
        """F32[IC]: the mean square of each channel."""
        return next(iter(self.stats.values())).importance

    def loss(self, name: str, made: Sequence[_Made]) -> float:
        """Of all parts together."""
        stored = StoredWeight(tuple(one.part for one in made)).dense()
        return output_loss(self.weights[name], stored, self.stats[name])


class _Wanted(NamedTuple):
    """What the parts of a site are to become, F32[OC, n] by weight, and what their errors cost, F32[n, n]."""

    weights: Mapping[str, F32]
    hessian: F32


@dataclass(frozen=True, eq=False)
class _Turn:
    """Part ``number`` of each linear of a site, beside what is ``held``."""

    site: _Site
    held: _Held
    number: int

    def wanted(self) -> _Wanted:
        """With what is held as it is, and what is not yet made to make up for this part's errors."""
        own, count = self.site.channels[self.number], max(map(len, self.held.values()))
        others = [number for number in range(len(self.site.channels)) if number != self.number]
        fixed, later = (self._channels([number for number in others if (number < count) is there]) for there in (True, False))
        rest = absorbed(self.site.hessian, later)[1] if len(later) else self.site.hessian
        hessian = np.ascontiguousarray(rest[np.ix_(own, own)])
        weights = {name: np.ascontiguousarray(weight[:, own]) for name, weight in self.site.weights.items()}
        if len(fixed):
            share = absorbing(rest, own)[fixed].astype(np.float32)
            for name, made in self.held.items():
                stored = StoredWeight(tuple(one.part for one in made))
                weights[name] += (self.site.weights[name] - stored.dense(len(self.site.hessian)))[:, fixed] @ share
        return _Wanted(weights, hessian)

    def take(self, wanted: _Wanted, rounded: Mapping[str, Rounded]) -> None:
        """Into what is held."""
        for name, weight in wanted.weights.items():
            part = self.part_of(name)
            found = rounded.get(part)
            tensor: Tensor = in_float16(part, weight) if found is None else found.tensor
            made = _Made(Part(tensor, self.site.channels[self.number]), "" if found is None else found.rounder)
            self.held[name][self.number : self.number + 1] = [made]

    def part_of(self, name: str) -> str:
        """What the part of a weight is called."""
        return part_name(name, self.number) if self.number else name

    def _channels(self, numbers: Sequence[int]) -> Index:
        return np.concatenate([np.empty(0, np.intp), *(self.site.channels[number] for number in numbers)])


def rising(sizes: F32) -> Index:
    """Which of F32[n] comes where when they are sorted."""
    return np.argsort(sizes, kind="stable")


def _sites(block: Block, names: Collection[str]) -> Iterator[_Site]:
    """Of linears in parts: those that share an input share which channels are loud, where their parts are of the same sizes."""
    alone = [(name,) for name in names if not any(name in site for site in block.sites)]
    for site in (*block.sites, *alone):
        divided: dict[tuple[int, ...], list[str]] = {}
        for name in site:
            if name in names and block.plans[name].parts:
                divided.setdefault(tuple(part.count for part in block.plans[name].parts), []).append(name)
        for counts, own in divided.items():
            order = rising(block.stats[own[0]].importance)
            ends = pairwise(accumulate(counts, initial=0))
            yield _Site(
                {name: block.plans[name] for name in own},
                {name: block.tensors[name] for name in own},
                {name: block.stats[name] for name in own},
                tuple(np.sort(order[start:stop]) for start, stop in ends),
            )
