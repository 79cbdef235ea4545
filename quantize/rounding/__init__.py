"""How a weight becomes codes on a grid: rounded to nearest, and then improved by what is known of its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantize.rounding.rtn import rtn
from quantize.types import F32, Axis, Grid, InputStats, Need, QuantizedTensor

Improvement = Callable[[QuantizedTensor, F32, InputStats], QuantizedTensor]  # of a weight F32[OC, IC] under its statistics
NEAREST = "rtn"  # what it is called that a rounder starts from


@dataclass(frozen=True)
class Rounder:
    """Round to nearest, its params searched where statistics are given; then each of ``improve`` goes on from the one before.

    ``needs``: without them it has no result.
    """

    name: str
    needs: Need = Need.WEIGHTS
    improve: tuple[Improvement, ...] = ()

    def __call__(self, name: str, weight: F32, grid: Grid, axis: Axis, stats: InputStats | None = None) -> QuantizedTensor:
        """Quantize F32[OC, IC]."""
        return self.tried(name, weight, grid, axis, stats)[self.name]

    def tried(self, name: str, weight: F32, grid: Grid, axis: Axis, stats: InputStats | None) -> dict[str, QuantizedTensor]:
        """The result by this rounder's name, and what it started from by NEAREST, if that is another."""
        start = tensor = rtn(name, weight, grid, axis, stats)
        for improve in self.improve:
            assert stats is not None, f"{name}: {self.name} needs statistics"
            tensor = improve(tensor, weight, stats)
        return {self.name: tensor} | ({NEAREST: start} if self.improve else {})
