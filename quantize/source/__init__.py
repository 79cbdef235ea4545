"""The only rooms that run torch: the source model as a whole, one decoder block at a time, and with other weights in it."""

from __future__ import annotations

from quantize.source.curvature import measure_curvature
from quantize.source.expert_inputs import ExpertInputs
from quantize.source.finetune import Learner, Tails
from quantize.source.generate import generate
from quantize.source.model_student import ModelStudent
from quantize.source.named import named_model, reads_gguf
from quantize.source.named_blocks import NamedBlock, block_students
from quantize.source.noise import Slope, measure_slopes
from quantize.source.rounded_inputs import round_inputs
from quantize.source.walk import BlockRun, walk_blocks
from quantize.source.whole import build_model, greedy, logits, rotary_tables

__all__ = [
    "BlockRun",
    "ExpertInputs",
    "Learner",
    "ModelStudent",
    "NamedBlock",
    "Slope",
    "Tails",
    "block_students",
    "build_model",
    "generate",
    "greedy",
    "logits",
    "measure_curvature",
    "measure_slopes",
    "named_model",
    "reads_gguf",
    "rotary_tables",
    "round_inputs",
    "walk_blocks",
]
