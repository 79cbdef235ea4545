"""GPTQ, then the polish of what it leaves."""

from __future__ import annotations

from quantize.methods.method import Method
from quantize.rounding import Rounder
from quantize.rounding.gptq import gptq
from quantize.rounding.polish import polish
from quantize.steps.round import Round
from quantize.types import Need

METHOD = Method(
    "gptq",
    "second order, then coordinate descent",
    "arXiv 2210.17323, 2309.01885",
    (Round(Rounder("gptq", Need.HESSIAN, (gptq, polish))),),
)
