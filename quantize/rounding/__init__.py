"""ROUNDERS: how a weight becomes codes on a grid. A new algorithm is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable

from quantize.rounding.gptq import gptq
from quantize.rounding.polish import polish
from quantize.rounding.rtn import rtn
from quantize.types import F32, Axis, Grid, InputStats, QuantizedTensor

Rounder = Callable[[str, F32, Grid, Axis, InputStats | None], QuantizedTensor]


def gptq_polished(name: str, weight: F32, grid: Grid, axis: Axis, stats: InputStats | None) -> QuantizedTensor:
    """GPTQ, then ``polish`` of what it left; F32[OC, IC] under ``stats.hessian`` F32[IC, IC]."""
    assert stats is not None, f"{name}: GPTQ needs statistics"
    return polish(gptq(name, weight, grid, axis, stats), weight, stats)


ROUNDERS: dict[str, Rounder] = {"rtn": rtn, "search": rtn, "gptq": gptq_polished}  # a search is RTN that must have statistics
