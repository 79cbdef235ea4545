"""Checkpoint -> QuantizedStore: AdaDim on RTN or GPTQ. Imports nothing of the other packages.

A name is imported when it is first asked for: a child process that renders a chat template needs no grids, and each check of a
file starts several.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import quantize.telemetry  # noqa: F401 - switches off what other libraries report, before one is loaded

if TYPE_CHECKING:
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

_HOMES = {
    **dict.fromkeys(("GRIDS", "make_grid"), "grids"),
    **dict.fromkeys(("METHODS", "ROUNDERS", "Around"), "methods"),
    **dict.fromkeys(("Axis", "PlainTensor", "QuantizedTensor", "Target"), "types"),
    **dict.fromkeys(("Checkpoint", "open_checkpoint"), "checkpoint"),
    **dict.fromkeys(("DataSpec", "GridSpec", "QuantizeConfig"), "config"),
    "AdaDimError": "errors",
    "QuantizedStore": "store.tensors",
    "build_plan": "planning.plan",
    "dequantize": "blocks",
    "quantize_checkpoint": "run.pipeline",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'quantize' has no attribute {name!r}")
    return getattr(import_module(f"quantize.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """For whoever lists what is here, as the site does."""
    return sorted({*globals(), *__all__})
