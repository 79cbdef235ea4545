"""SmoothQuant: what is hard to round shared between activations and weights, channel by channel; then round to nearest."""

from __future__ import annotations

from quantize.methods.around import ROUNDER_WORDS
from quantize.methods.method import Method
from quantize.rounding import NEAREST, Rounder
from quantize.steps.round import Round
from quantize.steps.smooth import Smooth
from quantize.transforms.places import norm_places
from quantize.types import Axis

ALPHA = 0.5

METHOD = Method(
    "smoothquant",
    "channels scaled into norms by the largest activation and weight of each, round to nearest",
    "arXiv 2211.10438",
    (Smooth(ALPHA, (norm_places,)), Round(Rounder(NEAREST))),
    axes=(Axis.PER_OC,),
    rounders=ROUNDER_WORDS,
    ours="scales centred, none more than 64 times from their mean",
)
