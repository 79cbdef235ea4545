"""The only rooms that run torch: the source model as a whole, one decoder layer at a time, and with other weights in it."""

from __future__ import annotations

from quantize.source.curvature import measure_curvature
from quantize.source.model_student import ModelStudent
from quantize.source.walk import LayerRun, walk_layers
from quantize.source.whole import build_model, greedy, logits, rotary_tables

__all__ = [
    "LayerRun",
    "ModelStudent",
    "build_model",
    "greedy",
    "logits",
    "measure_curvature",
    "rotary_tables",
    "walk_layers",
]
