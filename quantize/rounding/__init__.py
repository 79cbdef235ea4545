"""ROUNDERS: how a weight becomes codes on a grid. A new algorithm is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable

from quantize.rounding.gptq import gptq
from quantize.rounding.rtn import rtn
from quantize.types import F32, Axis, Grid, LayerStats, QuantizedTensor

Rounder = Callable[[str, F32, Grid, Axis, LayerStats | None], QuantizedTensor]

ROUNDERS: dict[str, Rounder] = {"rtn": rtn, "gptq": gptq}
