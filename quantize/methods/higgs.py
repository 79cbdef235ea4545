"""HIGGS: inputs turned until weights look like samples of a normal distribution, for which there are best levels."""

from __future__ import annotations

from quantize.methods.around import ROUNDER_WORDS
from quantize.methods.method import Method
from quantize.rounding import NEAREST, Rounder
from quantize.steps.round import Round
from quantize.types import Axis

METHOD = Method(
    "higgs",
    "inputs turned, levels of a normal distribution, round to nearest",
    "arXiv 2411.17525",
    (Round(Rounder(NEAREST)),),
    axes=(Axis.PER_OC,),
    grids={2: "lm2", 3: "lm3", 4: "lm4"},
    turns=True,
    rounders=ROUNDER_WORDS,
    ours="random signs, all of a row turned together where that can be; scales searched; no choice of widths by loss",
)
