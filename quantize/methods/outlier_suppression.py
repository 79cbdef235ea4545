"""Outlier Suppression+: channels louder than a threshold made as loud as it; then round to nearest."""

from __future__ import annotations

from quantize.methods.around import ROUNDER_WORDS
from quantize.methods.method import Method
from quantize.rounding import NEAREST, Rounder
from quantize.steps.bound_peaks import BoundPeaks
from quantize.steps.round import Round
from quantize.types import Axis

METHOD = Method(
    "outlier-suppression",
    "channels louder than a threshold scaled down to it, round to nearest",
    "arXiv 2209.13325, 2304.09145",
    (BoundPeaks(), Round(Rounder(NEAREST))),
    axes=(Axis.PER_OC,),
    rounders=ROUNDER_WORDS,
    ours="40 thresholds, evenly down to a 40th of the largest peak, by what errors cost; v and o too; no shift, as norms have no "
    "bias",
)
