"""OmniQuant's scales of channels: one for all linears that read a norm's channels, or v's, folded into what makes them.

The scales of q and k stay as they are. They would have to be alike in both halves of a rotary pair, and for all heads of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from quantize.architecture.families import FoldSites, bias_of
from quantize.block import Block, Kit, Student
from quantize.fold import Basis, Fold
from quantize.steps.clips import Clips
from quantize.steps.fold import best_fold, foldable
from quantize.transforms.heads import summed, value_fold
from quantize.transforms.norm_scales import norm_fold, norm_scales
from quantize.transforms.value_scales import value_scales
from quantize.types import F32, FINE_BITS

RATE = 0.005  # of a scale, per step


class Site(NamedTuple):
    """Channels that may be scaled: ``fold`` of a factor F32[n], linears that read them, and what a slope F32[IC] of theirs is by
    channel, F32[n]."""

    fold: Callable[[F32], Fold]
    readers: tuple[str, ...]
    of_channels: Callable[[F32], F32]
    candidates: Sequence[Fold]


class Channels:
    """Shared by the Clips of what reads the channels: how many times as large these are, F32[n]."""

    def __init__(self, site: Site, knobs: Mapping[str, Clips], factor: F32) -> None:
        self._site, self._factor = site, factor
        self._readers = [knobs[name] for name in site.readers]
        self.keep()

    @property
    def fold(self) -> Fold:
        """The change of basis, as it is now."""
        return self._site.fold(self._factor)

    def move(self, rate: float) -> None:
        """See Shared: every channel one stride against the sign of its slope."""
        slope = self._site.of_channels(np.sum([reader.slope for reader in self._readers], axis=0))
        self._factor = self._factor * (1 - np.float32(rate * RATE) * np.sign(slope))
        read = self.fold.read
        for reader in self._readers:
            reader.scale(read[reader.tensor.name].factor)

    def keep(self) -> None:
        """Remember the factor."""
        self._kept = self._factor

    def take_back(self) -> None:
        """What was kept."""
        self._factor = self._kept


def started(site: Site, block: Block, kit: Kit) -> F32:
    """The factor F32[n] of its best candidate, if that pays for rounding to nearest; else 1."""
    best = best_fold(block, site.candidates, kit)
    width = block.tensors[site.readers[0]].shape[1]
    even = site.of_channels(np.ones(width, np.float32))
    factor: F32 = even / even if best is None else site.of_channels(best.read[site.readers[0]].factor) / even
    return factor


def sites_of(block: Block, names: Collection[str], student: Student) -> list[Site]:
    """Those of which all linears are among ``names`` and have few bits. v's channels only where its bias can go with them."""
    at = foldable(block)
    if at is None:
        return []
    few = {name for name in names if block.rounded[name].tensor.grid.bits < FINE_BITS}
    found = [site for site in _all_sites(block, at) if few.issuperset(site.readers)]
    values = at.values
    if values is None:
        return found
    bias = bias_of(values.value.weight)
    held = values.value.weight in names and (bias not in block.tensors or student.holds(bias))
    return [site for site in found if held or site.readers != (values.output,)]


def _all_sites(block: Block, at: FoldSites) -> Iterator[Site]:
    scales = norm_scales(block, at)
    for (norm, linears), candidates in zip(at.norms.items(), scales, strict=True):
        yield Site(partial(norm_fold, at, norm), linears, lambda slope: slope, candidates)
    values = at.values
    if values is not None:
        candidates = list(chain.from_iterable(value_scales(block, at)))

        def fold(factor: F32) -> Fold:
            return value_fold(block, Basis.scaled(factor), values)

        yield Site(fold, (values.output,), partial(summed, at=values), candidates)
