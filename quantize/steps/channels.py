"""OmniQuant's scales of channels: one for all linears that read a norm's channels, or v's, folded into what makes them.

The scales of q and k stay as they are. They would have to be alike in both halves of a rotary pair, and for all heads of a group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from quantize.architecture.families import FoldSites, bias_of
from quantize.block import Block, Kit, Student
from quantize.fold import Fold
from quantize.steps.clips import Clips
from quantize.steps.fold import best_fold, foldable
from quantize.transforms.norm_scales import norm_scales
from quantize.transforms.places import Place, norm_places, value_places
from quantize.transforms.value_scales import value_scales
from quantize.types import F32, FINE_BITS

RATE = 0.005  # of a scale, per step


class Site(NamedTuple):
    """A place whose channels may be scaled, and folds to begin with."""

    place: Place
    candidates: Sequence[Fold]

    def of_channels(self, slope: F32) -> F32:
        """F32[n]: what a slope F32[IC] of its readers is by channel."""
        return self.place.by_channel(np.add, slope)


class Channels:
    """Shared by the Clips of what reads the channels: how many times as large these are, F32[n]."""

    def __init__(self, site: Site, knobs: Mapping[str, Clips], factor: F32) -> None:
        self._site, self._factor = site, factor
        self._readers = [knobs[name] for name in site.place.readers]
        self.keep()

    @property
    def fold(self) -> Fold:
        """The change of basis, as it is now."""
        return self._site.place.fold(self._factor)

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
    width = block.tensors[site.place.readers[0]].shape[1]
    even = site.of_channels(np.ones(width, np.float32))
    factor: F32 = even / even if best is None else site.of_channels(best.read[site.place.readers[0]].factor) / even
    return factor


def sites_of(block: Block, names: Collection[str], student: Student) -> list[Site]:
    """Those of which all linears are among ``names`` and have few bits. v's channels only where its bias can go with them."""
    at = foldable(block)
    if at is None:
        return []
    few = {name for name in names if block.rounded[name].tensor.grid.bits < FINE_BITS}
    found = [site for site in _all_sites(block, at) if few.issuperset(site.place.readers)]
    values = at.values
    if values is None:
        return found
    bias = bias_of(values.value.weight)
    held = values.value.weight in names and (bias not in block.tensors or student.holds(bias))
    return [site for site in found if held or site.place.readers != (values.output,)]


def _all_sites(block: Block, at: FoldSites) -> Iterator[Site]:
    for place, candidates in zip(norm_places(block, at), norm_scales(block, at), strict=True):
        yield Site(place, candidates)
    for place in value_places(block, at):
        yield Site(place, list(chain.from_iterable(value_scales(block, at))))
