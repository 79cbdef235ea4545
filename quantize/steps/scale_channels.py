"""Channels scaled for what rounding their activations costs, whatever it does to weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

import numpy as np

from quantize.block import Block, Kit
from quantize.steps.fold import APPLIED, foldable, touched
from quantize.transforms.places import Place, Places
from quantize.transforms.scales import TINY
from quantize.types import F32, Need


class ScaleChannels(ABC):
    """Every channel of each of the ``places`` between linears of a method, by a factor that is folded into what makes it."""

    name: ClassVar[str]
    places: tuple[Places, ...]
    needs: ClassVar[Need] = Need.HESSIAN

    @abstractmethod
    def factor(self, block: Block, place: Place, kit: Kit) -> F32 | None:
        """F32[n], how many times as large each channel becomes; None: all stay as they are."""

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step."""
        at, before = foldable(block), block
        for place in () if at is None else [place for places in self.places for place in places(block, at)]:
            factor = self.factor(block, place, kit)
            fold = None if factor is None else place.fold(factor)
            if fold is not None and set(names).issuperset(touched(block, fold)):
                block = block.folded(fold)
        return block if block is before else block.reporting(APPLIED, self.name)


def peaks(block: Block, place: Place) -> F32:
    """F32[n]: the largest size of each channel that its readers saw, above 0."""
    inputs = block.stats[place.readers[0]].inputs
    assert inputs is not None, "no sample of the input was kept"
    return _above_zero(place.by_channel(np.maximum, inputs.peak))


def largest_weights(block: Block, place: Place) -> F32:
    """F32[n]: the largest size of a weight that reads the channel, above 0."""
    sizes = np.max([np.abs(block.tensors[name]).max(0) for name in place.readers], axis=0)
    return _above_zero(place.by_channel(np.maximum, sizes))


def _above_zero(sizes: F32) -> F32:
    out: F32 = np.maximum(sizes, TINY * sizes.max() + np.finfo(np.float32).tiny)
    return out
