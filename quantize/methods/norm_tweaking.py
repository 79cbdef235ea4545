"""Norm Tweaking: GPTQ, then each block's norm gains by the statistics of what the block gives."""

from __future__ import annotations

from quantize.methods import gptq
from quantize.methods.around import ROUNDER_WORDS
from quantize.methods.method import Method
from quantize.steps.tweak_norms import TweakNorms
from quantize.types import Axis

RATE = 1e-3  # of a gain, per step of the first block
GROWTH = 5.0  # of the rate, from the first block to the last

METHOD = Method(
    "norm-tweaking",
    "GPTQ, then norm gains by means and variances of each block's output",
    "arXiv 2309.02784",
    (*gptq.METHOD.steps, TweakNorms(RATE, GROWTH)),
    axes=(Axis.PER_OC,),
    rounders=ROUNDER_WORDS,
    generates=True,
    ours="the words that its own text begins with; the rate; taken back where unseen text loses by it",
)
