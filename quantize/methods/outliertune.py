"""OutlierTune: every channel as loud as the others, so that inputs of 8 bits need one scale that is known before; then GPTQ."""

from __future__ import annotations

from quantize.methods import gptq
from quantize.methods.around import ROUNDER_WORDS
from quantize.methods.method import Method
from quantize.steps.even_peaks import EvenPeaks
from quantize.types import Axis

METHOD = Method(
    "outliertune",
    "static scales of each input channel folded away, GPTQ",
    "arXiv 2406.18832",
    (EvenPeaks(), *gptq.METHOD.steps),
    axes=(Axis.PER_OC,),
    rounders=ROUNDER_WORDS,
    ours="v and o too, one scale for all query heads of a group; no shift, as norms have no bias; a nearly dead channel no more "
    "than 64 times as loud; the polish after GPTQ",
)
