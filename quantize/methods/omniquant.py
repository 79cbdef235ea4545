"""OmniQuant: both ends of each group's range, and scales of channels, learned by what its block's output loses."""

from __future__ import annotations

from quantize.methods.method import Method
from quantize.rounding import NEAREST, Rounder
from quantize.steps.learn_clips import LearnClips
from quantize.steps.round import Round
from quantize.types import Axis

METHOD = Method(
    "omniquant",
    "ends of each group's range and scales of channels learned block by block",
    "arXiv 2308.13137",
    (Round(Rounder(NEAREST)), LearnClips()),
    axes=(Axis.PER_OC,),
    block_steps=30,
    ours="few steps of a fixed size, from ends and scales that were searched first; the loss by what errors cost; "
    "no scales between q and k; a block is scaled only where unseen text gains by it",
)
