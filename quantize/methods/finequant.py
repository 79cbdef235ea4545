"""FineQuant: of every matrix the coarsest groups that hold it, found in the weights alone; then round to nearest."""

from __future__ import annotations

from quantize.methods.around import ROUNDER_WORDS
from quantize.methods.method import Method
from quantize.rounding import NEAREST, Rounder
from quantize.steps.group_size import ChooseGroups
from quantize.steps.round import Round
from quantize.types import Axis

ALPHA = 0.05  # of the error that is left: what merging two groups may cost

METHOD = Method(
    "finequant",
    "group size of each matrix by its weights, round to nearest",
    "arXiv 2308.09723",
    (ChooseGroups(ALPHA), Round(Rounder(NEAREST))),
    axes=(Axis.PER_OC,),
    rounders=ROUNDER_WORDS,
    ours="groups merged from the smallest on, and the threshold; GGUF: the choice is among block formats of as many bits",
)
