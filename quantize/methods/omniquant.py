"""OmniQuant's learnable weight clipping: both ends of each group's range learned by what its block's output loses."""

from __future__ import annotations

from quantize.methods.method import Method
from quantize.rounding import NEAREST, Rounder
from quantize.steps.learn_clips import LearnClips
from quantize.steps.round import Round
from quantize.types import Axis

METHOD = Method(
    "omniquant",
    "both ends of each group's range learned block by block",
    "arXiv 2308.13137, weight clipping",
    (Round(Rounder(NEAREST)), LearnClips()),
    axes=(Axis.PER_OC,),
    block_steps=30,
    ours="few steps of a fixed size, from ends that were searched first; the loss by what errors cost; no learned channel scales",
)
