"""DuQuant: inputs smoothed, then turned in blocks until no channel is much louder than another; then round to nearest."""

from __future__ import annotations

from quantize.methods.around import ROUNDER_WORDS
from quantize.methods.method import Method
from quantize.rounding import NEAREST, Rounder
from quantize.steps.round import Round
from quantize.steps.smooth import Smooth
from quantize.steps.turn_blocks import TurnBlocks
from quantize.types import Axis

ALPHA = 0.6  # of the scales before the turns

METHOD = Method(
    "duquant",
    "inputs smoothed and turned in blocks by what a text shows of their outliers, round to nearest",
    "arXiv 2406.01721",
    (Smooth(ALPHA), TurnBlocks(), Round(Rounder(NEAREST))),
    axes=(Axis.PER_OC,),
    rounders=ROUNDER_WORDS,
    ours="blocks of 64; turns by a sample of tokens, not by the mean of sequences; an outlier is spread evenly; groups; "
    "weights are not clipped",
    simulated="activations of 4 bits; adadim eval --activations simulates them",
)
