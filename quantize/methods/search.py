"""Round to nearest that has to know what matters: every group's scale searched for the least error by importance."""

from __future__ import annotations

from quantize.methods.method import Method
from quantize.rounding import Rounder
from quantize.steps.round import Round
from quantize.types import Need

METHOD = Method(
    "search", "round to nearest, scales searched", "llama.cpp with an imatrix", (Round(Rounder("search", Need.IMPORTANCE)),)
)
