"""Checkpoint -> QuantizedStore: AdaDim on RTN or GPTQ. Imports nothing of the other packages."""

from __future__ import annotations

import quantize.telemetry  # noqa: F401 - switches off what other libraries report, before one is loaded
from quantize.blocks import dequantize
from quantize.checkpoint import Checkpoint, open_checkpoint
from quantize.config import DataSpec, GridSpec, QuantizeConfig
from quantize.errors import AdaDimError
from quantize.grids import GRIDS, make_grid
from quantize.methods import METHODS, ROUNDERS, Around
from quantize.planning.plan import build_plan
from quantize.run.pipeline import quantize_checkpoint
from quantize.store.tensors import QuantizedStore
from quantize.types import Axis, PlainTensor, QuantizedTensor, Target

__all__ = [
    "GRIDS",
    "METHODS",
    "ROUNDERS",
    "AdaDimError",
    "Around",
    "Axis",
    "Checkpoint",
    "DataSpec",
    "GridSpec",
    "PlainTensor",
    "QuantizeConfig",
    "QuantizedStore",
    "QuantizedTensor",
    "Target",
    "build_plan",
    "dequantize",
    "make_grid",
    "open_checkpoint",
    "quantize_checkpoint",
]
