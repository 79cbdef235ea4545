"""CMPQ: the louder input channels of a linear a bit wider than the others, so that bits may be any number on average."""

from __future__ import annotations

from quantize.methods import gptq
from quantize.methods.method import Method
from quantize.steps.divide import MixWidths
from quantize.steps.level_tables import MakeLevels
from quantize.steps.round_parts import RoundParts
from quantize.types import Axis

OUTLIERS = 0.005  # of all input channels

METHOD = Method(
    "cmpq",
    "bits by the size of each input channel, a fraction on average",
    "arXiv 2410.13056",
    (MixWidths(OUTLIERS), MakeLevels(), RoundParts(gptq.METHOD.rounder)),
    axes=(Axis.PER_OC,),
    ours="whole channels in float16 for sparse outliers; a table of levels for each part, not channel, and none but scales of "
    "groups where the target has no tables; GPTQ and its polish",
)
