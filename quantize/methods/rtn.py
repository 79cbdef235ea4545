"""Round to nearest: without a text where the axis is given, else its groups searched by the importance of their inputs."""

from __future__ import annotations

from quantize.methods.method import Method
from quantize.rounding import NEAREST, Rounder
from quantize.steps.round import Round

METHOD = Method(NEAREST, "round to nearest", "as llama-quantize", (Round(Rounder(NEAREST)),))
