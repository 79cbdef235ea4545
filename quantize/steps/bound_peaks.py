"""OS+ (arXiv 2304.09145): channels that are louder than a threshold made as loud as it, the others left as they are.

::

    s_j = max(1, max |x_j| / t)        t falls from the largest of all peaks, which changes nothing, in even steps

The threshold is the first under which the linears that read the channels lose least: by their rounded inputs, of 8 bits with one
static scale, and by their weights rounded to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from quantize.activations import STATIC, Activation
from quantize.block import Block, Kit
from quantize.blocks import dequantize
from quantize.fold import Fold
from quantize.loss import activation_loss, output_loss
from quantize.rounding.rtn import rtn
from quantize.steps.scale_channels import ScaleChannels, peaks
from quantize.transforms.places import Place, Places, ffn_places, norm_places, value_places
from quantize.types import F32
from quantize.workers import in_threads

THRESHOLDS = 40


@dataclass(frozen=True)
class BoundPeaks(ScaleChannels):
    """By the one loss, in nats per token; the paper takes the squared error of the block's output."""

    places: tuple[Places, ...] = (norm_places, value_places, ffn_places)
    name: ClassVar[str] = "bound-peaks"

    def factor(self, block: Block, place: Place, kit: Kit) -> F32 | None:
        """See ScaleChannels."""
        peak = peaks(block, place)
        factors = [np.minimum(1, peak.max() * np.float32(1 - step / THRESHOLDS) / peak) for step in range(THRESHOLDS)]
        best = int(np.argmin(in_threads(lambda factor: _loss(block, place, place.fold(factor)), factors)))
        return factors[best] if best else None


def _loss(block: Block, place: Place, fold: Fold) -> float:
    """Of the place's readers under ``fold``, each weight on the better of its axes."""
    stats, total = fold.stats({name: block.stats[name] for name in place.readers}), 0.0
    inputs = stats[place.readers[0]].inputs
    assert inputs is not None, "no sample of the input was kept"
    rounded = Activation.fitted(STATIC, np.stack([inputs.low, inputs.high])).round(inputs.sample)
    for name in place.readers:
        weight = fold.tensor(name, block.tensors[name])
        stored = (dequantize(rtn(name, weight, grid, axis)) for axis, grid in block.plans[name].candidates.items())
        total += min(output_loss(weight, one, stats[name]) for one in stored)
        total += activation_loss(weight, rounded, stats[name])
    return total
