"""QUIK's weights: outlier input channels in float16, the others by GPTQ from the quietest on, so that the outliers absorb."""

from __future__ import annotations

from quantize.methods import gptq
from quantize.methods.method import Method
from quantize.steps.divide import KeepLoudest
from quantize.steps.round_parts import RoundParts
from quantize.types import Axis

COLUMNS = 32  # of a linear that reads the residual stream

METHOD = Method(
    "quik",
    "outlier input channels in float16, GPTQ from the quietest on, what ends an MLP one class of bits higher",
    "arXiv 2310.09259, its weights",
    (KeepLoudest(COLUMNS), RoundParts(gptq.METHOD.rounder, quiet_first=True)),
    axes=(Axis.PER_OC,),
    ours="outliers by mean square; groups; the polish after GPTQ; activations stay floats",
)
