"""SmoothQuant (arXiv 2211.10438): loud channels made quieter, and what reads them larger by as much.

::

    s_j = (max |x_j|)^alpha / (max |w_j|)^(1 - alpha)        w_j: all that reads channel j

Scales are centred and bounded, as all that are folded here: their geometric mean is 1, and none is further from it than LARGEST.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from quantize.block import Block, Kit
from quantize.steps.scale_channels import ScaleChannels, largest_weights, peaks
from quantize.transforms.places import Place, Places, ffn_places, norm_places, value_places
from quantize.transforms.scales import bounded
from quantize.types import F32


@dataclass(frozen=True)
class Smooth(ScaleChannels):
    """``alpha``: how much of what is hard to round goes from activations to weights, from 0 to 1."""

    alpha: float
    places: tuple[Places, ...] = (norm_places, value_places, ffn_places)
    name: ClassVar[str] = "smooth"

    def factor(self, block: Block, place: Place, kit: Kit) -> F32:
        """See ScaleChannels."""
        return bounded(largest_weights(block, place) ** (1 - self.alpha) / peaks(block, place) ** self.alpha)
