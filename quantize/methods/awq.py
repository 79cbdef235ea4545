"""AWQ: channels that see loud activations made larger in the weights, as far as it pays; then round to nearest."""

from __future__ import annotations

from functools import partial

from quantize.methods.around import ROUNDER_WORDS
from quantize.methods.method import Method
from quantize.rounding import NEAREST, Rounder
from quantize.steps.fold import ChangeBasis
from quantize.steps.round import Round
from quantize.transforms.ffn_scales import ffn_scales
from quantize.transforms.norm_scales import norm_scales
from quantize.transforms.scales import awq_factors
from quantize.transforms.value_scales import value_scales
from quantize.types import Axis

SCALES = tuple(
    ChangeBasis("awq-scales", partial(propose, factors_of=awq_factors)) for propose in (norm_scales, value_scales, ffn_scales)
)

METHOD = Method(
    "awq",
    "channels scaled by a power of their activations that is searched, round to nearest",
    "arXiv 2306.00978",
    (*SCALES, Round(Rounder(NEAREST))),
    axes=(Axis.PER_OC,),
    rounders=ROUNDER_WORDS,
    ours="root mean squares for mean sizes; scales by what errors cost, none more than 64 times from their mean; one for all "
    "query heads of a group; no search of clips",
)
