"""OutlierTune (arXiv 2406.18832): channels scaled until all are as loud, so that one scale serves them as each its own would.

A static scale of 8 bits for channel j is ``max |x_j| / 127``. Folded into what makes the channel and what reads it, it is the
same for all, and costs nothing at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from quantize.block import Block, Kit
from quantize.steps.scale_channels import ScaleChannels, peaks
from quantize.transforms.places import Place, Places, norm_places, value_places
from quantize.transforms.scales import LARGEST
from quantize.types import F32


@dataclass(frozen=True)
class EvenPeaks(ScaleChannels):
    """Every channel as loud as the one in the middle; one that is nearly dead no more than LARGEST times as loud as it was."""

    places: tuple[Places, ...] = (norm_places, value_places)
    name: ClassVar[str] = "even-peaks"

    def factor(self, block: Block, place: Place, kit: Kit) -> F32:
        """See ScaleChannels."""
        peak = peaks(block, place)
        out: F32 = np.minimum(np.median(peak) / peak, np.float32(LARGEST))
        return out
